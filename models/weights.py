"""From a checkpoint's tensors to weights by role, packed: what a model's forward() reads.

An architecture's NAMES say which tensors make up a role. Rows of several tensors are joined into one matrix
(q|k|v, gate|up), so that a kernel reads them in one go. A matrix becomes Packed, a vector stays float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from lutra.models.loaders import Checkpoint
from lutra.runtime import formats
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Coded, Packed, to_float32

__all__ = ["VERSION", "Weight", "by_layer", "pack_roles", "read_packed", "table_of"]

VERSION = 1  # of the packed file; a change of what any tensor means raises it

Weight = Packed | np.ndarray
LOSSLESS = ("t5", "f32", "f16", "bf16", "q8")  # the first format that accepts a matrix stores it


@dataclass(frozen=True)
class Choice:
    """How to pack: a format for the embedding and output matrices, or None to keep what the checkpoint has."""

    embed: str | None = None

    def of(self, role: str, matrix: formats.Matrix) -> str:
        """The format for a role's matrix."""
        if self.embed and role in ("embed", "head"):
            return self.embed
        return next(name for name in LOSSLESS if formats.codec(name).accepts(matrix))


def pack_roles(
    checkpoint: Checkpoint, names: dict[str, tuple[str, ...]], layers: int, choice: Choice | None = None
) -> Iterator[tuple[str, Weight]]:
    """Each role's weight in the order of NAMES, packed one at a time.

    A missing head is the embedding (tied); it is not given again. Raises CorruptModelError for tensors that are
    missing or do not fit together, UnsupportedModelError for tensors that no role asks for.
    """
    roles = list(_expand(names, layers))
    _refuse_leftovers(checkpoint, {stem for _, stems in roles for stem in stems})
    for role, stems in roles:
        if role == "head" and (checkpoint.config.get("tie_word_embeddings") or f"{stems[0]}.weight" not in checkpoint):
            continue
        yield role, _role(checkpoint, role, stems, choice or Choice())


def _expand(names: dict[str, tuple[str, ...]], layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    for role, stems in names.items():
        for layer in range(layers) if "{}" in role else (0,):
            yield role.format(layer), tuple(stem.format(layer) for stem in stems)


def _refuse_leftovers(checkpoint: Checkpoint, stems: set[str]) -> None:
    """A tensor that nobody reads means a model that is not what its config.json says."""
    for name in checkpoint.names():
        stem, _, kind = name.rpartition(".")
        if (stem not in stems or kind not in ("weight", "bias")) and not name.endswith("rotary_emb.inv_freq"):
            raise UnsupportedModelError(
                f"{checkpoint.config.get('model_type')} models have no tensor {name!r}",
                "lutra would have to ignore it, and the answers would be wrong",
            )


def _role(checkpoint: Checkpoint, role: str, stems: tuple[str, ...], choice: Choice) -> Weight:
    weights = [_tensor(checkpoint, f"{stem}.weight") for stem in stems]
    if weights[0].ndim == 1 if isinstance(weights[0], np.ndarray) else False:
        return np.concatenate([to_float32(w) for w in weights])
    matrix = _join(role, weights)
    return formats.pack(matrix, choice.of(role, matrix)).with_bias(_bias(checkpoint, stems, weights))


def _tensor(checkpoint: Checkpoint, name: str) -> formats.Matrix:
    if name not in checkpoint:
        raise CorruptModelError(f"{checkpoint.path} has no tensor {name!r}", "is the download complete?")
    return checkpoint.tensor(name)


def _bias(checkpoint: Checkpoint, stems: tuple[str, ...], weights: list[formats.Matrix]) -> np.ndarray | None:
    if not any(f"{stem}.bias" in checkpoint for stem in stems):
        return None
    parts = []
    for stem, weight in zip(stems, weights, strict=True):
        bias = f"{stem}.bias"
        parts.append(to_float32(checkpoint.tensor(bias)) if bias in checkpoint else np.zeros(weight.shape[0]))
        if parts[-1].shape != (weight.shape[0],):
            raise CorruptModelError(f"{bias} has shape {parts[-1].shape} beside a weight of {weight.shape}")
    return np.concatenate(parts).astype(np.float32)


def _join(role: str, weights: list[formats.Matrix]) -> formats.Matrix:
    """Rows of all the matrices as one, in their common type."""
    if any(len(w.shape) != 2 for w in weights) or len({w.shape[-1] for w in weights}) != 1:
        raise CorruptModelError(f"{role}: matrices of shapes {[w.shape for w in weights]} do not fit together")
    if len(weights) == 1:
        return weights[0]
    if all(isinstance(w, Coded) for w in weights):
        return Coded(np.concatenate([w.codes for w in weights]), np.concatenate([w.scale for w in weights]))  # type: ignore[union-attr]
    if len({(type(w), getattr(w, "dtype", None)) for w in weights}) > 1:
        weights = [to_float32(w) for w in weights]
    return np.concatenate(weights).view(type(weights[0]))  # type: ignore[arg-type,return-value]


def table_of(weights: dict[str, Weight]) -> dict[str, Any]:
    """What read_packed needs to know of the matrices beside their bytes: JSON for the file's metadata."""
    return {r: {"format": w.format, "shape": list(w.shape)} for r, w in weights.items() if isinstance(w, Packed)}


def read_packed(checkpoint: Checkpoint) -> dict[str, Weight]:
    """Roles of a checkpoint that lutra wrote, mapped in place. Raises CorruptModelError for anything amiss."""
    try:
        header = json.loads(checkpoint.metadata["lutra"])
        version, table = header["version"], header["matrices"]
        shapes = {role: (str(m["format"]), (int(m["shape"][0]), int(m["shape"][1]))) for role, m in table.items()}
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise CorruptModelError(f"{checkpoint.path} does not say how it is packed ({error!r})") from None
    if version != VERSION:
        raise UnsupportedModelError(
            f"{checkpoint.path} is packed in version {version}, lutra reads version {VERSION}", "convert it again"
        )
    weights: dict[str, Weight] = {}
    for name in checkpoint.names():
        role, _, part = name.rpartition(".")
        if role not in shapes:
            weights[name] = to_float32(checkpoint.tensor(name))
    for role, (format, shape) in shapes.items():
        weights[role] = _read_matrix(checkpoint, role, format, shape)
    return weights


def _read_matrix(checkpoint: Checkpoint, role: str, format: str, shape: tuple[int, int]) -> Packed:
    layout = formats.codec(format).layout(*shape)
    parts = {part: np.asarray(_tensor(checkpoint, f"{role}.{part}")) for part in layout}
    bias = f"{role}.bias"
    packed = Packed(format, shape, parts, np.asarray(checkpoint.tensor(bias)) if bias in checkpoint else None)
    return packed.check(role)


def by_layer(weights: dict[str, Weight], arch: ModuleType, layers: int) -> SimpleNamespace:
    """Weights as forward() names them: w.embed, w.layers[0].qkv. A missing head is the embedding."""
    space = SimpleNamespace(layers=[SimpleNamespace() for _ in range(layers)])
    weights = {"head": weights.get("embed"), **weights}  # type: ignore[dict-item]
    for role, _ in _expand(arch.NAMES, layers):
        if weights.get(role) is None:
            raise CorruptModelError(f"the model has no {role!r}")
        *path, name = role.split(".")
        setattr(space.layers[int(path[1])] if path else space, name, weights[role])
    return space
