"""DeepSeek-V2 (2024): keys and values made of a short vector that all heads share; mixtures with shared experts.

Of a head's query and key some columns turn, and those of the key are the same for all heads. The cache holds what heads
see, not the short vector: values are filled up with zeros to the width of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks, llama, qwen3_moe
from lutra.models.weights import Names
from lutra.runtime import ops
from lutra.runtime.errors import UnsupportedModelError

LATENT_EPS = 1e-6  # of the norms of short vectors
ATTENTION, MLP = "model.layers.{}.self_attn", "model.layers.{}.mlp"
TINY = llama.TINY | {
    "model_type": "deepseek_v2",
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 40,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 40,
    "routed_scaling_factor": 2.0,
}


@dataclass(frozen=True)
class Config(qwen3_moe.Config):
    """DeepSeek's.

    query_rank, rank: widths of the short vectors that queries (0: there is none), and keys and values, are made of.
    turning: columns of a head's query and key that turn, ``head_dim`` has all; value_dim: of its value. score_scale: of
    scores. share_scale: of what the chosen experts give. shared_intermediate: width of the shared ones, 0: there are
    none.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "vocab_size": 102400,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0,
        "rope_interleaved": True,
    }

    query_rank: int
    rank: int
    turning: int
    value_dim: int
    score_scale: float
    share_scale: float
    shared_intermediate: int

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As qwen3_moe.Config.read."""
        config = cls.DEFAULTS | config
        _refuse(config)
        turning, value_dim = blocks.size(config, "qk_rope_head_dim"), blocks.size(config, "v_head_dim")
        head_dim = blocks.size(config, "qk_nope_head_dim") + turning
        if value_dim > head_dim:
            raise UnsupportedModelError(f"lutra has no values of {value_dim} columns beside keys of {head_dim}")
        dense = blocks.size(config, "first_k_dense_replace") if config["first_k_dense_replace"] else 0
        known = {
            "head_dim": head_dim,
            "num_key_value_heads": None,
            "rope_scaling": None,
            "partial_rotary_factor": None,
            "num_local_experts": config["n_routed_experts"],
            "num_experts": config["n_routed_experts"],
            "mlp_only_layers": list(range(min(dense, blocks.depth(config)))),
            "norm_topk_prob": False,
        }
        c, rope = qwen3_moe.Config.read(config | known), blocks.rope_of(config | {"partial_rotary_factor": 1}, turning)
        shared = blocks.size(config, "n_shared_experts") if config["n_shared_experts"] else 0
        return cls(
            **vars(c) | {"frequency": rope.frequency, "magnitude": rope.magnitude},
            query_rank=blocks.size(config, "q_lora_rank") if config["q_lora_rank"] else 0,
            rank=blocks.size(config, "kv_lora_rank"),
            turning=turning,
            value_dim=value_dim,
            score_scale=head_dim**-0.5 * _sharpened(config.get("rope_scaling") or {}),
            share_scale=blocks.factor(config, "routed_scaling_factor"),
            shared_intermediate=shared * c.expert_intermediate,
        )

    @property
    def order(self) -> np.ndarray:
        """Where attention's q | k | v lie in what layers project: q | keys and values of all heads | what turns."""
        heads, plain = self.heads, self.head_dim - self.turning
        q = np.arange(heads * self.head_dim).reshape(heads, -1)
        kv = q.size + np.arange(heads * (plain + self.value_dim)).reshape(heads, -1)
        turns = np.tile(q.size + kv.size + np.arange(self.turning), (heads, 1))
        nothing = np.full((heads, self.head_dim - self.value_dim), -1)
        parts = [q[:, plain:], q[:, :plain]], [turns, kv[:, :plain]], [kv[:, plain:], nothing]
        return np.concatenate([np.concatenate(part, axis=1).ravel() for part in parts]).astype(np.int32)

    @property
    def values(self) -> np.ndarray:
        """Where the heads' values lie in what attention gives."""
        columns = np.arange(self.heads * self.head_dim, dtype=np.int32).reshape(self.heads, -1)
        return np.ascontiguousarray(columns[:, : self.value_dim]).ravel()


def _refuse(config: dict[str, Any]) -> None:
    if config.get("topk_method", "greedy") != "greedy":
        raise UnsupportedModelError(f"lutra does not choose experts by {config['topk_method']!r:.40} (topk_method)")
    if config.get("scoring_func", "softmax") != "softmax" or config.get("moe_layer_freq", 1) != 1:
        raise UnsupportedModelError("lutra runs DeepSeek's mixtures with softmax, in all layers but the first ones")


