"""What several architectures share: reading a configuration, rotary frequencies, attention, feed-forward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.runtime import ops
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError

__all__ = ["LLAMA_NAMES", "Config", "attend", "gated", "shapes"]

# Role -> the checkpoint tensors whose rows make it up. {} is the layer.
LLAMA_NAMES: dict[str, tuple[str, ...]] = {
    "embed": ("model.embed_tokens",),
    "layers.{}.attn_norm": ("model.layers.{}.input_layernorm",),
    "layers.{}.qkv": tuple(f"model.layers.{{}}.self_attn.{x}_proj" for x in "qkv"),
    "layers.{}.o": ("model.layers.{}.self_attn.o_proj",),
    "layers.{}.mlp_norm": ("model.layers.{}.post_attention_layernorm",),
    "layers.{}.gate_up": tuple(f"model.layers.{{}}.mlp.{x}_proj" for x in ("gate", "up")),
    "layers.{}.down": ("model.layers.{}.mlp.down_proj",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}

HEAD_DIM = 8192  # at most, in native/kernels/attention.h
ACTIVATIONS = {"silu": ops.silu_mul, "swish": ops.silu_mul, "relu2": ops.relu2_mul}


@dataclass(frozen=True)
class Config:
    """A decoder's shape. frequency: float32 [head_dim / 2], the rotary angle per position of each pair."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    n_ctx: int
    eps: float
    activation: str
    frequency: np.ndarray
    rope_interleaved: bool
    tied: bool

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """Read a Hugging Face configuration as ``open_checkpoint`` normalizes it.

        Raises CorruptModelError for values that make no model, UnsupportedModelError for ones lutra cannot run.
        """
        heads = _size(config, "num_attention_heads")
        kv_heads = _size(config, "num_key_value_heads", heads)
        hidden = _size(config, "hidden_size")
        head_dim = _size(config, "head_dim", hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise CorruptModelError(f"{heads} heads of {head_dim} cannot share {kv_heads} key-value heads")
        if head_dim > HEAD_DIM:
            raise UnsupportedModelError(f"lutra has no attention for heads of {head_dim}", f"it goes up to {HEAD_DIM}")
        activation = config.get("hidden_act", "silu")
        if activation not in ACTIVATIONS:
            raise UnsupportedModelError(f"lutra has no activation {activation!r}", f"it has {', '.join(ACTIVATIONS)}")
        return cls(
            layers=_size(config, "num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=_size(config, "intermediate_size"),
            vocab=_size(config, "vocab_size"),
            n_ctx=_size(config, "max_position_embeddings", 2048),
            eps=float(config.get("rms_norm_eps", 1e-6)),
            activation=activation,
            frequency=rope_frequency(config, head_dim),
            rope_interleaved=bool(config.get("rope_interleaved", False)),
            tied=bool(config.get("tie_word_embeddings", False)),
        )


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight in a Llama-like model."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    head = {} if c.tied else {"head": (c.vocab, c.hidden)}
    return {
        "embed": (c.vocab, c.hidden),
        "layers.{}.attn_norm": (c.hidden,),
        "layers.{}.qkv": (q + 2 * kv, c.hidden),
        "layers.{}.o": (c.hidden, q),
        "layers.{}.mlp_norm": (c.hidden,),
        "layers.{}.gate_up": (2 * c.intermediate, c.hidden),
        "layers.{}.down": (c.hidden, c.intermediate),
        "norm": (c.hidden,),
        **head,
    }


def _size(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise CorruptModelError(f"config.json: {key} is {value!r}, which is no size")
    return value


def rope_frequency(config: dict[str, Any], head_dim: int) -> np.ndarray:
    """theta^(-2j / head_dim) for j < head_dim / 2, scaled as ``rope_scaling`` says; float32."""
    theta, scaling = float(config.get("rope_theta", 10000.0)), config.get("rope_scaling") or {}
    frequency = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    frequency = frequency.astype(np.float32)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequency
    if kind == "linear":
        return frequency / np.float32(scaling["factor"])
    if kind == "llama3":
        return _llama3_frequency(frequency, scaling)
    raise UnsupportedModelError(f"lutra does not know rope_type {kind!r}", "it knows default, linear and llama3")


def _llama3_frequency(frequency: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """Llama 3.1's context extension: long wavelengths slowed by ``factor``, short ones kept, a ramp between."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(scaling["original_max_position_embeddings"]) * frequency / (2 * math.pi)
    ramp = np.clip((turns - low) / (high - low), 0, 1)
    return ((1 - ramp) * frequency / factor + ramp * frequency).astype(np.float32)


def attend(c: Config, qkv: Any, angles: Any, state: Any, layer: int) -> Any:
    """Rotate queries and keys, append to the cache, attend. qkv: [rows, q | k | v] -> [rows, heads * head_dim]."""
    q, k, v = ops.split(qkv, c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
    q = ops.rope(q, angles, head_dim=c.head_dim, interleaved=c.rope_interleaved)
    k = ops.rope(k, angles, head_dim=c.head_dim, interleaved=c.rope_interleaved)
    ops.kv_append(k, v, state, layer=layer, kv_heads=c.kv_heads, head_dim=c.head_dim)
    return ops.attention(
        q, state, layer=layer, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, scale=c.head_dim**-0.5
    )


def gated(c: Config, gate_up: Any) -> Any:
    """activation(gate) * up; gate_up: [rows, gate | up]."""
    gate, up = ops.split(gate_up, c.intermediate, c.intermediate)
    return ACTIVATIONS[c.activation](gate, up)
