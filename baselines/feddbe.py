"""FedDBE (Zhang et al., "Eliminating Domain Bias for Federated Learning in Representation Space", NeurIPS 2023,
Algorithm 1): FedAvg with a domain bias eliminator.

The model is a feature extractor f under a head g. Client i keeps a vector z̄_i of the features' size K, and learns
    g(f(x) + z̄_i)   on the loss   ℓ + κ · mean_k ½ (m_i − z̄^g)²_k                                (their eq. 7 and 8)
where m_i ← (1 − μ) m_i + μ · mean of the batch's f(x) is a running mean that starts at 0 in each round.
Server: f, g ← the mean over clients, weighted by samples; z̄^g ← that of the m_i of the first round, and then fixed.
In that round clients train without z̄_i and without the second term. What is judged is the new f and g with z̄_i.

z̄^g goes down in each round and m_i up, K numbers each, and one that says whether z̄^g is known.
Deviations: the first round's models are averaged as in any other, where the authors' code throws them away; its
participants make z̄^g; z̄_i is clipped together with the rest, as in baselines/base.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Aggregator, Hyper, JudgedOn, Params, Trainer, search
from pfedpara.sharing import layers


class FedDbeHyper(Hyper, frozen=True):
    kappa: float = Field(50.0, ge=0, description="κ, weight of the mean regularization", **search(0.1, 100))
    momentum: float = Field(1.0, gt=0, le=1, description="μ, share of a batch in the running mean of the features")


def add_bias(head: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns the head's inputs (B, K) with the client's z̄_i (K,) added; a hook that runs before the head."""
    return (inputs[0] + head.domain_bias, *inputs[1:])


def messages(head: nn.Linear) -> Params:
    """Returns what travels beside the model: z̄^g down and m_i up (K,), and whether z̄^g is known."""
    like = next(head.parameters())
    return {"feature_mean": like.new_zeros(head.in_features), "feature_mean_known": like.new_zeros(1)}


class FedDbeAggregator(Aggregator):
    """FedAvg's server, which fixes z̄^g in the first round that anybody's update arrives in."""

    def __init__(self, model: nn.Module, hyper: Hyper, clients: int) -> None:
        super().__init__(model, hyper, clients)
        self.travelling = {**self.shared, **messages(layers(model)[-1][0])}  # type: ignore[arg-type]

    def of_mean(self, mean: Params, clients: int) -> Params:
        known = self.travelling["feature_mean_known"]
        return mean | {name: self.travelling[name] for name in ("feature_mean", "feature_mean_known") if known}


class FedDbeTrainer(Trainer):
    """FedDBE: a vector of each client's own takes its bias out of the features that all clients share."""

    hyper_class = FedDbeHyper
    aggregator_class = FedDbeAggregator
    hyper: FedDbeHyper
    judged_on: JudgedOn = "received"

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        super().__init__(model, hyper)
        self.message = messages(self.head)
        self.travelling = {**self.shared, **self.message}
        self.running = torch.zeros_like(self.message["feature_mean"])  # m_i

    def declare_private(self, model: nn.Module) -> None:
        """Gives the head the client's z̄_i. Raises ValueError where the last layer has no features as its input."""
        head = layers(model)[-1][0]
        if not isinstance(head, nn.Linear):
            raise ValueError(f"the last layer is a {type(head).__name__}; take a model that ends in a Linear layer")
        self.head = head
        if not hasattr(head, "domain_bias"):
            head.domain_bias = nn.Parameter(next(head.parameters()).new_zeros(head.in_features))
            head.register_forward_pre_hook(add_bias)
        head.private_parameters = ("domain_bias",)  # type: ignore[assignment]

    def fit(self, data: TensorDataset, context: RoundContext) -> None:
        everything = self.trainable
        if not self.message["feature_mean_known"]:
            self.trainable = [p for p in everything if p is not self.head.domain_bias]
        self.running.zero_()
        try:
            super().fit(data, context)
        finally:
            self.trainable = everything
        self.message["feature_mean"].copy_(self.running)
        self.message["feature_mean_known"].fill_(1)

    def loss_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        self.count(len(y))
        features: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]), prepend=True)
        loss = F.cross_entropy(self.model(x), y)
        hook.remove()
        mean = (1 - self.hyper.momentum) * self.running + self.hyper.momentum * features[0].mean(dim=0)  # (K,)
        if self.message["feature_mean_known"]:
            loss = loss + self.hyper.kappa * (mean - self.message["feature_mean"]).square().mean() / 2
        self.running = mean.detach()
        return loss.detach(), torch.autograd.grad(loss, self.trainable)