def _sharpened(scaling: dict[str, Any]) -> float:
    """The factor of scores that goes with YaRN's longer contexts."""
    weight = scaling.get("mscale_all_dim") or 0.0
    return blocks.yarn_magnitude(blocks.factor(scaling, "factor"), weight) ** 2 if weight else 1.0


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    kept = ("embed", "layers.{}.attn_norm", "layers.{}.o", "layers.{}.mlp_norm", "norm", "head")
    found: dict[str, Any] = {role: blocks.LLAMA_NAMES[role] for role in kept} | {
        "layers.{}.kv_a": (f"{ATTENTION}.kv_a_proj_with_mqa",),
        "layers.{}.kv_norm": (f"{ATTENTION}.kv_a_layernorm",),
        "layers.{}.kv_b": (f"{ATTENTION}.kv_b_proj",),
    }
    if c.query_rank:
        found["layers.{}.q_a"] = (f"{ATTENTION}.q_a_proj",)
        found["layers.{}.query_norm"] = (f"{ATTENTION}.q_a_layernorm",)
    found["layers.{}.q"] = (f"{ATTENTION}.{'q_b_proj' if c.query_rank else 'q_proj'}",)
    for i in c.mixtures if c.shared_intermediate else ():
        shared = f"{MLP.format(i)}.shared_experts"
        found[f"layers.{i}.shared_gate_up"] = (f"{shared}.gate_proj", f"{shared}.up_proj")
        found[f"layers.{i}.shared_down"] = (f"{shared}.down_proj",)
    return found | qwen3_moe.feed_forward_names(c)


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole, heads = blocks.shapes(c), c.heads
    found = {role: whole[role] for role in names(c) if role in whole} | {
        "layers.{}.o": (c.hidden, heads * c.value_dim),
        "layers.{}.kv_a": (c.rank + c.turning, c.hidden),
        "layers.{}.kv_norm": (c.rank,),
        "layers.{}.kv_b": (heads * (c.head_dim - c.turning + c.value_dim), c.rank),
        "layers.{}.q": (heads * c.head_dim, c.query_rank or c.hidden),
    }
    if c.query_rank:
        found |= {"layers.{}.q_a": (c.query_rank, c.hidden), "layers.{}.query_norm": (c.query_rank,)}
    for i in c.mixtures if c.shared_intermediate else ():
        found[f"layers.{i}.shared_gate_up"] = (2 * c.shared_intermediate, c.hidden)
        found[f"layers.{i}.shared_down"] = (c.hidden, c.shared_intermediate)
    return found | qwen3_moe.feed_forward_shapes(c)


def attend(c: Config, layer: Any, x: Any, angles: Any, state: Any, i: int) -> Any:
    """The i-th layer's attention."""
    queries = ops.rms_norm(ops.linear(x, layer.q_a), layer.query_norm, eps=LATENT_EPS) if c.query_rank else x
    latent, turns = ops.split(ops.linear(x, layer.kv_a), c.rank, c.turning)
    kv = ops.linear(ops.rms_norm(latent, layer.kv_norm, eps=LATENT_EPS), layer.kv_b)
    qkv = ops.take_columns(ops.concat(ops.linear(queries, layer.q), kv, turns), c.order)
    h = blocks.attend(c, qkv, angles, state, i, scale=c.score_scale)
    return ops.linear(ops.take_columns(h, c.values), layer.o)


def feed_forward(c: Config, layer: Any, i: int, x: Any) -> Any:
    """What the i-th layer adds behind its attention."""
    if i not in c.mixtures:
        return blocks.feed_forward(c, layer, x)
    y = ops.scale(qwen3_moe.mixture(c, layer, x), factor=c.share_scale)
    if not c.shared_intermediate:
        return y
    return ops.add(y, ops.linear(blocks.gated(c, ops.linear(x, layer.shared_gate_up)), layer.shared_down))


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        x = ops.add(x, attend(c, layer, ops.rms_norm(x, layer.attn_norm, eps=c.eps), angles, state, i))
        x = ops.add(x, feed_forward(c, layer, i, ops.rms_norm(x, layer.mlp_norm, eps=c.eps)))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)
