"""What methods have in common in which a client keeps a whole model v of its own beside the global model w.

w travels, v stays. Until a client trains, its model holds the w that came; afterwards, what it would use.
"""

from torch import nn

from baselines.base import Hyper, Params, Trainer, copy_into, copy_of


class SecondModelTrainer(Trainer):
    """A client with two models, w and v, both with the names and shapes of the shared tensors."""

    judged_on = "trained"

    def __init__(self, model: nn.Module, hyper: Hyper) -> None:
        """Raises ValueError where the weights have private parts: v is private as a whole, w shared as a whole."""
        super().__init__(model, hyper)
        if self.private:
            raise ValueError(
                "each client has a private model beside the shared one, which cannot be private in parts; "
                "take --parameterization dense, fedpara or lowrank"
            )
        self.travelling = self.w = copy_of(self.shared)
        self.private_state = self.v = copy_of(self.shared)

    def set_model_params(self, model_parameters: Params) -> None:
        super().set_model_params(model_parameters)
        copy_into(self.shared, self.w)
