"""LittleBit checkpoints (Lee et al. 2025): each matrix is one or two products of binary factors, scaled on every side.

W = diag(u1) sign(U) diag(u2 * v1) sign(V) diag(v2). Signs lie in ``U_packed`` int32 [out, rank / 32] and ``V_packed``
int32 [rank, in / 32], the lowest bit first, 1 for -1, with their shapes in ``U_shape`` and ``V_shape``; or, as older
files have them, in floats ``U`` and ``V``. Scales ``u1`` [1, out], ``u2`` and ``v1`` [1, rank], ``v2`` [1, in] may be
negative. A second product's parts have ``_R`` in their names.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, part, stems_of, take_parts
from lutra.models.loaders.words import unpack_words
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Coded, Factored, is_finite, to_float32

__all__ = ["decode"]

SCALES = ("u1", "u2", "v1", "v2")
UNREAD = ("_eff_bit_target", "_eff_bit_actual", "_split_dim_final")  # what training wanted; the shapes say what is
Read = Callable[[], np.ndarray]


def decode(source: Source) -> bool:
    """Turn every factored matrix into one in a format littlebit<products>r<rank>; returns False without any."""
    stems = stems_of(source, ".u1")
    named = {"quant_func", "eff_bit"} <= source.config.keys() or (source.path / "littlebit_config.json").exists()
    if not stems and not named:
        return False
    if not stems:
        raise CorruptModelError(f"{source.path} says that its weights are LittleBit factors, but has none (.u1)")
    source.kind = "littlebit"
    for stem in stems:
        source.entries[f"{stem}.weight"] = _entry(source, stem)
        take_parts(source, stem, UNREAD)
    return True


def _entry(source: Source, stem: str) -> Entry:
    second = any(f"{stem}.{name}" in source.entries for name in ("U_R_packed", "U_R", "u1_R"))
    products = [_Product(source, stem, mark) for mark in (("", "_R") if second else ("",))]
    first = products[0]
    if any((p.shape, p.rank) != (first.shape, first.rank) for p in products):
        raise UnsupportedModelError(f"{stem!r:.80} is the sum of products of different ranks, which lutra does not run")
    return Entry(
        f"littlebit{len(products)}r{first.rank}", first.shape, lambda: Factored(tuple(p.chain() for p in products))
    )


class _Product:
    """One product: its shape and rank, checked, and how its links are read."""

    def __init__(self, source: Source, stem: str, mark: str):
        names = [f"{factor}{mark}{end}" for factor in "UV" for end in ("", "_packed", "_shape")]
        names += [f"{scale}{mark}" for scale in SCALES]
        parts = take_parts(source, stem, tuple(names))
        self.stem = stem
        self.scales = {name: part(parts, stem, f"{name}{mark}", FLOATS) for name in SCALES}
        lengths = {name: entry.shape[1] for name, entry in self.scales.items()}
        self.shape, self.rank = (lengths["u1"], lengths["v2"]), lengths["u2"]
        if any(entry.shape[0] != 1 for entry in self.scales.values()) or lengths["v1"] != self.rank:
            raise CorruptModelError(f"{stem!r:.80}: scales of {lengths} do not fit together")
        self.left = self._signs(parts, f"U{mark}", (self.shape[0], self.rank))
        self.right = self._signs(parts, f"V{mark}", (self.rank, self.shape[1]))

    def _signs(self, parts: dict[str, Entry], name: str, shape: tuple[int, int]) -> Read:
        """How a factor of that shape is read: int8, -1 or 1."""
        if name in parts:
            latent = part(parts, self.stem, name, FLOATS)
            self._check(name, latent.shape, shape)
            return lambda: self._sign(name, to_float32(latent.read()))
        packed = part(parts, self.stem, f"{name}_packed", ("I32", "U32"))
        claim = part(parts, self.stem, f"{name}_shape", ("I64", "I32"), rank=1)
        self._check(f"{name}_shape", tuple(np.asarray(claim.read()).tolist()), shape)
        self._check(f"{name}_packed", packed.shape, (shape[0], -(-shape[1] // 32)))

        def read() -> np.ndarray:
            bits = unpack_words(packed.read(), 1, shape[1])  # type: ignore[arg-type]
            return 1 - 2 * bits.view(np.int8)

        return read

    def _check(self, name: str, found: tuple[int, ...], due: tuple[int, ...]) -> None:
        if found != due:
            raise CorruptModelError(f"{self.stem!r:.80}.{name} is {found}, its scales say {due}")

    def _sign(self, name: str, latent: np.ndarray) -> np.ndarray:
        if np.isnan(latent).any():
            raise CorruptModelError(f"{self.stem!r:.80}.{name} has weights that are not numbers")
        return np.where(latent < 0, -1, 1).astype(np.int8)

    def chain(self) -> tuple[tuple[np.ndarray | None, Coded], ...]:
        """The links: V sees x * v2 and its rows are scaled by u2 * v1, U's by u1."""
        u1, u2, v1, v2 = (to_float32(self.scales[name].read())[0] for name in SCALES)
        if not all(map(is_finite, (u1, u2 * v1, v2))):
            raise CorruptModelError(f"{self.stem!r:.80} has scales that are not finite numbers")
        return (v2, Coded(self.right(), (u2 * v1)[:, None])), (None, Coded(self.left(), u1[:, None]))
