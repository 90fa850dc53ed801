"""InternLM 3 (Shanghai AI Laboratory 2025): Llama."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, llama

NAMES = llama.NAMES
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "internlm3", "head_dim": 24}


class Config(blocks.Config):
    """InternLM's."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"rms_norm_eps": 1e-5, "max_position_embeddings": 32768}
