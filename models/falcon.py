"""Falcon (TII 2023): attention and feed-forward side by side; heads share keys and values, all or groups of them."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, gpt_neox, starcoder2
from lutra.models.weights import Names
from lutra.runtime.errors import UnsupportedModelError

LAYER = "transformer.h.{}"
NAMES: dict[str, tuple[str, ...]] = {
    "embed": ("transformer.word_embeddings",),
    "layers.{}.attn_norm": (f"{LAYER}.input_layernorm",),
    "layers.{}.qkv": (f"{LAYER}.self_attention.query_key_value",),
    "layers.{}.o": (f"{LAYER}.self_attention.dense",),
    "layers.{}.mlp_norm": (f"{LAYER}.post_attention_layernorm",),
    "layers.{}.up": (f"{LAYER}.mlp.dense_h_to_4h",),
    "layers.{}.down": (f"{LAYER}.mlp.dense_4h_to_h",),
    "norm": ("transformer.ln_f",),
    "head": ("lm_head",),
}
TWO_NORMS = {"layers.{}.attn_norm": (f"{LAYER}.ln_attn",), "layers.{}.mlp_norm": (f"{LAYER}.ln_mlp",)}
shapes = gpt_neox.shapes
forward = gpt_neox.forward
TINY = {key: value for key, value in gpt_neox.TINY.items() if key not in ("rotary_pct", "intermediate_size")} | {
    "model_type": "falcon",
    "new_decoder_architecture": True,
    "num_kv_heads": 2,
    "ffn_hidden_size": 160,
    "tie_word_embeddings": True,
}


class Config(gpt_neox.Config):
    """Falcon's."""

    EPS: ClassVar[str] = "layer_norm_epsilon"
    DEFAULTS: ClassVar[dict[str, Any]] = starcoder2.Config.DEFAULTS | {
        "activation": "gelu",
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> gpt_neox.Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        if config.get("alibi"):
            raise UnsupportedModelError("lutra has no attention with linear biases (alibi)")
        newer, parallel = bool(config["new_decoder_architecture"]), bool(config["parallel_attn"])
        if newer and not parallel:
            raise UnsupportedModelError("lutra runs Falcon's newer layers side by side (parallel_attn)")
        norms = blocks.size(config, "num_ln_in_parallel_attn", 2) if newer else 1 if parallel else 2
        shared = 1 if config["multi_query"] and not newer else None
        known = {
            "num_key_value_heads": shared or config.get("num_kv_heads"),
            "intermediate_size": config.get("ffn_hidden_size") or 4 * blocks.size(config, "hidden_size"),
            "hidden_act": config["activation"],
        }
        return cls.side_by_side(config | known, parallel, min(norms, 2), not shared)


def names(c: gpt_neox.Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    found = NAMES | (TWO_NORMS if c.parallel and c.norms == 2 else {})
    if c.norms == 1:
        del found["layers.{}.mlp_norm"]
    return starcoder2.with_biases(found)
