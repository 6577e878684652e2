"""FedPer (Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv:1912.00818, 2019).

The model is K_B base layers followed by K_P personalization layers. Clients train both by SGD on their own data
(Algorithm 1); the server averages only the base layers, weighted by samples (Algorithm 2). The client's model after its
local training is judged. No deviation beyond the shared clipping of baselines/base.py. A layer is a module with
tensors of its own, so that a norm layer counts as one, and a factored layer as one too (pfedpara/sharing.py).
"""

from pydantic import Field
from torch import nn
from torch.nn import Parameter

from baselines.base import Hyper, JudgedOn, Trainer
from pfedpara.sharing import Layer, keep_private, layers


class FedPerHyper(Hyper, frozen=True):
    private_layers: int = Field(1, ge=1, description="K_P, how many of the last layers stay on the client")


class FedPerTrainer(Trainer):
    """FedPer: all layers but the last K_P are shared."""

    hyper_class = FedPerHyper
    hyper: FedPerHyper
    judged_on: JudgedOn = "trained"

    def declare_private(self, model: nn.Module) -> None:
        found = layers(model)
        if self.hyper.private_layers >= len(found):
            raise ValueError(
                f"private_layers must be below the model's {len(found)} layers, got {self.hyper.private_layers}"
            )
        self.staying = self.private_of(found)
        for layer in self.staying:
            keep_private(layer)

    def private_of(self, found: list[Layer]) -> list[Layer]:
        """Returns which of the model's layers stay."""
        return found[-self.hyper.private_layers :]

    def divide(self) -> tuple[list[Parameter], list[Parameter]]:
        """Returns the parameters of the layers that stay, and those of the others."""
        inside = {p for layer in self.staying for part in layer for p in part.parameters(recurse=False)}
        everything = list(self.model.parameters())
        return [p for p in everything if p in inside], [p for p in everything if p not in inside]
