"""FedSelect (Tamirisa et al., "FedSelect: Personalized Federated Learning with Customized Selection of Parameters for
Fine-Tuning", CVPR 2024): single numbers of the weights become a client's own, where they move most.

Client i has a mask m_i of its matrices and kernels: 1 where a number is personal, 0 at the start. A round:
    θ ← m_i ⊙ θ_i + (1 − m_i) ⊙ the global θ that came
    E times (LocalAlt): an epoch of SGD that moves m_i ⊙ θ alone, then one that moves (1 − m_i) ⊙ θ and all else
    up go the numbers with m_i = 0, and m_i
In each third round (GradSelect; not the first), in each weight of which at most a share α is personal: the share p of
its shared numbers that moved farthest since the choice before becomes personal. Such a number takes what comes once
more, and then stays.
Server: each number ← the mean over the clients that sent it, weighted by samples; without any it stays as it is.

As in the authors' code, lapisrocks/fedselect: p, α, three rounds, the cut at round((1 − p) n) of n sorted moves, and
what is judged, the model that a client has trained. What a message up holds is a bit for each number of a weight, and
those that are shared; down goes everything, for the server keeps nobody's mask.
Deviations: the mean is weighted by samples, there all clients count alike; rounds are the client's own, there all take
part; the scales of norm layers are never personal, and running statistics are averaged. An epoch without anything
personal to move is left out. The clipping of baselines/base.py is of the whole gradient, as the authors' is.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Aggregator, Hyper, JudgedOn, Params, Trainer, copy_of, search
from pfedpara.sharing import learned

SOON = 0.5  # the mark of a number that is personal once it has taken what comes next; 1: shared, 0: personal


class FedSelectHyper(Hyper, frozen=True):
    personal_rate: float = Field(
        0.25, gt=0, lt=1, description="p, share of a weight's shared numbers that become personal", **search(0.05, 0.5)
    )
    personal_limit: float = Field(
        0.8, ge=0, lt=1, description="α, share of a weight from which on no more become personal", **search(0.05, 0.8)
    )
    select_every: int = Field(3, ge=1, description="rounds of a client from one choice to the next")


def marks_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the name of each matrix or kernel, by that of its marks."""
    return {f"sent.{name}": name for name, tensor in learned(tensors).items() if tensor.dim() > 1}


class FedSelectAggregator(Aggregator):
    """FedAvg's server, number by number over those who sent it."""

    needs_mean = True  # a number's mean, over that of its marks

    def of_mean(self, mean: Params, clients: int) -> Params:
        new = {name: mean[name] for name in self.shared}
        for mark, name in marks_of(self.shared).items():
            new[name] = torch.where(mean[mark] > 0, mean[name] / mean[mark], self.shared[name].detach())
        return new


class FedSelectTrainer(Trainer):
    """FedSelect: the numbers of the weights that move most become each client's own; the others are shared."""

    hyper_class = FedSelectHyper
    aggregator_class = FedSelectAggregator
    hyper: FedSelectHyper
    judged_on: JudgedOn = "trained"

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.marks = marks_of(self.shared)
        self.sent = {name: torch.ones_like(self.shared[name]) for name in self.marks.values()}
        # Personal numbers as they were trained last, shared ones as they were at the choice before.
        self.own = copy_of({name: self.shared[name] for name in self.sent})
        self.rounds = torch.zeros(())
        self.private_state = {
            **self.private,
            **{f"own.{name}": tensor for name, tensor in self.own.items()},
            **{f"sent.{name}": tensor for name, tensor in self.sent.items()},
            "rounds": self.rounds,
        }
        self.outgoing: Mapping[str, Tensor] = self.travelling
        self.moving: list[Tensor] = []  # which numbers of each parameter a step moves, bool

    def changing(self, round: int) -> Mapping[str, Tensor]:
        return {**self.travelling, **{mark: self.sent[name] for mark, name in self.marks.items()}}

    def parts(self, round: int) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        return self.travelling, {}

    def get_model_params(self) -> Params:
        """Returns what was trained, with 0 for what is personal, and the marks; before that all that travels."""
        sent = copy_of(self.outgoing)
        for mark, name in self.marks.items():
            if mark in sent:
                sent[name] *= sent[mark].ceil_()
        return sent

    @torch.no_grad()
    def set_model_params(self, model_parameters: Params) -> None:
        super().set_model_params(model_parameters)
        for name, sent in self.sent.items():
            self.shared[name].copy_(torch.where(sent > 0, self.shared[name], self.own[name]))

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        for sent in self.sent.values():
            sent.floor_()  # what was SOON is now personal
        super().fit(data, context)
        for name, sent in self.sent.items():
            self.own[name].copy_(torch.where(sent > 0, self.own[name], self.shared[name].detach()))
        if self.rounds and self.rounds % self.hyper.select_every == 0:
            self.select()
        self.rounds += 1
        self.outgoing = self.changing(context.round)

    @torch.no_grad()
    def select(self) -> None:
        """Marks the shared numbers that moved farthest since the choice before."""
        for name, sent in self.sent.items():
            weight, free = self.shared[name], sent > 0
            moves = (weight - self.own[name]).abs()
            self.own[name].copy_(weight)
            if 1 - sent.mean(dtype=torch.float64) > self.hyper.personal_limit:
                continue
            found = moves[free].sort().values
            cut = round((1 - self.hyper.personal_rate) * len(found))
            if cut < len(found):
                sent[free & (moves >= found[cut])] = SOON

    def run_epochs(self, data: TensorDataset, epochs: int, lr: float) -> None:
        inside = {id(self.shared[name]): sent == 0 for name, sent in self.sent.items()}
        stays = set(map(id, self.private.values()))
        personal = [inside.get(id(p), torch.full_like(p, id(p) in stays, dtype=torch.bool)) for p in self.trainable]
        others = [~mask for mask in personal]
        for _ in range(epochs):
            for self.moving in (personal, others):
                if any(mask.any() for mask in self.moving):
                    super().run_epochs(data, 1, lr)

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        before = [parameter.detach().clone() for parameter in self.trainable]
        loss = super().step(x, y, lr)
        with torch.no_grad():
            for parameter, old, moves in zip(self.trainable, before, self.moving, strict=True):
                parameter.copy_(torch.where(moves, parameter, old))
        return loss
