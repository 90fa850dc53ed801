"""Mixtral (Jiang et al. 2024): Mistral whose feed-forwards are mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lutra.models import blocks, llama, qwen3_moe
from lutra.models.weights import Experts, Names
from lutra.runtime import ops

TINY = llama.TINY | {"model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 40}
MOE = "model.layers.{}.block_sparse_moe"
ROLES = [role for role in blocks.LLAMA_NAMES if role not in ("layers.{}.gate_up", "layers.{}.down")]


@dataclass(frozen=True)
class Config(qwen3_moe.Config):
    """Mixtral's: all layers are mixtures, and a token's shares add up to 1."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "norm_topk_prob": True,
    }

    @classmethod
    def read(cls, config: dict[str, Any]) -> Config:
        """As qwen3_moe.Config.read; an expert has the width that is said of all."""
        config = cls.DEFAULTS | config
        width = {"moe_intermediate_size": config.get("intermediate_size"), "use_sliding_window": True}
        return cls(**vars(qwen3_moe.Config.read(config | width)))


def names(c: Config) -> Names:
    """Role -> tensors."""
    return names_in(c, MOE, ("w1", "w3", "w2"))


def names_in(c: qwen3_moe.Config, moe: str, matrices: tuple[str, str, str]) -> dict[str, Any]:
    """The same, for mixtures of that name, whose experts' gate, up and down are called so."""
    gate, up, down = ([f"{moe}.experts.{e}.{name}" for e in range(c.experts)] for name in matrices)
    return {role: blocks.LLAMA_NAMES[role] for role in ROLES} | {
        "layers.{}.router": (f"{moe}.gate",),
        "layers.{}.experts_gate_up": Experts(zip(gate, up, strict=True)),
        "layers.{}.experts_down": Experts((each,) for each in down),
    }


def shapes(c: qwen3_moe.Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    whole = blocks.shapes(c)
    return {role: whole[role] for role in ROLES if role in whole} | {
        "layers.{}.router": (c.experts, c.hidden),
        "layers.{}.experts_gate_up": (c.experts, 2 * c.expert_intermediate, c.hidden),
        "layers.{}.experts_down": (c.experts, c.hidden, c.expert_intermediate),
    }


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i)
        x = ops.add(x, ops.linear(h, layer.o))
        x = ops.add(x, qwen3_moe.mixture(c, layer, ops.rms_norm(x, layer.mlp_norm, eps=c.eps)))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)
