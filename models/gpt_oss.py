"""gpt-oss (OpenAI 2025): a mixture of experts in every layer, biases everywhere, attention with sinks.

Every other layer has a sliding window. An expert's gate and up are clamped, and 1 is added to what is up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import blocks, mixtral, qwen3_moe
from lutra.models.weights import Names
from lutra.runtime import ops

MLP = "model.layers.{}.mlp"
TINY = mixtral.TINY | {
    "model_type": "gpt_oss",
    "sliding_window": 5,
    "head_dim": 24,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 16,
    },
}


@dataclass(frozen=True)
class Config(qwen3_moe.Config):
    """gpt-oss's. alpha: of the gates' sigmoid. limit: of gates, and of what is up."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "num_hidden_layers": 36,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "head_dim": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "sliding_window_pattern": 2,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "norm_topk_prob": True,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    }

    alpha: float
    limit: float

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As qwen3_moe.Config.read; an expert has the width that is said of all."""
        config = cls.DEFAULTS | config
        width = {"moe_intermediate_size": config["intermediate_size"], "use_sliding_window": True}
        return cls(
            **vars(qwen3_moe.Config.read(config | width)),
            alpha=blocks.factor(config, "swiglu_alpha"),
            limit=blocks.factor(config, "swiglu_limit"),
        )


def names(c: Config) -> Names:
    """Role -> tensors."""
    return mixtral.names_in(c, MLP, ("gate_proj", "up_proj", "down_proj")) | {
        "layers.{}.router": (f"{MLP}.router",),
        "layers.{}.sinks": ("model.layers.{}.self_attn.sinks",),
    }


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    return mixtral.shapes(c) | {"layers.{}.sinks": (c.heads,)}


def gated(c: Config, gate_up: Any) -> Any:
    """What an expert makes of its gate and of what is up."""
    gate, up = ops.split(gate_up, c.expert_intermediate, c.expert_intermediate)
    return ops.clamped_swiglu(gate, up, alpha=c.alpha, limit=c.limit)


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i, sinks=layer.sinks)
        x = ops.add(x, ops.linear(h, layer.o))
        h = ops.rms_norm(x, layer.mlp_norm, eps=c.eps)
        x = ops.add(x, qwen3_moe.mixture(c, layer, h, gated))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)
