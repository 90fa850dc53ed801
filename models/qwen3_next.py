"""Qwen3-Next (2025): Qwen3.5's mixtures before there was Qwen3.5, with projections joined by heads of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import qwen3_5_moe_text
from lutra.models.qwen3_5_text import GATES, QKVZ
from lutra.models.weights import Names

TINY = qwen3_5_moe_text.TINY | {"model_type": "qwen3_next", "norm_topk_prob": True, "mlp_only_layers": [1]}
shapes = qwen3_5_moe_text.shapes
forward = qwen3_5_moe_text.forward


@dataclass(frozen=True)
class Config(qwen3_5_moe_text.Config):
    """Qwen3.5-MoE's."""

    DEFAULTS: ClassVar[dict[str, Any]] = qwen3_5_moe_text.Config.DEFAULTS | {
        "vocab_size": 151936,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        QKVZ: True,
        GATES: True,
    }


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    found, layer = dict(qwen3_5_moe_text.names(c)), "model.layers.{}.linear_attn.in_proj_{}"
    for i in (i for i in range(c.layers) if i not in c.attending):
        if c.qkvz_order is not None:
            found[f"layers.{i}.qkvz"] = (layer.format(i, "qkvz"),)
        if c.gates_order is not None:
            found[f"layers.{i}.gates"] = (layer.format(i, "ba"),)
    return found
