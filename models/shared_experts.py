"""DeepSeek's mixtures (Dai et al. 2024): behind the first layers, with some experts that all tokens share.

No architecture, but what several have in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import blocks, qwen3_moe
from lutra.models.weights import Names
from lutra.runtime import ops

SIGMOID: dict[str, Any] = {
    "scoring_func": "sigmoid",
    "use_expert_bias": True,
    "norm_topk_prob": True,
}  # since V3 (2024)


@dataclass(frozen=True)
class Config(qwen3_moe.Config):
    """Qwen3-MoE's, in DeepSeek's words.

    share_scale: of what the chosen experts give. shared_intermediate: width of the shared ones, 0: there are none.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {}

    share_scale: float
    shared_intermediate: int

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As qwen3_moe.Config.read."""
        config = cls.DEFAULTS | config
        dense = blocks.size(config, "first_k_dense_replace") if config.get("first_k_dense_replace") else 0
        known = {
            "num_local_experts": config["n_routed_experts"],
            "num_experts": config["n_routed_experts"],
            "mlp_only_layers": config.get("mlp_only_layers") or list(range(min(dense, blocks.depth(config)))),
        }
        c = qwen3_moe.Config.read(config | known)
        shared = blocks.size(config, "n_shared_experts") if config.get("n_shared_experts") else 0
        scale = blocks.factor(config, "routed_scaling_factor")
        return cls(**vars(c), share_scale=scale, shared_intermediate=shared * c.expert_intermediate)


def names(c: Config) -> dict[str, Any]:
    """Role -> tensors of the feed-forwards."""
    found = qwen3_moe.feed_forward_names(c)
    for i in c.mixtures if c.shared_intermediate else ():
        shared = f"model.layers.{i}.mlp.shared_experts"
        found[f"layers.{i}.shared_gate_up"] = (f"{shared}.gate_proj", f"{shared}.up_proj")
        found[f"layers.{i}.shared_down"] = (f"{shared}.down_proj",)
    return found


def renamed(names: Names, words: dict[str, str]) -> dict[str, Any]:
    """The same roles, with other words in the names of their tensors, replaced in this order."""

    def new(stems: Any) -> Any:
        if not isinstance(stems, str):
            return type(stems)(map(new, stems))
        for word, own in words.items():
            stems = stems.replace(word, own)
        return stems

    return {role: new(stems) for role, stems in names.items()}


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shapes of these weights."""
    found = qwen3_moe.feed_forward_shapes(c)
    for i in c.mixtures if c.shared_intermediate else ():
        found[f"layers.{i}.shared_gate_up"] = (2 * c.shared_intermediate, c.hidden)
        found[f"layers.{i}.shared_down"] = (c.hidden, c.shared_intermediate)
    return found


def feed_forward(c: Config, layer: Any, i: int, x: Any) -> Any:
    """What the i-th layer adds behind its attention."""
    if i not in c.mixtures:
        return blocks.feed_forward(c, layer, i, x)
    y = ops.scale(qwen3_moe.mixture(c, layer, x), factor=c.share_scale)
    if not c.shared_intermediate:
        return y
    return ops.add(y, qwen3_moe.shared(c, layer, x))
