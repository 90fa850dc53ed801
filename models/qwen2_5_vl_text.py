"""Qwen2.5-VL as transformers writes it since 2025, with a configuration for the text model alone."""

from __future__ import annotations

from lutra.models import qwen2_5_vl

Config = qwen2_5_vl.Config
NAMES = qwen2_5_vl.NAMES
shapes = qwen2_5_vl.shapes
forward = qwen2_5_vl.forward
TINY = qwen2_5_vl.TINY | {"model_type": "qwen2_5_vl_text"}
