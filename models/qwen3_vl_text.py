"""Qwen3-VL (2025), text: Qwen3. Without images, all sections of its rotary positions are the same."""

from __future__ import annotations

from lutra.models import qwen3

Config = qwen3.Config
NAMES = qwen3.NAMES
shapes = qwen3.shapes
forward = qwen3.forward
TINY = qwen3.TINY | {"model_type": "qwen3_vl_text"}
