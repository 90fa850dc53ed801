"""GLM-4 9B (Zhipu 2024): Llama with biases, gate and up joined on disk, and half of each head rotated in neighbours."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, llama, phi3

NAMES = llama.NAMES | {"layers.{}.gate_up": phi3.NAMES["layers.{}.gate_up"]}
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "glm"}


class Config(blocks.Config):
    """GLM's."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "head_dim": 128,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-7,
        "rope_interleaved": True,
    }
