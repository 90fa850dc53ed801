"""Seed-OSS (ByteDance 2025): Llama with biases of q, k and v, which lie beside the tensors."""

from __future__ import annotations

from lutra.models import llama

Config = llama.Config
NAMES = llama.NAMES
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "seed_oss"}
