"""dots.llm1 (rednote 2025): GLM-4.5's mixtures, whose heads all have norms, and turn as a whole."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import glm4_moe, shared_experts

names = glm4_moe.names
shapes = glm4_moe.shapes
forward = glm4_moe.forward
TINY = glm4_moe.TINY | {"model_type": "dots1", "num_key_value_heads": 4}


class Config(glm4_moe.Config):
    """dots'."""

    DEFAULTS: ClassVar[dict[str, Any]] = shared_experts.SIGMOID | {
        "norm_topk_prob": False,
        "vocab_size": 152064,
        "sliding_window": 4096,
        "max_window_layers": 62,
        "use_qk_norm": True,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> glm4_moe.Config:
        """As glm4_moe.Config.read. Releases call their way of choosing experts a scoring_func."""
        return super().read(config | {"scoring_func": "sigmoid", "use_qk_norm": True})
