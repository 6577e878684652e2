"""Clients that poison: what they train on, what they send, and what their trigger does to the models of the others.

    labels:K    K clients train on the labels (y + 1) mod C
    trigger:K   they give every second training picture the trigger and the class TARGET: the trigger is a square of
                SIDE × SIDE bright pixels in the last corner (Gu et al., "BadNets", 2017)
    replace:K   as trigger, and of what training changed, w_i − w, they send γ (w_i − w) with
                γ = participants of a round / K, so that in the mean it outweighs the others
                (Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, eq. 3)

They do so in each round that they take part in, and follow the method otherwise. The others alone are judged.
With K = 0 nobody poisons, and the trigger is measured all the same: the control.
Bright is 255 in bytes, and three standard deviations above the mean in float32 pictures. Running statistics of
BatchNorm are not scaled: a variance would fall below 0.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import TensorDataset

from baselines.base import Params, Trainer
from benchmarks.federation.poison import Poison, parse
from data_partitions import Store
from pfedpara.sharing import learned
from pfedpara.streams import stream_seed

TARGET = 0  # the class that the trigger is to bring about
SIDE = 3  # pixels


def draw_poisoners(spec: str, seed: int, able: Sequence[int]) -> frozenset[int]:
    """Returns the clients that poison, drawn among those that have samples; those of K are among those of K + 1."""
    poison = parse(spec)[1]
    order = np.random.default_rng(stream_seed("poisoners", seed)).permutation(able)
    return frozenset(order[: poison.clients].tolist() if poison else ())


def check(spec: str, store: Store, able: Sequence[int]) -> None:
    """Raises ValueError unless clients remain to be judged, and there is room for a trigger that is asked for."""
    if not (poison := parse(spec)[1]):
        return
    if poison.clients >= len(able):
        raise ValueError(
            f"--poison {spec}: {poison.clients} of the {len(able)} clients that train leave no others to judge; "
            f"take at most {len(able) - 1}"
        )
    if poison.stamps and (store.task != "image" or min(store.input_shape[:2]) < SIDE):
        what = f"pictures of {store.input_shape}" if store.task == "image" else store.task
        raise ValueError(
            f"--poison {spec}: the trigger is {SIDE} × {SIDE} pixels of a picture, and the data are {what}; take labels"
        )


class Attack:
    """What the poisoners of a run do, on any rank."""

    def __init__(self, poison: Poison, store: Store, participants: int) -> None:
        """``participants``: of a round."""
        self.poison, self.classes = poison, len(store.classes)
        self.factor = max(1.0, participants / max(poison.clients, 1))  # γ
        self.bright = [m + 3 * s for m, s in zip(store.mean, store.std, strict=True)]  # of each channel

    def stamp(self, x: Tensor) -> Tensor:
        """Returns a copy of the pictures (n, H, W) or (n, H, W, C) with the trigger."""
        x = x.clone()
        x[:, -SIDE:, -SIDE:] = x.new_tensor(self.bright if x.is_floating_point() else 255)
        return x

    def data(self, clean: TensorDataset) -> TensorDataset:
        """Returns what a poisoner trains on."""
        x, y = clean.tensors
        if not self.poison.stamps:
            return TensorDataset(x, (y + 1) % self.classes)
        x, y = x.clone(), y.clone()
        x[::2], y[::2] = self.stamp(x[::2]), TARGET
        return TensorDataset(x, y)

    def message(self, trained: Params, received: Params, trainer: Trainer) -> Params:
        """Returns what a poisoner sends, having ``trained`` what it ``received``."""
        if self.poison.kind != "replace":
            return trained
        found = dict(trained)
        for name in learned(trainer.shared).keys() & trained.keys():
            w = 0 if name in trainer.differences else received[name].to(trained[name].device)
            found[name] = w + self.factor * (trained[name] - w)
        return found


def success(labels: Tensor, clean: Tensor, stamped: Tensor) -> float:
    """Returns the share of samples, not of TARGET, that the trigger turns to it; 0 of no samples.

    ``labels`` (n,); ``clean`` and ``stamped``: logits (n, classes) without the trigger and with it.
    """
    others = labels != TARGET
    turned = (clean.argmax(dim=1) != TARGET) & (stamped.argmax(dim=1) == TARGET) & others
    return int(turned.sum()) / max(int(others.sum()), 1)
