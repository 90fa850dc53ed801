"""DeepSeek-V3 and R1 (2024), Moonlight: DeepSeek-V2 whose tokens choose experts by sigmoids, groups and biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import deepseek_v2, shared_experts

names = deepseek_v2.names
shapes = deepseek_v2.shapes
forward = deepseek_v2.forward
TINY = deepseek_v2.TINY | {"model_type": "deepseek_v3", "n_group": 3, "topk_group": 2}


@dataclass(frozen=True)
class Config(deepseek_v2.Config):
    """DeepSeek-V3's."""

    DEFAULTS: ClassVar[dict[str, Any]] = shared_experts.SIGMOID | {
        "vocab_size": 129280,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "rope_interleave": True,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> deepseek_v2.Config:
        """As shared_experts.Config.read."""
        config = cls.DEFAULTS | config
        return cls.latent(config | {"rope_interleaved": config["rope_interleave"]})
