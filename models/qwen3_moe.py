"""Qwen3 mixtures of experts (Yang et al. 2025): Qwen3 whose feed-forwards are experts, some chosen for every token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lutra.models import blocks, qwen3
from lutra.models.weights import Experts, Names
from lutra.runtime import ops
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import experts

TINY = qwen3.TINY | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "mlp_only_layers": [1],
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "norm_topk_prob": True,
}
FEED_FORWARD = ("layers.{}.gate_up", "layers.{}.down")
SCORES = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Routing:
    """How a token chooses its k experts: the attributes of ops.route."""

    k: int
    normalize: bool
    sigmoid: bool = False
    groups: int = 1
    kept: int = 1
    leading: int = 1

    @classmethod
    def read(cls, config: dict[str, Any], count: int) -> Routing:
        """What a configuration says of so many experts. A group is as good as its two best."""
        k, groups = blocks.size(config, "num_experts_per_tok"), blocks.size(config, "n_group", 1)
        kept, score = blocks.size(config, "topk_group", groups), config.get("scoring_func") or "softmax"
        if k > count:
            raise CorruptModelError(f"config.json: a token cannot choose {k} of {count} experts")
        if score not in SCORES:
            raise UnsupportedModelError(f"lutra does not choose experts by {score!r:.40} (scoring_func)")
        if kept > groups or count % groups or kept * (count // groups) < k:
            raise CorruptModelError(f"config.json: {k} of {count} experts cannot be in {kept} of {groups} groups")
        leading = min(2, count // groups)
        return cls(k, bool(config.get("norm_topk_prob", False)), score == "sigmoid", groups, kept, leading)


@dataclass(frozen=True)
class Config(qwen3.Config):
    """Qwen3's, and that of the mixtures.

    mixtures: the layers that have one; the others have one feed-forward. experts: of each. routing: how they are
    chosen. biased: whether by biases, too. expert_intermediate: width of an expert.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "use_sliding_window": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    }

    mixtures: tuple[int, ...]
    experts: int
    routing: Routing
    biased: bool
    expert_intermediate: int

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As blocks.Config.read. transformers 5 says num_local_experts."""
        if "num_local_experts" in config:
            config = {"num_experts": config["num_local_experts"]} | config
        config = cls.DEFAULTS | config
        c = blocks.Config.read(config)
        count = blocks.size(config, "num_experts")
        if count > experts.MOST:
            raise UnsupportedModelError(f"lutra has no mixtures of {count} experts", f"it goes up to {experts.MOST}")
        step, dense = blocks.size(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or []
        if not isinstance(dense, list):
            raise CorruptModelError(f"config.json: mlp_only_layers is {dense!r:.80}, which is no list")
        return cls(
            **vars(c),
            mixtures=tuple(i for i in range(c.layers) if i not in dense and (i + 1) % step == 0),
            experts=count,
            routing=Routing.read(config, count),
            biased=bool(config.get("use_expert_bias", False)),
            expert_intermediate=blocks.size(config, "moe_intermediate_size"),
        )


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    return {role: stems for role, stems in qwen3.NAMES.items() if role not in FEED_FORWARD} | feed_forward_names(c)


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole = qwen3.shapes(c)
    return {role: shape for role, shape in whole.items() if role not in FEED_FORWARD} | feed_forward_shapes(c)


def feed_forward_names(c: Config) -> dict[str, Any]:
    """Role -> tensors of what is a mixture in some layers."""
    found: dict[str, tuple[str, ...] | Experts] = {}
    for role, i in ((role, i) for role in FEED_FORWARD for i in range(c.layers)):
        own = tuple(stem.format(i) for stem in blocks.LLAMA_NAMES[role])
        if i not in c.mixtures:
            found[role.format(i)] = own
            continue
        each = (tuple(stem.replace(".mlp.", f".mlp.experts.{e}.") for stem in own) for e in range(c.experts))
        found[f"layers.{i}.experts_{role.rpartition('.')[2]}"] = Experts(each)
    for i in c.mixtures:
        found[f"layers.{i}.router"] = (f"model.layers.{i}.mlp.gate",)
        if c.biased:
            found[f"layers.{i}.router_bias"] = (f"model.layers.{i}.mlp.gate.e_score_correction_bias",)
    return found


def feed_forward_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shapes of these weights."""
    found: dict[str, tuple[int, ...]] = {}
    for i in range(c.layers):
        if i in c.mixtures:
            found[f"layers.{i}.router"] = (c.experts, c.hidden)
            if c.biased:
                found[f"layers.{i}.router_bias"] = (c.experts,)
            found[f"layers.{i}.experts_gate_up"] = (c.experts, 2 * c.expert_intermediate, c.hidden)
            found[f"layers.{i}.experts_down"] = (c.experts, c.hidden, c.expert_intermediate)
        else:
            found[f"layers.{i}.gate_up"] = (2 * c.intermediate, c.hidden)
            found[f"layers.{i}.down"] = (c.hidden, c.intermediate)
    return found


def mixture(
    c: Any,
    layer: Any,
    x: Any,
    gated: Callable[[Any, Any], Any] = blocks.gated,
    *,
    seen: Any = None,
    scales: np.ndarray | None = None,
) -> Any:
    """What each row's chosen experts make of it, by their shares. Rows are lined up by expert: each is read once.

    gated: what becomes of their gate | up. seen: what the router sees of x, if not x. scales: float32 [experts], what
    each gives times that.
    """
    logits = ops.linear(x if seen is None else seen, layer.router)
    bias = [layer.router_bias] if c.biased else []
    chosen, share = ops.route(logits, *bias, **vars(c.routing))
    place = ops.line_up(chosen, experts=c.experts)
    h = ops.experts(ops.spread(x, place), layer.experts_gate_up, chosen)
    h = ops.experts(gated(c, h), layer.experts_down, chosen)
    if scales is not None:
        h = ops.scale_experts(h, scales, chosen)
    return ops.gather(h, place, share)


def shared(c: Any, layer: Any, x: Any) -> Any:
    """What an expert gives that all tokens share, beside those they choose."""
    return ops.linear(blocks.gated(c, ops.linear(x, layer.shared_gate_up)), layer.shared_down)


def feed_forward(c: Config, layer: Any, i: int, x: Any) -> Any:
    """What the i-th layer adds behind its attention."""
    return mixture(c, layer, x) if i in c.mixtures else blocks.feed_forward(c, layer, i, x)


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i, (layer.q_norm, layer.k_norm))
        x = ops.add(x, ops.linear(h, layer.o))
        h = ops.rms_norm(x, layer.mlp_norm, eps=c.eps)
        x = ops.add(x, feed_forward(c, layer, i, h))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)
