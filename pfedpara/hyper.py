"""The hyper-parameters that factors add to a method's. Needs no PyTorch, for the command line's help."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator


class FactorHyper(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    gamma: float = Field(0.5, ge=0, le=1, description="γ, from the smallest rank (0) to the largest (1)")
    tanh: bool = Field(False, description="pass the inner products through tanh, the paper's non-linearity")
    additive: bool | Literal["lowrank"] = Field(
        False,
        description="pfedpara: a private matrix that is added, not a factor W2 + 1: true (dense) | lowrank (X2 Y2ᵀ)",
    )
    layer_gamma: str = Field(
        "", description="γ of modules that have another than the rest, such as hidden:0.25+classifier:1"
    )
    private_lr: float = Field(1.0, ge=0, description="factor on η of private parameters, in local steps of SGD")
    private_from: int = Field(
        0, ge=0, description="round, from 0, from which private parameters learn; before it they stand still"
    )

    @field_validator("layer_gamma")
    @classmethod
    def _check_layers(cls, text: str) -> str:
        for name, value in layer_gammas(text).items():
            if not 0 <= value <= 1:
                raise ValueError(f"γ of {name} must be within [0, 1], got {value:g}")
        return text


def layer_gammas(text: str) -> dict[str, float]:
    """Returns γ by the module's name from ``name:γ+name:γ``. Raises ValueError where it is of another form."""
    found = {}
    for part in filter(None, text.split("+")):
        name, _, value = part.rpartition(":")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"{part!r} is not a module and its γ, such as hidden:0.25")
    return found
