"""LFM2 (Liquid AI 2025): most layers pass a short gated convolution over the latest tokens, the others attend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks, llama
from lutra.models.weights import Names
from lutra.runtime import ops
from lutra.runtime.errors import UnsupportedModelError
from lutra.runtime.formats import to_float32

LAYER = "model.layers.{}"
EVERY: dict[str, tuple[str, ...]] = {
    "embed": ("model.embed_tokens",),
    "layers.{}.attn_norm": (f"{LAYER}.operator_norm",),
    "layers.{}.mlp_norm": (f"{LAYER}.ffn_norm",),
    "layers.{}.gate_up": (f"{LAYER}.feed_forward.w1", f"{LAYER}.feed_forward.w3"),
    "layers.{}.down": (f"{LAYER}.feed_forward.w2",),
    "norm": ("model.embedding_norm",),
    "head": ("lm_head",),
}
ATTENDING: dict[str, tuple[str, ...]] = {
    "layers.{}.qkv": tuple(f"{LAYER}.self_attn.{x}_proj" for x in "qkv"),
    "layers.{}.q_norm": (f"{LAYER}.self_attn.q_layernorm",),
    "layers.{}.k_norm": (f"{LAYER}.self_attn.k_layernorm",),
    "layers.{}.o": (f"{LAYER}.self_attn.out_proj",),
}
CONVOLVING: dict[str, tuple[str, ...]] = {
    "layers.{}.gates_in": (f"{LAYER}.conv.in_proj",),
    "layers.{}.conv": (f"{LAYER}.conv.conv",),
    "layers.{}.o": (f"{LAYER}.conv.out_proj",),
}
TINY = llama.TINY | {
    "model_type": "lfm2",
    "num_hidden_layers": 3,
    "layer_types": ["conv", "full_attention", "conv"],
    "block_auto_adjust_ff_dim": False,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Config(blocks.Config):
    """LFM2's: layers that do not attend convolve. taps: of the convolution."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "rope_theta": 1e6,
        "norm_eps": 1e-5,
        "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
    }

    taps: int

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        if config.get("conv_bias"):
            raise UnsupportedModelError("lutra has no convolutions with biases (conv_bias)")
        known = {"layer_types": None, "rms_norm_eps": config["norm_eps"], "intermediate_size": _width(config)}
        c = blocks.Config.read(config | known)
        attending = {"attending": _attending(config, c.layers)}
        return cls(**vars(c) | attending, taps=blocks.size(config, "conv_L_cache"))

    @property
    def remembered(self) -> int:
        """Floats that a layer which convolves remembers."""
        return (self.taps - 1) * self.hidden

    @property
    def recurrent_floats(self) -> int:
        """Floats that recurrent layers remember."""
        return (self.layers - len(self.attending)) * self.remembered


def _width(config: dict[str, Any]) -> int:
    """Of the feed-forwards: two thirds of what is said, times a factor, up to a multiple."""
    width = blocks.size(config, "block_ff_dim" if config.get("block_ff_dim") else "intermediate_size")
    if not config["block_auto_adjust_ff_dim"]:
        return width
    width, step = int(2 * width / 3), blocks.size(config, "block_multiple_of")
    return -(-int(blocks.factor(config, "block_ffn_dim_multiplier") * width) // step) * step


def _attending(config: dict[str, Any], layers: int) -> tuple[int, ...]:
    kinds, listed = config.get("layer_types"), config.get("full_attn_idxs")
    if kinds is None and isinstance(listed, list):
        kinds = ["full_attention" if i in listed else "conv" for i in range(layers)]
    kinds = blocks.layer_kinds(kinds, layers, ("conv", "full_attention"))
    return tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    found = dict(EVERY)
    for i in range(c.layers):
        for role, stems in (ATTENDING if i in c.attending else CONVOLVING).items():
            found[role.format(i)] = tuple(stem.format(i) for stem in stems)
    return found


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole = blocks.shapes(c) | {"layers.{}.q_norm": (c.head_dim,), "layers.{}.k_norm": (c.head_dim,)}
    convolving = {
        "layers.{}.gates_in": (3 * c.hidden, c.hidden),
        "layers.{}.conv": (c.hidden, c.taps),
        "layers.{}.o": (c.hidden, c.hidden),
    }
    found = {role: shape for role, shape in whole.items() if role not in ATTENDING}
    for i in range(c.layers):
        own = {role: whole[role] for role in ATTENDING} if i in c.attending else convolving
        found |= {role.format(i): shape for role, shape in own.items()}
    return found


def convolve(c: Config, layer: Any, x: Any, state: Any, at: int) -> Any:
    """A gate before, a gate behind. at: where its floats are in the session's memory."""
    before, behind, x = ops.split(ops.linear(x, layer.gates_in), c.hidden, c.hidden, c.hidden)
    weight = np.ascontiguousarray(to_float32(layer.conv.matrix).T)
    h = ops.short_conv(ops.mul(before, x), weight, state, at=at, taps=c.taps, silu=False)
    return ops.mul(behind, h)


def forward(c: Config, w: Any, ids: Any, state: Any, feed_forward: Any = blocks.feed_forward) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]. feed_forward: what the i-th layer adds behind the rest."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    convolving = 0
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        if i in c.attending:
            norms = layer.q_norm, layer.k_norm
            h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i, norms)
        else:
            h = convolve(c, layer, h, state, convolving * c.remembered)
            convolving += 1
        x = ops.add(x, ops.linear(h, layer.o))
        x = ops.add(x, feed_forward(c, layer, i, ops.rms_norm(x, layer.mlp_norm, eps=c.eps)))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)
