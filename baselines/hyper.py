"""The hyper-parameters that every method has, and how they are tuned. Needs no PyTorch, for the command line's help."""

from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, Field, model_validator

Name = Literal["sgd", "momentum", "adam", "adamw"]
"""The local optimizers; baselines/local_optimizer.py says what each is."""


class Rate(NamedTuple):
    """A learning rate: its default, and the bounds it is tuned in on a log scale."""

    default: float
    low: float
    high: float


ADAM_RATE, ADAMW_DECAY = Rate(0.001, 0.0001, 0.03), 0.01


def rate_for(optimizer: str, of_sgd: Rate) -> Rate:
    """Returns the rate of an ``optimizer``, given a method's own for SGD. Momentum makes a step tenfold in time."""
    if optimizer in ("adam", "adamw"):
        return ADAM_RATE
    return Rate(*(rate / 10 for rate in of_sgd)) if optimizer == "momentum" else of_sgd


def search(low: float, high: float, log: bool = True) -> dict[str, Any]:
    """Returns what a hyper-parameter's Field takes for it to be tuned from ``low`` to ``high``, on a log scale."""
    return {"json_schema_extra": {"search": {"low": low, "high": high, "log": log}}}


class Hyper(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Hyper-parameters are checked where they are made: unknown names, types and ranges.

    Those with ``search`` are tuned by benchmarks/tune.py. A default of the ``stepped`` rate is for SGD.
    """

    stepped: ClassVar[str] = "lr"  # the learning rate that the local optimizer takes

    lr: float = Field(0.1, gt=0, description="η, the clients' learning rate", **search(0.03, 3))
    lr_decay: float = Field(1.0, gt=0, le=1, description="factor on η after each round")
    epochs: int = Field(5, ge=1, description="E, local epochs a round")
    batch_size: int = Field(32, ge=1, description="B, samples a local step")
    clip_norm: float = Field(1.0, ge=0, description="largest Euclidean norm of a step's gradient; 0 does not clip")
    optimizer: Name = Field("sgd", description="of the local steps: sgd | momentum | adam | adamw")
    weight_decay: float = Field(0.0, ge=0, description="λ of the local optimizer; with adamw 0.01 by default")
    keep_optimizer: bool = Field(False, description="keep the optimizer's state between rounds, on the client")
    augment: bool = Field(False, description="crop and flip the pictures of each local step at random")

    @classmethod
    def rate(cls, optimizer: str) -> Rate:
        """Returns default and bounds of the ``stepped`` rate with that local optimizer."""
        field = cls.model_fields[cls.stepped]
        extra: Any = field.json_schema_extra or search(field.default, field.default)
        return rate_for(optimizer, Rate(field.default, extra["search"]["low"], extra["search"]["high"]))

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_optimizer(cls, values: dict[str, Any]) -> dict[str, Any]:
        optimizer = values.get("optimizer", "sgd")
        decay = {"weight_decay": ADAMW_DECAY} if optimizer == "adamw" else {}
        return {cls.stepped: cls.rate(optimizer).default} | decay | values

    @model_validator(mode="after")
    def _nothing_to_keep(self) -> Self:
        if self.keep_optimizer and self.optimizer == "sgd":
            raise ValueError("--keep-optimizer: sgd has no state to keep; take --optimizer momentum, adam or adamw")
        return self
