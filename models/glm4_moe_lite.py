"""GLM-4.7-Flash (Zhipu 2026): DeepSeek-V3, smaller."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import deepseek_v2, deepseek_v3
from lutra.runtime.errors import UnsupportedModelError

names = deepseek_v3.names
shapes = deepseek_v3.shapes
forward = deepseek_v3.forward
TINY = deepseek_v3.TINY | {"model_type": "glm4_moe_lite", "n_group": 1, "topk_group": 1, "v_head_dim": 24}


class Config(deepseek_v3.Config):
    """GLM's."""

    DEFAULTS: ClassVar[dict[str, Any]] = deepseek_v3.Config.DEFAULTS | {
        "vocab_size": 154880,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1536,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.8,
        "n_group": 1,
        "topk_group": 1,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> deepseek_v2.Config:
        """As shared_experts.Config.read. The layers that are mixtures may be listed: as the last ones."""
        if isinstance(kinds := config.get("mlp_layer_types"), list):
            dense = kinds.index("sparse") if "sparse" in kinds else len(kinds)
            if kinds != ["dense"] * dense + ["sparse"] * (len(kinds) - dense):
                raise UnsupportedModelError("lutra runs GLM's mixtures in all layers but the first ones")
            config = config | {"first_k_dense_replace": dense}
        return super().read(config)
