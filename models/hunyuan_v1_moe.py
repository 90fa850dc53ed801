"""Hunyuan-A13B (Tencent 2025): Hunyuan whose feed-forwards are mixtures, with one expert that all tokens share."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from lutra.models import hunyuan_v1_dense, shared_experts
from lutra.models.qwen3_moe import FEED_FORWARD
from lutra.models.weights import Names
from lutra.runtime.errors import UnsupportedModelError

WORDS = {".mlp.gate": ".mlp.gate.wg", ".mlp.shared_experts": ".mlp.shared_mlp"}
PER_LAYER = ("num_experts", "moe_topk", "num_shared_expert", "moe_intermediate_size")
TINY = hunyuan_v1_dense.TINY | {
    "model_type": "hunyuan_v1_moe",
    "num_experts": 6,
    "moe_topk": [3, 3],
    "intermediate_size": 40,
}
forward = partial(hunyuan_v1_dense.forward, feed_forward=shared_experts.feed_forward)


class Config(shared_experts.Config):
    """Hunyuan's."""

    DEFAULTS: ClassVar[dict[str, Any]] = hunyuan_v1_dense.Config.DEFAULTS | {
        "moe_topk": 1,
        "num_shared_expert": 1,
        "norm_topk_prob": True,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> shared_experts.Config:
        """As shared_experts.Config.read; an expert has the width that is said of all."""
        config = cls.DEFAULTS | config
        config |= {key: _same(config, key) for key in PER_LAYER if key in config}
        known = {
            "n_routed_experts": config.get("num_experts"),
            "num_experts_per_tok": config["moe_topk"],
            "n_shared_experts": config["num_shared_expert"],
            "moe_intermediate_size": config.get("intermediate_size"),
        }
        return super().read(hunyuan_v1_dense.with_larger_theta(config | known))


def _same(config: dict[str, Any], key: str) -> Any:
    """A number that may be said for each layer."""
    value = config[key]
    if not isinstance(value, list) or not value:
        return value
    if any(each != value[0] for each in value):
        raise UnsupportedModelError(f"lutra runs no Hunyuan whose {key} differs between layers")
    return value[0]


def names(c: shared_experts.Config) -> Names:
    """Role -> tensors."""
    whole = {role: stems for role, stems in hunyuan_v1_dense.NAMES.items() if role not in FEED_FORWARD}
    return whole | shared_experts.renamed(shared_experts.names(c), WORDS)


def shapes(c: shared_experts.Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole = {role: shape for role, shape in hunyuan_v1_dense.shapes(c).items() if role not in FEED_FORWARD}
    return whole | shared_experts.shapes(c)
