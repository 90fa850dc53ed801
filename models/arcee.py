"""Arcee's AFM (2025): Llama with the square of a ReLU between two matrices, instead of a gate."""

from __future__ import annotations

from typing import Any, ClassVar

from lutra.models import blocks, llama
from lutra.runtime import ops

UP = {"layers.{}.up": ("model.layers.{}.mlp.up_proj",)}  # and no gate
NAMES = {role: stems for role, stems in blocks.LLAMA_NAMES.items() if role != "layers.{}.gate_up"} | UP
TINY = llama.TINY | {"model_type": "arcee"}


class Config(blocks.Config):
    """Arcee's."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"hidden_act": "relu2", "rms_norm_eps": 1e-5}


def shapes(c: blocks.Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight."""
    found = {role: shape for role, shape in blocks.shapes(c).items() if role != "layers.{}.gate_up"}
    return found | {"layers.{}.up": (c.intermediate, c.hidden)}


def forward(c: Config, w: Any, ids: Any, state: Any) -> Any:
    """Token ids [rows, 1] to logits [outputs, vocab]."""
    angles = ops.rope_angles(ids, c.frequency, state, magnitude=c.magnitude)
    x = ops.embed(ids, w.embed)
    for i, layer in enumerate(w.layers):
        h = ops.rms_norm(x, layer.attn_norm, eps=c.eps)
        x = ops.add(x, ops.linear(blocks.attend(c, ops.linear(h, layer.qkv), angles, state, i), layer.o))
        x = ops.add(x, blocks.ungated(c, layer, ops.rms_norm(x, layer.mlp_norm, eps=c.eps)))
    x = ops.rms_norm(ops.tail(x, state), w.norm, eps=c.eps)
    return ops.linear(x, w.head)
