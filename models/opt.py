"""OPT (Zhang et al. 2022): layer norms and biases, learned positions, one ReLU between two matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks
from lutra.runtime import ops
from lutra.runtime.errors import UnsupportedModelError

OFFSET = 2  # rows of the table of positions that no position has
EPS = 1e-5
TINY = {
    "model_type": "opt",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "word_embed_proj_dim": 40,
    "num_attention_heads": 4,
    "ffn_dim": 160,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Config(blocks.Config):
    """An OPT's.

    embed_dim: columns of the embedding. norm_first: whether norms come before each block, or after its sum. norm_last:
    whether there is one behind all.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "ffn_dim": 3072,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
    }

    embed_dim: int
    norm_first: bool
    norm_last: bool

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read."""
        config = cls.DEFAULTS | config
        if config.get("activation_function", "relu") != "relu":
            raise UnsupportedModelError(f"lutra runs OPT with relu, not {config['activation_function']!r:.40}")
        if not config.get("layer_norm_elementwise_affine", True):
            raise UnsupportedModelError("lutra has no layer norms without weights (layer_norm_elementwise_affine)")
        fixed = {"intermediate_size": config["ffn_dim"], "rms_norm_eps": EPS, "num_key_value_heads": None}
        c = blocks.Config.read(config | fixed)
        norm_first = bool(config.get("do_layer_norm_before", True))
        return cls(
            **vars(c) | {"frequency": np.zeros(0, np.float32)},  # nothing is rotated
            embed_dim=blocks.size(config, "word_embed_proj_dim", c.hidden),
            norm_first=norm_first,
            norm_last=norm_first and not config.get("_remove_final_layer_norm", False),
        )


def names(c: Config) -> dict[str, tuple[str, ...]]:
    """Role -> tensors. A norm's weight and bias are one vector."""
    layer = "model.decoder.layers.{}"
    found = {
        "embed": ("model.decoder.embed_tokens",),
        "positions": ("model.decoder.embed_positions",),
        "layers.{}.attn_norm": _norm(f"{layer}.self_attn_layer_norm"),
        "layers.{}.qkv": tuple(f"{layer}.self_attn.{x}_proj" for x in "qkv"),
        "layers.{}.o": (f"{layer}.self_attn.out_proj",),
        "layers.{}.mlp_norm": _norm(f"{layer}.final_layer_norm"),
        "layers.{}.up": (f"{layer}.fc1",),
        "layers.{}.down": (f"{layer}.fc2",),
        "head": ("lm_head",),
    }
    if c.norm_last:
        found["norm"] = _norm("model.decoder.final_layer_norm")
    if c.embed_dim != c.hidden:
        found |= {x: (f"model.decoder.{x}",) for x in ("project_in", "project_out")}
    return found


def _norm(stem: str) -> tuple[str, ...]:
    return stem, f"{stem}.bias"


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    norm = (2 * c.hidden,)
    found = {
        "embed": (c.vocab, c.embed_dim),
        "positions": (c.n_ctx + OFFSET, c.hidden),
        "layers.{}.attn_norm": norm,
        "layers.{}.qkv": (3 * c.hidden, c.hidden),
        "layers.{}.o": (c.hidden, c.hidden),
        "layers.{}.mlp_norm": norm,
        "layers.{}.up": (c.intermediate, c.hidden),
        "layers.{}.down": (c.hidden, c.intermediate),
    }
    if c.norm_last:
        found["norm"] = norm
    if c.embed_dim != c.hidden:
        found |= {"project_in": (c.hidden, c.embed_dim), "project_out": (c.embed_dim, c.hidden)}
    if not c.tied:
        found["head"] = (c.vocab, c.embed_dim)
    return found


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    x = ops.embed(ids, w.embed)
    if c.embed_dim != c.hidden:
        x = ops.linear(x, w.project_in)
    x = ops.add(x, ops.embed(ops.positions(ids, state, offset=OFFSET), w.positions))
    for i, layer in enumerate(w.layers):
        h = ops.layer_norm(x, layer.attn_norm, eps=EPS) if c.norm_first else x
        h = blocks.attend(c, ops.linear(h, layer.qkv), None, state, i)
        x = ops.add(x, ops.linear(h, layer.o))
        x = x if c.norm_first else ops.layer_norm(x, layer.attn_norm, eps=EPS)
        h = ops.layer_norm(x, layer.mlp_norm, eps=EPS) if c.norm_first else x
        x = ops.add(x, ops.linear(ops.relu(ops.linear(h, layer.up)), layer.down))
        x = x if c.norm_first else ops.layer_norm(x, layer.mlp_norm, eps=EPS)
    x = ops.tail(x, state)
    if c.norm_last:
        x = ops.layer_norm(x, w.norm, eps=EPS)
    if c.embed_dim != c.hidden:
        x = ops.linear(x, w.project_out)
    return ops.linear(x, w.head)
