"""LFM2's mixtures (Liquid AI 2025): LFM2 whose feed-forwards, behind the first ones, are DeepSeek-V3's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from lutra.models import lfm2, shared_experts
from lutra.models.qwen3_moe import FEED_FORWARD
from lutra.models.weights import Names

WORDS = {
    ".mlp.gate.e_score_correction_bias": ".feed_forward.expert_bias",
    ".mlp.": ".feed_forward.",
    ".gate_proj": ".w1",
    ".up_proj": ".w3",
    ".down_proj": ".w2",
}
TINY = lfm2.TINY | {
    "model_type": "lfm2_moe",
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "num_dense_layers": 1,
    "moe_intermediate_size": 40,
}
forward = partial(lfm2.forward, feed_forward=shared_experts.feed_forward)


@dataclass(frozen=True)
class Config(lfm2.Config, shared_experts.Config):
    """LFM2's and DeepSeek's."""

    DEFAULTS: ClassVar[dict[str, Any]] = shared_experts.SIGMOID | {
        "vocab_size": 65536,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "num_dense_layers": 2,
        "moe_intermediate_size": 1792,
        "max_position_embeddings": 128000,
        "block_auto_adjust_ff_dim": False,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As those of both."""
        config = cls.DEFAULTS | config
        known = {
            "n_routed_experts": config["num_experts"],
            "first_k_dense_replace": config["num_dense_layers"],
            "layer_types": None,
        }
        return cls(**vars(shared_experts.Config.read(config | known)) | vars(lfm2.Config.read(config)))


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    whole = {role: stems for role, stems in lfm2.names(c).items() if role not in FEED_FORWARD}
    return whole | shared_experts.renamed(shared_experts.names(c), WORDS)


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole = {role: shape for role, shape in lfm2.shapes(c).items() if role not in FEED_FORWARD}
    return whole | shared_experts.shapes(c)
