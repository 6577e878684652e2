"""Local training only: every client for itself, nothing travels. The yardstick of federation."""

from torch import nn

from baselines.base import Trainer
from pfedpara.sharing import keep_private


class LocalTrainer(Trainer):
    """Local only: each client trains alone, nothing is sent."""

    judged_on = "trained"

    def declare_private(self, model: nn.Module) -> None:
        keep_private(model.modules())
