"""Qwen2.5-VL (Bai et al. 2025), text: Qwen2.5. Without images, its rotary positions are plain ones."""

from __future__ import annotations

from lutra.models import qwen2

Config = qwen2.Config
NAMES = qwen2.NAMES
shapes = qwen2.shapes
forward = qwen2.forward
TINY = qwen2.TINY | {"model_type": "qwen2_5_vl"}
