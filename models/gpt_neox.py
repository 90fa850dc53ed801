"""GPT-NeoX, Pythia (Black et al. 2022, Biderman et al. 2023): attention and feed-forward side by side, two norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks, starcoder2
from lutra.runtime import ops

LAYER = "gpt_neox.layers.{}"
NAMES = starcoder2.with_biases(
    {
        "embed": ("gpt_neox.embed_in",),
        "layers.{}.attn_norm": (f"{LAYER}.input_layernorm",),
        "layers.{}.qkv": (f"{LAYER}.attention.query_key_value",),
        "layers.{}.o": (f"{LAYER}.attention.dense",),
        "layers.{}.mlp_norm": (f"{LAYER}.post_attention_layernorm",),
        "layers.{}.up": (f"{LAYER}.mlp.dense_h_to_4h",),
        "layers.{}.down": (f"{LAYER}.mlp.dense_4h_to_h",),
        "norm": ("gpt_neox.final_layer_norm",),
        "head": ("embed_out",),
    }
)
TINY = {
    "model_type": "gpt_neox",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rotary_pct": 0.5,
}


@dataclass(frozen=True)
class Config(starcoder2.Config):
    """GPT-NeoX's.

    parallel: whether attention and feed-forward see the same. norms: of a layer, one or two. by_head: whether rows of
    queries, keys and values come by heads of keys, or all queries first.
    """

    EPS: ClassVar[str] = "layer_norm_eps"
    DEFAULTS: ClassVar[dict[str, Any]] = starcoder2.Config.DEFAULTS | {
        "hidden_act": "gelu",
        "use_parallel_residual": True,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000.0,
        "qkv_by_head": True,
    }

    parallel: bool
    norms: int
    by_head: bool

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        config = {"partial_rotary_factor": config["rotary_pct"], "rope_theta": config["rotary_emb_base"]} | config
        return cls.side_by_side(config, bool(config["use_parallel_residual"]), 2, bool(config["qkv_by_head"]))

    @classmethod
    def side_by_side(cls, config: dict[str, Any], parallel: bool, norms: int, by_head: bool) -> Config:
        """The rest of it."""
        c = starcoder2.Config.read(config | {starcoder2.Config.EPS: config.get(cls.EPS)})
        return cls(**vars(c), parallel=parallel, norms=norms, by_head=by_head)

    @property
    def order(self) -> np.ndarray:
        """Where attention's q | k | v lie in what layers project."""
        columns = np.arange((self.heads + 2 * self.kv_heads) * self.head_dim, dtype=np.int32)
        groups = columns.reshape(self.kv_heads, -1, self.head_dim)
        return np.concatenate([part.ravel() for part in (groups[:, :-2], groups[:, -2], groups[:, -1])])


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    found = starcoder2.shapes(c)
    return found if c.norms == 2 else {role: shape for role, shape in found.items() if role != "layers.{}.mlp_norm"}


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = c.norm(x, layer.attn_norm)
        qkv = ops.linear(h, layer.qkv)
        qkv = ops.take_columns(qkv, c.order) if c.by_head else qkv
        seen = ops.add(x, ops.linear(blocks.attend(c, qkv, angles, state, i), layer.o))
        if c.norms == 2:
            h = c.norm(x if c.parallel else seen, layer.mlp_norm)
        x = ops.add(seen, blocks.ungated(c, layer, h))
    return ops.linear(c.norm(ops.tail(x, state), w.norm), w.head)
