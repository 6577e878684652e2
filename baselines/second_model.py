"""What methods have in common in which a client keeps a whole model v of its own beside the global model w.

w travels, v stays. Until a client trains, its model holds the w that came; afterwards, what it would use.
"""

from typing import Any

from torch import nn

from baselines.fedavg import FedAvgTrainer, Params, copy_into, copy_of


class SecondModelTrainer(FedAvgTrainer):
    """A client with two models, w and v, both with the names and shapes of the shared tensors."""

    personalized = True

    def __init__(self, model: nn.Module, args: Any) -> None:
        """Raises ValueError where the weights have private parts: v is private as a whole, w shared as a whole."""
        super().__init__(model, args)
        if self.private:
            raise ValueError(
                "each client has a private model beside the shared one, which cannot be private in parts; "
                "take --parameterization dense, fedpara or lowrank"
            )
        self.w, self.v = copy_of(self.shared), copy_of(self.shared)

    def get_model_params(self) -> Params:
        return copy_of(self.w)

    def set_model_params(self, model_parameters: Params) -> None:
        super().set_model_params(model_parameters)
        self.w = copy_of(self.shared)

    def get_private_state(self) -> Params:
        return copy_of(self.v)

    def set_private_state(self, state: Params) -> None:
        copy_into(self.v, state)
