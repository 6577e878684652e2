"""FedAvg with fine-tuning: the global model of FedAvg, trained on by each client on its own data before it is used.

The simplest personalization; compared with by nearly every paper here (as in Collins et al., ICML 2021). Training,
what travels and the server are FedAvg's; nothing stays. What is judged is the new global model after
``finetune_epochs`` epochs of the client's SGD at the round's η, which nobody else sees.

These epochs are no part of training: a client takes them where it is judged, and they are thrown away afterwards.
"""

from pydantic import Field
from torch.utils.data import TensorDataset

from baselines.adapter import RoundContext
from baselines.base import Hyper, JudgedOn, Trainer


class FedAvgFtHyper(Hyper, frozen=True):
    finetune_epochs: int = Field(5, ge=0, description="epochs on the client's own data before its model is used")


class FedAvgFtTrainer(Trainer):
    """FedAvg, fine-tuned: each client trains the global model on its own data before it uses it."""

    hyper_class = FedAvgFtHyper
    hyper: FedAvgFtHyper
    judged_on: JudgedOn = "received"  # on any weights: what it trains for the others is not what it uses

    def deploy(self, data: TensorDataset, context: RoundContext) -> None:
        self.run_epochs(data, self.hyper.finetune_epochs, self.learning_rate(context))
