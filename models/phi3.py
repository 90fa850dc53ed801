"""Phi-3 and Phi-4-mini (Abdin et al. 2024): Llama whose q, k, v and gate, up are joined on disk already."""

from __future__ import annotations

from lutra.models import llama

Config = llama.Config
NAMES = llama.NAMES | {
    "layers.{}.qkv": ("model.layers.{}.self_attn.qkv_proj",),
    "layers.{}.gate_up": ("model.layers.{}.mlp.gate_up_proj",),
}
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "phi3", "partial_rotary_factor": 0.5}
