"""From floats to low-bit matrices: one file per method.

A method's module has

- ``fits(codec)``: whether it makes matrices for that format;
- ``quantize(values, codec)``: float32 [rows, cols] as a matrix that the format's ``pack`` takes; with ``CALIBRATED``
  true, ``quantize(values, codec, hessian)``, with the second moments of the matrix's inputs: float64 [cols, cols];
- ``BY_ROWS = True``, if it looks at each row by itself: then it is given some of a matrix's rows at a time;
- ``memory(rows, cols, codec)``, if it is given a matrix as a whole: bytes that it works with, those of the values, too;
- ``work(rows, cols, codec)``, if its time does not grow with the elements: what it does grow with.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

from lutra.runtime import formats
from lutra.runtime.errors import UnsupportedModelError

__all__ = ["method_for", "methods"]


def methods() -> dict[str, ModuleType]:
    """Every method by its name."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return {name: import_module(f"{__name__}.{name}") for name in names}


def method_for(format: str, name: str | None = None) -> ModuleType:
    """The method of that name, or the one that needs no calibration, for a format; UnsupportedModelError for none."""
    codec = formats.codec(format)
    able = {found: method for found, method in methods().items() if method.fits(codec)}
    if name is None:
        able = {found: method for found, method in able.items() if not getattr(method, "CALIBRATED", False)}
        name = next(iter(able), "")
    if name not in able:
        what = f"{name} makes no {format} matrices" if name else f"lutra has no way to quantize floats to {format}"
        raise UnsupportedModelError(what, f"for {format} there is {', '.join(able)}" if able else None)
    return able[name]
