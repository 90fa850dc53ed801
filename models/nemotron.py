"""Nemotron-4 and Minitron (Parmar et al. 2024): layer norms, the square of a ReLU, and half of each head rotated."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import arcee, llama, starcoder2

NAMES = starcoder2.with_biases(arcee.NAMES)
shapes = starcoder2.shapes
forward = starcoder2.forward
TINY = llama.TINY | {"model_type": "nemotron", "partial_rotary_factor": 0.5}


class Config(starcoder2.Config):
    """StarCoder2's."""

    EPS: ClassVar[str] = "norm_eps"
    DEFAULTS: ClassVar[dict[str, Any]] = starcoder2.Config.DEFAULTS | {
        "hidden_act": "relu2",
        "norm_offset": 1,
        "partial_rotary_factor": 0.5,
    }
