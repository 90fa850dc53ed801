"""Qwen's first mixtures of experts (Qwen1.5-MoE, Qwen2-57B-A14B; Yang et al. 2024): one expert is shared by all tokens.

What it gives is scaled by a sigmoid, and added to what those give that a token has chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import blocks, qwen3_moe
from lutra.models.weights import Names
from lutra.runtime import ops

TINY = {key: value for key, value in qwen3_moe.TINY.items() if key != "head_dim"} | {
    "model_type": "qwen2_moe",
    "norm_topk_prob": False,
    "shared_expert_intermediate_size": 72,
}
MLP = "model.layers.{}.mlp"


@dataclass(frozen=True)
class Config(qwen3_moe.Config):
    """Qwen2-MoE's. shared_intermediate: width of the shared expert."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "use_sliding_window": False,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    }

    shared_intermediate: int

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As qwen3_moe.Config.read."""
        config = cls.DEFAULTS | config
        shared = blocks.size(config, "shared_expert_intermediate_size")
        return cls(**vars(qwen3_moe.Config.read(config)), shared_intermediate=shared)


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    whole = blocks.LLAMA_NAMES.items()
    return {role: stems for role, stems in whole if role not in qwen3_moe.FEED_FORWARD} | feed_forward_names(c)


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole = blocks.shapes(c).items()
    return {role: shape for role, shape in whole if role not in qwen3_moe.FEED_FORWARD} | feed_forward_shapes(c)


def feed_forward_names(c: Config) -> dict[str, Any]:
    """Role -> tensors of what is a mixture in some layers."""
    found = qwen3_moe.feed_forward_names(c)
    for i in c.mixtures:
        mlp = MLP.format(i)
        found[f"layers.{i}.shared_gate"] = (f"{mlp}.shared_expert_gate",)
        found[f"layers.{i}.shared_gate_up"] = tuple(f"{mlp}.shared_expert.{x}_proj" for x in ("gate", "up"))
        found[f"layers.{i}.shared_down"] = (f"{mlp}.shared_expert.down_proj",)
    return found


def feed_forward_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shapes of these weights."""
    found = qwen3_moe.feed_forward_shapes(c)
    for i in c.mixtures:
        found[f"layers.{i}.shared_gate"] = (1, c.hidden)
        found[f"layers.{i}.shared_gate_up"] = (2 * c.shared_intermediate, c.hidden)
        found[f"layers.{i}.shared_down"] = (c.hidden, c.shared_intermediate)
    return found


def feed_forward(c: Config, layer: Any, i: int, x: Any) -> Any:
    """What the i-th layer adds behind its attention."""
    chosen = qwen3_moe.feed_forward(c, layer, i, x)
    if i not in c.mixtures:
        return chosen
    shared = qwen3_moe.shared(c, layer, x)
    return ops.add(chosen, ops.scale_rows(shared, ops.sigmoid(ops.linear(x, layer.shared_gate))))


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        x = ops.add(x, ops.linear(blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i), layer.o))
        x = ops.add(x, feed_forward(c, layer, i, ops.rms_norm(x, layer.mlp_norm, eps=c.eps)))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)
