"""Gemma (2024): Llama with GELU, scaled embeddings, and norms whose weights are stored as how far they are from 1."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, gemma2
from lutra.runtime import ops

NAMES = blocks.LLAMA_NAMES
shapes = blocks.shapes
TINY = {key: value for key, value in gemma2.TINY.items() if key != "sliding_window"} | {"model_type": "gemma"}


class Config(gemma2.Config):
    """Gemma 2's without caps and windows. The activation may be called gelu, and always is the one by tanh."""

    DEFAULTS: ClassVar[dict[str, Any]] = gemma2.Config.DEFAULTS | {
        "num_hidden_layers": 28,
        "hidden_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 24576,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> gemma2.Config:
        """As gemma2.Config.read."""
        config = cls.DEFAULTS | config
        lacking = ("sliding_window", "sliding_window_pattern", "attn_logit_softcapping", "final_logit_softcapping")
        activation = config.get("hidden_act", "gelu")
        fixed = {
            "hidden_activation": "gelu_pytorch_tanh" if activation == "gelu" else activation,
            "query_pre_attn_scalar": config["head_dim"],
        }
        return super().read(config | dict.fromkeys(lacking) | fixed)


def forward(c: gemma2.Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.scale(ops.embed(ids, w.embed), factor=c.embed_scale)
    for i, layer in enumerate(w.layers):
        h = ops.linear(c.norm(x, layer.attn_norm), layer.qkv)
        x = ops.add(x, ops.linear(blocks.attend(c, h, angles, state, i), layer.o))
        x = ops.add(x, blocks.feed_forward(c, layer, i, c.norm(x, layer.mlp_norm)))
    return ops.linear(c.norm(ops.tail(x, state), w.norm), w.head)
