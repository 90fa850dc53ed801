"""ERNIE 4.5's small dense model (Baidu 2025): Llama that rotates neighbouring columns."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, llama

NAMES = llama.NAMES
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "ernie4_5", "head_dim": 24, "tie_word_embeddings": True}


class Config(blocks.Config):
    """ERNIE's."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_interleaved": True,
    }
