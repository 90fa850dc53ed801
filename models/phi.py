"""Phi-1, 1.5 and 2 (Microsoft 2023): attention and feed-forward side by side, behind one layer norm."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, gpt_neox, llama, starcoder2
from lutra.runtime.errors import UnsupportedModelError

LAYER = "model.layers.{}"
OF_LLAMA = ("embed", "layers.{}.attn_norm", "layers.{}.qkv", "head")
NAMES = starcoder2.with_biases(
    {role: blocks.LLAMA_NAMES[role] for role in OF_LLAMA}
    | {
        "layers.{}.o": (f"{LAYER}.self_attn.dense",),
        "layers.{}.up": (f"{LAYER}.mlp.fc1",),
        "layers.{}.down": (f"{LAYER}.mlp.fc2",),
        "norm": ("model.final_layernorm",),
    }
)
shapes = gpt_neox.shapes
forward = gpt_neox.forward
TINY = llama.TINY | {"model_type": "phi"}


class Config(gpt_neox.Config):
    """Phi's."""

    DEFAULTS: ClassVar[dict[str, Any]] = starcoder2.Config.DEFAULTS | {
        "hidden_act": "gelu_new",
        "partial_rotary_factor": 0.5,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> gpt_neox.Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        if config.get("qk_layernorm"):
            raise UnsupportedModelError("lutra has no Phi with norms of queries and keys (qk_layernorm)")
        return cls.side_by_side(config, True, 1, False)
