"""FedPara, pFedPara and the low-rank product they are compared with, as FedML trainers, and any other method on them.

Hyeon-Woo, Ye-Bin, Oh: "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", ICLR 2022.

    fedpara   W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ)         FedAvg on all factors
    pfedpara  W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ + 1)     (section 2.3) FedAvg on X1, Y1 and biases; X2, Y2 never leave the client
    lowrank   W = X Yᵀ                         FedAvg on the factors, at no more parameters than fedpara

No deviation beyond the shared clipping of baselines/base.py.
"""

from functools import cache
from typing import ClassVar

from pydantic import BaseModel, Field, create_model
from torch import nn

from baselines.base import Hyper, Trainer
from pfedpara.hadamard import Method
from pfedpara.parameterize import parameterize


class FactorHyper(BaseModel, frozen=True):
    gamma: float = Field(0.5, ge=0, le=1, description="γ, from the smallest rank (0) to the largest (1)")
    tanh: bool = Field(False, description="pass the inner products through tanh, the paper's non-linearity")


class FactoredHyper(Hyper, FactorHyper, frozen=True):
    pass


class FedParaTrainer(Trainer):
    """FedPara: FedAvg on the factors of a Hadamard product; one global model."""

    hyper_class = FactoredHyper
    hyper: FactoredHyper
    parameterization: ClassVar[Method] = "fedpara"

    def personalize(self, model: nn.Module) -> None:
        parameterize(model, self.parameterization, self.hyper.gamma, tanh=self.hyper.tanh)
        super().personalize(model)


class LowRankTrainer(FedParaTrainer):
    """Low rank: FedAvg on the factors of X Yᵀ, at FedPara's number of parameters; one global model."""

    parameterization = "lowrank"


class PFedParaTrainer(FedParaTrainer):
    """pFedPara: FedAvg on the global half of a Hadamard product; the personal half stays."""

    parameterization = "pfedpara"
    judged_on = "trained"


@cache
def on_factors(method: type[Trainer], parameterization: Method) -> type[Trainer]:
    """Returns ``method`` on factored weights: a trainer that factors its model and then does as ``method`` does.

    Its hyper-parameters are the method's, and γ and tanh. It is judged as the method says; where that is FedAvg's way,
    as pFedPara is on personal factors.
    """
    factored = next(
        t for t in (FedParaTrainer, LowRankTrainer, PFedParaTrainer) if t.parameterization == parameterization
    )
    says = next(base for base in method.__mro__ if "judged_on" in vars(base))
    name = f"{method.__name__}On{factored.__name__}"
    return type(
        name,
        (factored, method),
        {
            "__doc__": method.__doc__,
            "hyper_class": create_model(f"{name}Hyper", __base__=(method.hyper_class, FactorHyper)),
            "judged_on": factored.judged_on if says is Trainer else method.judged_on,
        },
    )
