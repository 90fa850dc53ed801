"""Checkpoints of NVIDIA's ModelOpt: matrices of 8-bit floats (fp8.py), or of four-bit floats, NVFP4 (fp4.py).

config.json says so, or, in older ones, hf_quant_config.json beside it.
"""

from __future__ import annotations

import json
from typing import Any

from lutra.models.loaders.checkpoint import Source
from lutra.models.loaders.fp4 import modelopt_blocks
from lutra.models.loaders.fp8 import FLOAT8, drop_scales_of_activations, scaled
from lutra.models.loaders.grids import stems_of
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError

__all__ = ["decode"]

FILE = "hf_quant_config.json"


def decode(source: Source) -> bool:
    """Turn every matrix with a scale into one in our formats f8 or nvfp4; returns False for any other directory."""
    settings = source.quantization or _older(source)
    if settings.get("quant_method") != "modelopt":
        return False
    stems = [stem for stem in stems_of(source, ".weight_scale") if f"{stem}.weight" in source.entries]
    dtypes = {stem: source.entries[f"{stem}.weight"].dtype for stem in stems}
    four = {stem for stem in stems_of(source, ".weight_scale_2") if dtypes.get(stem) == "U8"}
    others = any(dtype != FLOAT8 and stem not in four for stem, dtype in dtypes.items())
    if not stems or others or any(name.endswith(".pre_quant_scale") for name in source.entries):
        raise UnsupportedModelError(
            f"{source.path} stores its weights as ModelOpt's {settings.get('quant_algo')!r:.40}",
            "lutra reads its FP8 and NVFP4: use one of those, or a release in float16 or bfloat16.",
        )
    source.kind = "modelopt"
    drop_scales_of_activations(source)
    for stem in stems:
        entry = modelopt_blocks(source, stem) if stem in four else scaled(source, stem, _block(settings))
        source.entries[f"{stem}.weight"] = entry
    return True


def _older(source: Source) -> dict[str, Any]:
    """What the file of their own says, {} where there is none."""
    path = source.path / FILE
    if not path.exists():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptModelError(f"{path} is not sound JSON: {error}") from error
    settings = said.get("quantization") if isinstance(said, dict) else None
    return {**settings, "quant_method": "modelopt"} if isinstance(settings, dict) else {}


def _block(settings: dict[str, Any]) -> object:
    """Rows and columns that share a scale, where they are said to be blocks."""
    return [128, 128] if "PB" in str(settings.get("quant_algo")) else None
