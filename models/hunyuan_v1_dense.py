"""Hunyuan (Tencent 2025), dense: Qwen3 whose queries and keys get their norms after they are rotated."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, qwen3
from lutra.runtime import ops

NAMES = qwen3.NAMES | {
    "layers.{}.q_norm": ("model.layers.{}.self_attn.query_layernorm",),
    "layers.{}.k_norm": ("model.layers.{}.self_attn.key_layernorm",),
}
shapes = qwen3.shapes
TINY = qwen3.TINY | {"model_type": "hunyuan_v1_dense", "rope_theta": 1e4}


class Config(blocks.Config):
    """Hunyuan's: a "dynamic" scaling with an alpha is not dynamic, but one larger theta."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"rms_norm_eps": 1e-5}

    @classmethod
    def read(cls, config: dict[str, Any]) -> blocks.Config:
        """As blocks.Config.read."""
        return super().read(with_larger_theta(config))


def with_larger_theta(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without alpha."""
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, dict) or scaling.get("rope_type") != "dynamic" or not scaling.get("alpha"):
        return config
    width = blocks.size(config, "hidden_size") // blocks.size(config, "num_attention_heads")
    width = blocks.size(config, "head_dim", width)
    theta = blocks.factor(config, "rope_theta", 1e4)
    theta *= blocks.factor(scaling, "alpha") ** (width / max(width - 2, 1))
    return config | {"rope_theta": theta, "rope_scaling": None}


def forward(c: Config, w: Any, ids: Any, state: Any, feed_forward: Any = blocks.feed_forward) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]. feed_forward: what the i-th layer adds behind its attention."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        norms = layer.q_norm, layer.k_norm
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        h = blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i, norms, norms_last=True)
        x = ops.add(x, ops.linear(h, layer.o))
        x = ops.add(x, feed_forward(c, layer, i, ops.rms_norm(x, layer.mlp_norm, eps=c.eps)))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)
