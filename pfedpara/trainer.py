"""Any method on factored weights: FedPara, pFedPara and the low-rank product that they are compared with.

Hyeon-Woo, Ye-Bin, Oh: "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", ICLR 2022.

    fedpara   W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ)         FedAvg on all factors
    pfedpara  W = (X1 Y1ᵀ) ⊙ (X2 Y2ᵀ + 1)     (section 2.3) FedAvg on X1, Y1 and biases; X2, Y2 never leave the client
    lowrank   W = X Yᵀ                         FedAvg on the factors, at no more parameters than fedpara
    fedsa     W = X Yᵀ                         FedAvg on Y and biases, as many as pfedpara's; X never leaves the client
                                               (Guo et al., ICLR 2025: Y is their A, X their B)

    pfedpara-x  pfedpara with a dense head, and X1, Y1 trained and sent in turn (baselines/alternating.py)
    fedlmt, pfedlmt  lowrank with a dense head, trained in their own ways (baselines/fedlmt.py)

No deviation beyond the shared clipping of baselines/base.py; pfedpara-x is this project's (docs/pfedpara.md).
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo
from torch import nn

from baselines.alternating import AlternatingTrainer, alternating
from baselines.base import Hyper, Trainer
from baselines.fedavg import FedAvgTrainer
from baselines.fedlmt import FedLmtTrainer, PFedLmtTrainer
from pfedpara.hadamard import Method as Factors
from pfedpara.hyper import FactorHyper, layer_gammas
from pfedpara.parameterize import parameterize
from pfedpara.sharing import layers

FEDAVG_ON = {
    "pfedpara": "pFedPara: FedAvg on the global half of a Hadamard product; the personal half stays.",
    "fedpara": "FedPara: FedAvg on the factors of a Hadamard product; one global model.",
    "fedsa": "FedSA: FedAvg on one factor of X Yᵀ, at pFedPara's number of parameters; the other factor stays.",
    "lowrank": "Low rank: FedAvg on the factors of X Yᵀ, at FedPara's number of parameters; one global model.",
}
"""What FedAvg on each kind of factors is; it goes by the factors' name."""


class Method(NamedTuple):
    """A method on dense weights, or on factors."""

    trainer: type[Trainer]
    factors: Factors | None = None
    dense_head: bool = False  # whether the model's last layer stays dense

    @property
    def parameterization(self) -> str:
        return self.factors or "dense"

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """The hyper-parameters: those of the factors, and the method's."""
        return (FactorHyper.model_fields if self.factors else {}) | self.trainer.hyper_class.model_fields

    def check(self, values: Mapping[str, Any]) -> tuple[FactorHyper, Hyper]:
        """Returns ``values``, completed by the defaults. Raises pydantic's ValidationError."""
        own = FactorHyper.model_fields if self.factors else ()
        factors = FactorHyper(**{name: value for name, value in values.items() if name in own})
        return factors, self.trainer.hyper_class(**{n: value for n, value in values.items() if n not in own})

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns ``values``, checked and completed by the defaults. Raises pydantic's ValidationError."""
        factors, hyper = self.check(values)
        return (factors.model_dump() if self.factors else {}) | hyper.model_dump()

    def build(self, model: nn.Module, dense: Collection[str] = (), alternate: bool = False, **values: Any) -> Trainer:
        """Factors the fresh ``model`` in place, with torch's random stream, and returns the method's trainer of it.

        Modules named in ``dense`` stay as they are; with ``alternate`` factors take turns (baselines/alternating.py).
        Raises ValueError where ``values`` are not the method's, or it does not suit the model or the turns.
        """
        factors, hyper = self.check(values)
        if self.dense_head:
            dense = {*dense, head(model)}
        if self.factors:
            parameterize(
                model,
                self.factors,
                factors.gamma,
                layer_gamma=layer_gammas(factors.layer_gamma),
                dense=dense,
                tanh=factors.tanh,
                additive=factors.additive,
            )
        trainer = (alternating(self.trainer) if alternate else self.trainer)(model, hyper)
        trainer.slow_down_private(factors.private_lr, factors.private_from)
        return trainer


def head(model: nn.Module) -> str:
    """Returns the name of the model's last layer that has a weight."""
    matrices = [layer for layer, *_ in layers(model) if any(p.dim() > 1 for p in layer.parameters(recurse=False))]
    return next(name for name, module in model.named_modules() if module is matrices[-1])


class PFedParaXTrainer(AlternatingTrainer, FedAvgTrainer):
    """pFedPara-X: pFedPara with a dense head, and the factors of the shared half trained and sent in turn."""


PFEDPARA_X = Method(PFedParaXTrainer, "pfedpara", dense_head=True)
FEDLMT = Method(FedLmtTrainer, "lowrank", dense_head=True)
PFEDLMT = Method(PFedLmtTrainer, "lowrank", dense_head=True)
