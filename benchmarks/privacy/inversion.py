"""Gradient inversion: pictures whose update would be the one that the server saw.

    dlg      Zhu et al., NeurIPS 2019: ‖u' − u‖² / ‖u‖², with the labels optimised along
    idlg     Zhao et al., arXiv:2001.02610: the same, with the labels read from the head's bias
    cosine   Geiping et al., NeurIPS 2020: 1 − cos(u', u) + λ TV(x), with the labels of idlg

u is the change of the shared tensors, and u' that which a guess of pictures (and of private tensors) would cause in one
step. All updates are attacked at once. Deviations: Adam in the place of DLG's L-BFGS, and x stays in [0, 1] in all.
Where the head's bias does not travel, cosine optimises labels along, as dlg does, and idlg has nothing to read.
"""

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from baselines.base import Params
from pfedpara.streams import stream_state

Attack = Literal["dlg", "idlg", "cosine"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)
Guess = Literal["start", "optimised"]
"""What stands for private tensors: what they were when training began, or that as the attack moves it along."""

PICTURE_RATE, LABEL_RATE, PRIVATE_RATE = 0.1, 0.1, 0.01  # Adam's, falling to 0 along a cosine
SMOOTHNESS = 0.01  # λ
TINY = 1e-30  # the root's slope at 0 is not finite


class Target(NamedTuple):
    """What the server knows of N updates."""

    model: nn.Module
    before: Params  # the shared tensors that it sent
    updates: Params  # what came back less what was sent: (N, …) each
    private: Params  # the private tensors' start
    shape: tuple[int, ...]  # of the pictures of a batch, (B, …)
    classes: int
    rate: float  # η, times the steps that the client took
    clip_norm: float
    head: str | None  # the bias of the last layer, where it travels


def change(target: Target, private: Params, pictures: Tensor, labels: Tensor) -> Params:
    """Returns by what a step of baselines/base.py changes the shared tensors.

    ``pictures``: (B, …) in [0, 1]; ``labels``: probabilities (B, classes).
    """

    def loss(parameters: Params) -> Tensor:
        return F.cross_entropy(functional_call(target.model, parameters, (pictures,)), labels)

    gradients: Params = grad(loss)({**target.before, **private})
    rate = torch.tensor(target.rate)
    if target.clip_norm:
        norm = square(*gradients.values()).clamp(min=TINY).sqrt()
        rate = rate * (target.clip_norm / norm).clamp(max=1)
    return {name: -rate * gradients[name] for name in target.before}


def square(*tensors: Tensor) -> Tensor:
    """Returns ‖t‖² of all of them together."""
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()


def total_variation(pictures: Tensor) -> Tensor:
    """Returns the mean absolute difference of neighbouring pixels, ``pictures`` being (B, H, W) or (B, H, W, C)."""
    return pictures.diff(dim=1).abs().mean() + pictures.diff(dim=2).abs().mean()


def distance(attack: Attack, seen: Params, made: Params, pictures: Tensor) -> Tensor:
    """Returns what the attack makes small."""
    length = square(*seen.values())
    if attack != "cosine":
        return square(*(made[name] - tensor for name, tensor in seen.items())) / length
    product = torch.stack([(made[name] * tensor).sum() for name, tensor in seen.items()]).sum()
    norms = (square(*made.values()) * length).clamp(min=TINY).sqrt()
    return 1 - product / norms + SMOOTHNESS * total_variation(pictures)


def read_labels(update: Tensor, batch: int) -> list[int]:
    """Returns the labels that the change of the head's bias, (classes,), tells of a batch.

    A step changes it by η (share of the class − its mean probability), times what clipping leaves. The class that
    gained most is taken ``batch`` times, each time less its part of all gains. For one sample that is iDLG's sign.
    """
    gained, found = update.clone(), []
    part = gained.clamp(min=0).sum() / batch
    for _ in range(batch):
        found.append(int(gained.argmax()))
        gained[found[-1]] -= part
    return found


def invert(target: Target, attack: Attack, guess: Guess, iterations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns pictures (N, B, …) in [0, 1] and labels (N, B) for the N updates."""
    count, batch = len(next(iter(target.updates.values()))), target.shape[0]
    generator = torch.Generator()
    generator.set_state(stream_state("attack", seed))
    pictures = torch.rand((count, *target.shape), generator=generator).requires_grad_()
    scores = torch.randn((count, batch, target.classes), generator=generator)
    private = {name: tensor.expand(count, *tensor.shape).clone() for name, tensor in target.private.items()}
    groups = [{"params": [pictures], "lr": PICTURE_RATE}]
    read = attack != "dlg" and target.head is not None
    if read:
        found = torch.tensor([read_labels(update, batch) for update in target.updates[target.head or ""]])  # (N, B)
        scores = 1e4 * F.one_hot(found, target.classes)  # whose softmax is that again
    else:
        groups.append({"params": [scores.requires_grad_()], "lr": LABEL_RATE})
    if guess == "optimised":
        groups.append({"params": [tensor.requires_grad_() for tensor in private.values()], "lr": PRIVATE_RATE})

    def objective(seen: Params, kept: Params, x: Tensor, y: Tensor) -> Tensor:
        return distance(attack, seen, change(target, kept, x, y.softmax(-1)), x)

    each = vmap(objective)
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        optimizer.zero_grad()
        each(target.updates, private, pictures, scores).sum().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            pictures.clamp_(0, 1)
    return pictures.detach(), scores.detach().argmax(-1)
