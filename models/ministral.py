"""Ministral 8B (2024): Mistral whose configuration says which layers have the window."""

from __future__ import annotations

from lutra.models import mistral

Config = mistral.Config
NAMES = mistral.NAMES
shapes = mistral.shapes
forward = mistral.forward
TINY = mistral.TINY | {"model_type": "ministral", "layer_types": ["full_attention", "sliding_attention"]}
