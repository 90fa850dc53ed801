"""ERNIE 4.5's mixtures (Baidu 2025): a softmax weighs experts, and biases choose them, too; some are shared."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, ernie4_5, glm4_moe, shared_experts
from lutra.models.weights import Names

WORDS = {".mlp.gate.e_score": ".mlp.moe_statics.e_score"}
shapes = glm4_moe.shapes
forward = glm4_moe.forward
TINY = ernie4_5.TINY | {
    "model_type": "ernie4_5_moe",
    "num_hidden_layers": 3,
    "moe_num_experts": 6,
    "moe_k": 3,
    "moe_num_shared_experts": 2,
    "moe_intermediate_size": 40,
}


class Config(glm4_moe.Config):
    """ERNIE's."""

    DEFAULTS: ClassVar[dict[str, Any]] = ernie4_5.Config.DEFAULTS | {
        "head_dim": None,
        "vocab_size": 103424,
        "max_position_embeddings": 131072,
        "moe_num_experts": 64,
        "moe_k": 6,
        "moe_num_shared_experts": 2,
        "moe_intermediate_size": 1536,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
        "norm_topk_prob": True,
        "use_expert_bias": True,
        "use_qk_norm": False,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> glm4_moe.Config:
        """As shared_experts.Config.read."""
        config = cls.DEFAULTS | config
        layers, step = blocks.depth(config), blocks.size(config, "moe_layer_interval")
        first = blocks.size(config, "moe_layer_start_index") if config["moe_layer_start_index"] else 0
        last = layers - 1
        if config["moe_layer_end_index"] not in (0, -1):
            last = blocks.size(config, "moe_layer_end_index")
        known = {
            "n_routed_experts": config["moe_num_experts"],
            "num_experts_per_tok": config["moe_k"],
            "n_shared_experts": config["moe_num_shared_experts"],
            "mlp_only_layers": [i for i in range(layers) if (i + 1) % step or not first <= i <= last],
        }
        return super().read(config | known)


def names(c: glm4_moe.Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    return shared_experts.renamed(glm4_moe.names(c), WORDS)
