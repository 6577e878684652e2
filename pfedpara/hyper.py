"""The hyper-parameters that factors add to a method's. Needs no PyTorch, for the command line's help."""

from typing import Literal

from pydantic import BaseModel, Field


class FactorHyper(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    gamma: float = Field(0.5, ge=0, le=1, description="γ, from the smallest rank (0) to the largest (1)")
    tanh: bool = Field(False, description="pass the inner products through tanh, the paper's non-linearity")
    additive: bool | Literal["lowrank"] = Field(
        False,
        description="pfedpara: a private matrix that is added, not a factor W2 + 1: true (dense) | lowrank (X2 Y2ᵀ)",
    )
    private_lr: float = Field(1.0, ge=0, description="factor on η of private parameters, in local steps of SGD")
