"""Mistral (Jiang et al. 2023): Llama, with contexts as long as its sliding window, if it has one."""

from __future__ import annotations

from lutra.models import llama

Config = llama.Config
NAMES = llama.NAMES
shapes = llama.shapes
forward = llama.forward
TINY = llama.TINY | {"model_type": "mistral", "sliding_window": 48}
