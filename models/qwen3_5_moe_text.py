"""Qwen3.5's mixtures of experts (2026), text: Qwen3.5 whose feed-forwards are Qwen2-MoE's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import qwen2_moe, qwen3_5_text, qwen3_moe
from lutra.models.weights import Names

TINY = qwen3_5_text.TINY | {
    "model_type": "qwen3_5_moe_text",
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 72,
}


@dataclass(frozen=True)
class Config(qwen3_5_text.Config, qwen2_moe.Config):
    """Qwen3.5's, and that of the mixtures."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As those of both."""
        config = qwen3_5_text.Config.DEFAULTS | cls.DEFAULTS | config
        mixtures = qwen2_moe.Config.read(config | {"layer_types": None, "sliding_window": None})
        return cls(**vars(mixtures) | vars(qwen3_5_text.Config.read(config)))


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    whole = qwen3_5_text.names(c).items()
    return {role: stems for role, stems in whole if role not in qwen3_moe.FEED_FORWARD} | qwen2_moe.feed_forward_names(
        c
    )


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole = {role: shape for role, shape in qwen3_5_text.shapes(c).items() if role not in qwen3_moe.FEED_FORWARD}
    return whole | qwen2_moe.feed_forward_shapes(c)


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    return qwen3_5_text.forward(c, w, ids, state, qwen2_moe.feed_forward)
