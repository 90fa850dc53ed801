"""Helium (Kyutai 2025): Llama that rotates neighbouring columns."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, llama

NAMES = llama.NAMES
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "helium"}


class Config(blocks.Config):
    """Helium's."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "rms_norm_eps": 1e-8,
        "max_position_embeddings": 4096,
        "rope_interleaved": True,
    }
