"""FedALA (Zhang et al., "FedALA: Adaptive Local Aggregation for Personalized Federated Learning", AAAI 2023,
Algorithm 1).

Client i, with the global Θ that came and its own Θ_i of the round before, starts the last p layers at a mixture,
element by element, and the others at Θ:
    Θ̂ = Θ_i + (Θ − Θ_i) ⊙ W,   W ← clip(W − η ∇_Θ̂ L(Θ̂) ⊙ (Θ − Θ_i), 0, 1)                     (their eq. 4 and 5)
on batches of a random share s of its samples: one epoch a round, and the first time until the losses of ten epochs
deviate by less than a threshold. W is 1 at first and stays. Then E epochs of SGD from Θ̂; the first round skips W.
Server: Θ ← the mean of the Θ_i. As in the authors' code, what is judged is Θ̂, made of the newest Θ.

Deviations: p counts layers, not tensors; the first time ends after 100 epochs at the latest; an epoch's loss is the
mean over its samples; running statistics stand still meanwhile; the clipping of baselines/base.py is not of W's steps.
"""

from statistics import pstdev

import torch
from pydantic import Field
from torch import nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Hyper, JudgedOn, Params, Trainer, copy_into, copy_of, search
from pfedpara.sharing import layers, learned

REMEMBERED, LONGEST = 10, 100  # epochs


class FedAlaHyper(Hyper, frozen=True):
    mixed_layers: int = Field(1, ge=1, description="p, how many of the last layers start at a mixture")
    weight_lr: float = Field(1.0, gt=0, description="η of the mixture's weights W", **search(0.1, 10))
    weight_share: float = Field(0.8, gt=0, le=1, description="s, share of the samples that W learns from in a round")
    threshold: float = Field(0.1, gt=0, description="deviation of the losses at which W has been learned at first")


class FedAlaTrainer(Trainer):
    """FedALA: each client starts a round at a mixture of the global model and its own, with weights that it learns."""

    hyper_class = FedAlaHyper
    hyper: FedAlaHyper
    judged_on: JudgedOn = "received"

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        """Raises ValueError where the model has fewer layers than p."""
        super().__init__(model, hyper)
        found = layers(model)
        if self.hyper.mixed_layers > len(found):
            raise ValueError(
                f"mixed_layers must be at most the model's {len(found)} layers, got {self.hyper.mixed_layers}"
            )
        inside = {
            id(p) for layer in found[-self.hyper.mixed_layers :] for part in layer for p in part.parameters(False)
        }
        self.mixed = {name: p for name, p in learned(self.shared).items() if id(p) in inside}
        self.own, self.weights = copy_of(self.mixed), {name: torch.ones_like(p) for name, p in self.mixed.items()}
        self.trained = torch.zeros(())  # rounds, up to two
        self.private_state = {
            **self.private,
            **{f"own.{name}": tensor for name, tensor in self.own.items()},
            **{f"weight.{name}": tensor for name, tensor in self.weights.items()},
            "trained": self.trained,
        }

    def run_epochs(self, data: TensorDataset, epochs: int, lr: float) -> None:
        if self.trained:
            self.mix(data, self.weights)
        super().run_epochs(data, epochs, lr)
        copy_into(self.own, copy_of(self.mixed))
        self.trained.add_(1).clamp_(max=2)

    def deploy(self, data: TensorDataset, context: RoundContext) -> None:
        if self.trained:
            self.mix(data, copy_of(self.weights))

    def mix(self, data: TensorDataset, weights: Params) -> None:
        """Turns the last layers from Θ into Θ̂, and learns ``weights``, in place."""
        x, y = data.tensors
        chosen = torch.randperm(len(y)).to(y.device)[: max(1, int(self.hyper.weight_share * len(y)))]
        moves = {name: p.detach() - self.own[name] for name, p in self.mixed.items()}  # Θ − Θ_i
        everything, self.trainable = self.trainable, list(self.mixed.values())  # type: ignore[arg-type]
        training = self.model.training
        self.model.eval()
        self.blend(moves, weights)
        losses: list[float] = []
        for _ in range(1 if self.trained > 1 else LONGEST):
            total = 0.0
            for batch in chosen.split(self.hyper.batch_size):
                loss, gradients = self.loss_gradients(x[batch], y[batch])
                total += loss.item() * len(batch)
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    weight.sub_(gradient * moves[name], alpha=self.hyper.weight_lr).clamp_(0, 1)
                self.blend(moves, weights)
            losses.append(total / len(chosen))
            if len(losses) > REMEMBERED and pstdev(losses[-REMEMBERED:]) < self.hyper.threshold:
                break
        self.trainable = everything
        self.model.train(training)

    @torch.no_grad()
    def blend(self, moves: Params, weights: Params) -> None:
        """Makes the last layers Θ_i + (Θ − Θ_i) ⊙ W."""
        for name, p in self.mixed.items():
            p.copy_(self.own[name] + moves[name] * weights[name])
