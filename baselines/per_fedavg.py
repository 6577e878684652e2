"""Per-FedAvg (Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A
Model-Agnostic Meta-Learning Approach", NeurIPS 2020, Algorithm 1).

It looks for the w from which one step at each client leads to a good model: min_w mean_i f_i(w − α ∇f_i(w)).
Client i, for each step three distinct batches D, D′, D″:
    w̃ = w − α ∇f(w; D),    w ← w − β (I − α ∇²f(w; D″)) ∇f(w̃; D′)
    fo   leaves the Hessian out: w ← w − β ∇f(w̃; D′), with two batches a step
    hf   has ∇²f(w; D″) g ≈ [∇f(w + δg; D″) − ∇f(w − δg; D″)] / 2δ for g = ∇f(w̃; D′)
Server: w ← the mean of the w_i. What is judged is w after ``adapt_steps`` steps w − α ∇f_i(w), each on a batch of the
client's own data; nothing stays at the client. hf needs α below 1 / L, with L the largest curvature, as the paper's
theory has it: above, I − α ∇²f turns steps around. On the mlp of this suite 0.01 does, where fo takes 0.05 and more.

In E epochs each sample is used once an epoch, as everywhere, so that a round has a half (fo) or a third (hf) of
FedAvg's steps, at one (fo) or 4/3 (hf) of its gradients; batches left over at the end of an epoch do not make a step.
Deviations: the server's mean is weighted by samples, as FedAvg's is here; the gradient of each step, the inner one and
the whole outer one, is clipped as in baselines/base.py. A local optimizer takes the outer step for SGD; the inner one
is part of what w is chosen for, and stays SGD's.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Hyper, Trainer, search
from baselines.local_optimizer import descend


class PerFedAvgHyper(Hyper, frozen=True):
    lr: float = Field(0.1, gt=0, description="β, the step size of w", **search(0.03, 3))
    variant: Literal["fo", "hf"] = Field("fo", description="fo: first order; hf: Hessian-free")
    inner_lr: float = Field(
        0.05, gt=0, description="α, step size of the adaptation; hf needs a smaller one", **search(0.01, 1)
    )
    adapt_steps: int = Field(1, ge=1, description="steps of the adaptation before a client uses the model")
    delta: float = Field(1e-3, gt=0, description="δ, the difference that hf takes instead of the Hessian")


class PerFedAvgTrainer(Trainer):
    """Per-FedAvg: a global model from which a step on a client's data leads to a good one."""

    hyper_class = PerFedAvgHyper
    hyper: PerFedAvgHyper
    judged_on = "received"

    @property
    def batches(self) -> int:
        """How many distinct batches a step takes."""
        return {"fo": 2, "hf": 3}[self.hyper.variant]

    @property
    def samples_per_step(self) -> int:
        return self.batches * self.hyper.batch_size

    def check_client(self, samples: int) -> None:
        least = (self.batches - 1) * self.hyper.batch_size + 1
        if samples < least:
            raise ValueError(
                f"a client has {samples} training samples, but a step of {self.hyper.variant} takes {self.batches} "
                f"batches, hence at least {least} at batch size {self.hyper.batch_size}; take a smaller --batch-size"
            )

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        self.check_client(len(data))
        super().fit(data, context)

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        batches = list(zip(x.split(self.hyper.batch_size), y.split(self.hyper.batch_size), strict=True))
        if len(batches) < self.batches:  # the end of an epoch
            return torch.zeros(())
        w = [parameter.detach().clone() for parameter in self.trainable]
        loss = self.adapt(*batches[0])
        _, direction = self.loss_gradients(*batches[1])  # g = ∇f(w̃; D′)
        if self.hyper.variant == "hf":
            ahead, behind = (self.gradients_at(w, direction, way * self.hyper.delta, batches[2]) for way in (1, -1))
            difference = torch._foreach_sub(ahead, behind)  # 2δ ∇²f(w; D″) g
            direction = torch._foreach_sub(direction, difference, alpha=self.hyper.inner_lr / (2 * self.hyper.delta))
        self.clip(direction)
        with torch.no_grad():
            for parameter, start in zip(self.trainable, w, strict=True):
                parameter.copy_(start)
        self.optimizer.step(self.trainable, direction, lr)
        return loss

    def adapt(self, x: Tensor, y: Tensor) -> Tensor:
        """Takes the step w − α ∇f(w), whatever optimizer moves w itself. Returns the loss before it."""
        loss, gradients = self.gradients(x, y)
        descend(self.trainable, gradients, self.hyper.inner_lr)
        return loss

    def gradients_at(
        self, w: list[Tensor], direction: tuple[Tensor, ...], length: float, batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns the batch's gradients at w + length · direction."""
        self.place(w, direction, length)
        return self.loss_gradients(*batch)[1]

    @torch.no_grad()
    def place(self, w: list[Tensor], direction: tuple[Tensor, ...], length: float) -> None:
        """Puts the model at w + length · direction."""
        for parameter, start, way in zip(self.trainable, w, direction, strict=True):
            parameter.copy_(start.add(way, alpha=length))

    def deploy(self, data: TensorDataset, context: RoundContext) -> None:
        x, y = data.tensors
        self.model.train()
        batches = torch.randperm(len(y)).to(y.device).split(self.hyper.batch_size)
        for number in range(self.hyper.adapt_steps):
            batch = batches[number % len(batches)]
            self.adapt(x[batch], y[batch])
        self.check_finite(self.hyper.inner_lr)
