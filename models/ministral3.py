"""Ministral 3 (2025): Mistral without a window. It runs as far as YaRN's own positions: beyond, queries are scaled."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, mistral

NAMES = mistral.NAMES
shapes = mistral.shapes
forward = mistral.forward
TINY = mistral.TINY | {
    "model_type": "ministral3",
    "sliding_window": None,
    "rope_theta": 1e6,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}


class Config(blocks.Config):
    """Ministral's."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"head_dim": 128, "rms_norm_eps": 1e-5}
