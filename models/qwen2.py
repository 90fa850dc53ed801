"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases of q, k and v, which lie beside the tensors."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, llama

NAMES = llama.NAMES
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": True}


class Config(blocks.Config):
    """Qwen2's: no window unless it is asked for, and none in the first layers."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
