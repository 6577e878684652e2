"""LG-FedAvg (Liang et al., "Think Locally, Act Globally: Federated Learning with Local and Global Representations",
NeurIPS 2019 workshop, arXiv:2001.01523, 2020, Algorithm 1).

The mirror image of FedPer: the first layers are the client's own representation, the rest is global. Clients train both
together by SGD; the server averages the global layers, weighted by samples. As in the authors' code, what is judged is
the new global layers on the client's own representation.

Deviations: every client starts from the common random start, where the authors' code starts from a model that FedAvg
has trained, and evaluation keeps each client's best model of all rounds by test accuracy, which is not done here; the
shared clipping of baselines/base.py.
"""

from pydantic import Field

from baselines.fedper import FedPerHyper, FedPerTrainer
from pfedpara.sharing import Layer


class LGFedAvgHyper(FedPerHyper, frozen=True):
    private_layers: int = Field(1, ge=1, description="how many of the first layers stay on the client")


class LGFedAvgTrainer(FedPerTrainer):
    """LG-FedAvg: each client has its own first layers, and shares the rest."""

    hyper_class = LGFedAvgHyper
    hyper: LGFedAvgHyper
    judged_on = "received"

    def private_of(self, found: list[Layer]) -> list[Layer]:
        return found[: self.hyper.private_layers]
