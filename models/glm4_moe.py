"""GLM-4.5 and 4.6 (Zhipu 2025): DeepSeek-V3's mixtures behind Llama's attention; in the larger, heads have norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import blocks, llama, shared_experts
from lutra.models.qwen3_moe import FEED_FORWARD
from lutra.models.weights import Names
from lutra.runtime import ops

NORMS = {role: (f"model.layers.{{}}.self_attn.{role[-6:]}",) for role in ("layers.{}.q_norm", "layers.{}.k_norm")}
TINY = llama.TINY | {
    "model_type": "glm4_moe",
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "moe_intermediate_size": 40,
    "routed_scaling_factor": 2.0,
    "use_qk_norm": True,
}


@dataclass(frozen=True)
class Config(shared_experts.Config):
    """GLM's. head_norms: whether heads' queries and keys have norms."""

    DEFAULTS: ClassVar[dict[str, Any]] = shared_experts.SIGMOID | {
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "use_qk_norm": False,
    }

    head_norms: bool

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As shared_experts.Config.read."""
        config = cls.DEFAULTS | config
        return cls(**vars(shared_experts.Config.read(config)), head_norms=bool(config["use_qk_norm"]))


def names(c: Config) -> Names:
    """Role -> tensors, as the configuration's layers have them."""
    whole = blocks.LLAMA_NAMES | (NORMS if c.head_norms else {})
    return {role: stems for role, stems in whole.items() if role not in FEED_FORWARD} | shared_experts.names(c)


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole = blocks.shapes(c) | dict.fromkeys(NORMS if c.head_norms else (), (c.head_dim,))
    return {role: shape for role, shape in whole.items() if role not in FEED_FORWARD} | shared_experts.shapes(c)


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        norms = (layer.q_norm, layer.k_norm) if c.head_norms else ()
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        x = ops.add(x, ops.linear(blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i, norms), layer.o))
        x = ops.add(x, shared_experts.feed_forward(c, layer, i, ops.rms_norm(x, layer.mlp_norm, eps=c.eps)))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)
