"""Mistral (Jiang et al. 2023): Llama, with a sliding window in every layer, if it has one."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, llama

NAMES = llama.NAMES
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "mistral", "sliding_window": 7}


class Config(blocks.Config):
    """Mistral's: a window unless the configuration says null."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"sliding_window": 4096}
