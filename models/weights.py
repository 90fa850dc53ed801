"""From a checkpoint's tensors to weights by role, packed: what a model's forward() reads.

An architecture's NAMES say which tensors make up a role. Rows of several tensors are joined into one matrix
(q|k|v, gate|up), so that a kernel reads them in one go. A matrix becomes Packed, a vector stays float32.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from lutra import native
from lutra.models.loaders import Checkpoint
from lutra.models.loaders.tensor import DTYPES
from lutra.runtime import formats
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import (
    Codebook,
    Coded,
    Factored,
    Nested,
    Packed,
    Planes,
    Rotated,
    Scaled,
    Stacked,
    experts,
    rows,
    to_float32,
)
from lutra.runtime.threads import in_pieces

__all__ = [
    "VERSION",
    "Experts",
    "Planned",
    "Unused",
    "Weight",
    "by_layer",
    "header_of",
    "is_kept",
    "names_of",
    "nbytes_of",
    "pack_roles",
    "plan_roles",
    "read_packed",
    "tensor_of",
    "tensors_of",
]

VERSION = 1  # of the packed file; a change of what any tensor means raises it

Weight = Packed | np.ndarray
AT_ONCE = 1 << 18  # elements turned to float32 together: few enough to stay in cache
# The arrays of matrices of a kind, and which of their dimensions is that of rows.
ROWS: dict[type, dict[str, int]] = {
    Codebook: {"codes": 0, "scale": 0, "own": 0, "unit": 0},
    Nested: {"codes": 0, "scale": 1, "unit": 1},
    Scaled: {"values": 0, "scale": 0},
    Planes: {"bits": 1, "scale": 1, "offset": 0},
}
EMBEDDINGS = ("embed", "positions", "layer_embed")  # tables of which a token reads a row
# How roles end of matrices that are kept: they are small and decide much.
SMALL = (".router", ".gates", ".shared_gate", ".conv", ".q_norm", ".k_norm")
# How names end that are whole: others are those of a weight and a bias.
NO_WEIGHTS = (
    ".bias",
    ".A_log",
    ".dt_bias",
    ".D",
    ".sinks",
    ".layer_scalar",
    ".router.scale",
    ".per_expert_scale",
    ".e_score_correction_bias",
    ".expert_bias",
)
# How names end of tables that older releases store and nobody needs: frequencies, and masks of attention.
COMPUTED = ("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
LOSSLESS = {"F16": "f16", "BF16": "bf16"}  # by a checkpoint's element type; f32 holds any other


class Experts(tuple[tuple[str, ...], ...]):
    """Among NAMES: for every expert, the tensors whose rows make up its matrix."""


class Unused(tuple[str, ...]):
    """Among NAMES: tensors that checkpoints may have and nobody reads."""


Names = Mapping[str, "tuple[str, ...] | Experts | Unused"]


def names_of(arch: ModuleType, config: Any) -> Names:
    """An architecture's NAMES: a table, or names(config) where the configuration decides them."""
    names: Names = arch.names(config) if hasattr(arch, "names") else arch.NAMES
    return names


def tensor_of(stem: str) -> str:
    """The tensor that one of NAMES means: that name's weight, unless it says which part."""
    return stem if stem.endswith(NO_WEIGHTS) else f"{stem}.weight"


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a checkpoint's tensor in its file; of one of codes, of these and its scales as lutra holds them."""
    if dtype in DTYPES:
        return DTYPES[dtype].itemsize * math.prod(shape)
    layout = formats.codec(formats.ternary() if dtype == "ternary" else dtype).layout(*shape)
    return sum(np.dtype(kind).itemsize * math.prod(part) for kind, part in layout.values())


def is_kept(role: str) -> bool:
    """Whether a matrix is not among those that are quantized: embeddings, output, and small ones."""
    return role in (*EMBEDDINGS, "head") or role.endswith(SMALL)


@dataclass(frozen=True)
class Planned:
    """A role's weight before it is packed: all that headers alone tell.

    stems: the tensors whose rows it joins. format: that of a matrix; None for a vector, which stays float32. each:
    every expert's matrix, for a weight of experts.
    """

    role: str
    stems: tuple[str, ...]
    shape: tuple[int, ...]
    format: str | None
    biased: bool
    each: tuple[Planned, ...] = ()

    def parts(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """The tensors that store it in a packed file: name -> (dtype, shape)."""
        if self.format is None:
            return {self.role: (np.float32, self.shape)}
        parts = dict(formats.codec(self.format).layout(*self.shape))
        if self.biased:
            parts["bias"] = (np.float32, self.shape[:-1])
        return {f"{self.role}.{part}": what for part, what in parts.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in self.parts().values())

    @property
    def mapped(self) -> bool:
        """Whether pack() takes no memory: one float matrix is used where it lies in its file."""
        return len(self.stems) == 1 and self.format in ("f32", "f16", "bf16", "f8", "f8g128")

    def pack(self, checkpoint: Checkpoint) -> Weight:
        """Read and pack it. Raises CorruptModelError for values that contradict the checkpoint's own format."""
        if self.each:
            return experts.stacked((p.pack(checkpoint) for p in self.each), len(self.each))  # type: ignore[misc]
        weights = [checkpoint.unread(tensor_of(stem)) for stem in self.stems]
        if self.format is None:
            return np.concatenate([to_float32(w) for w in weights])
        joined = Stacked(tuple(weights)) if self.format.startswith("rows-") else _join(weights)
        return formats.pack(joined, self.format).with_bias(_bias(checkpoint, self.stems, weights))

    def floats(self, checkpoint: Checkpoint) -> tuple[formats.Unread, np.ndarray | None]:
        """A matrix as float32 [out, in], whatever the checkpoint stores, not read yet; and its bias, float32 [out]."""
        weights = [checkpoint.unread(tensor_of(stem)) for stem in self.stems]
        whole = (Factored, Rotated, Stacked)  # whose rows are not to be had one by one
        parts = [to_float32(w) if isinstance(w, whole) else w for w in weights]
        ends = list(accumulate(w.shape[0] for w in parts))

        def read(begin: int, end: int) -> np.ndarray:
            values = np.empty((end - begin, self.shape[1]), np.float32)
            for part, last in zip(parts, ends, strict=True):
                first = last - part.shape[0]
                low, high = max(begin, first), min(end, last)

                def piece(some: slice, part: Any = part, at: int = low - first, own: slice = slice(low, high)) -> None:
                    values[own.start - begin :][some] = to_float32(part[at + some.start : at + some.stop])

                in_pieces(piece, max(0, high - low), max(1, AT_ONCE // self.shape[1]))
            return values

        return formats.Unread(self.shape, read, AT_ONCE), _bias(checkpoint, self.stems, weights)  # type: ignore[arg-type]


def plan_roles(
    checkpoint: Checkpoint,
    names: Names,
    layers: int,
    embed: str | None = None,
    ternary: str | None = None,
    others: str | None = None,
) -> list[Planned]:
    """What each role's weight will be, in the order of NAMES.

    embed: a format for the embedding and output matrices; None keeps what the checkpoint has, as all others do.
    ternary: a format for ternary matrices; None: the one that this CPU runs best.
    others: a format for all matrices but those that are kept (is_kept); it may lose something.
    A missing head is the embedding (tied); it is not given again. Raises CorruptModelError for tensors that are
    missing or do not fit together, UnsupportedModelError for tensors that no role asks for.
    """
    roles = list(_expand(names, layers))
    _refuse_leftovers(checkpoint, {stem for _, stems in roles for stem in _flat(stems)})
    tied = checkpoint.config.get("tie_word_embeddings")
    kept = dict.fromkeys(("embed", "head", "layer_embed"), embed)
    return [
        _planned(checkpoint, role, stems, kept.get(role) if is_kept(role) else others, ternary or formats.ternary())
        for role, stems in roles
        if not isinstance(stems, Unused) and (role != "head" or not (tied or tensor_of(stems[0]) not in checkpoint))
    ]


def pack_roles(checkpoint: Checkpoint, planned: Iterable[Planned]) -> Iterator[tuple[str, Weight]]:
    """Each planned role's weight, packed one at a time. Raises as Planned.pack() does."""
    for p in planned:
        yield p.role, p.pack(checkpoint)
        checkpoint.release()


def _flat(stems: tuple[str, ...] | Experts) -> tuple[str, ...]:
    return tuple(stem for own in stems for stem in own) if isinstance(stems, Experts) else stems


def _planned_experts(checkpoint: Checkpoint, role: str, stems: Experts, format: str | None, ternary: str) -> Planned:
    each = tuple(_planned(checkpoint, role, own, format, ternary) for own in stems)
    first = each[0]
    if len({p.shape for p in each}) > 1 or first.format is None:
        raise CorruptModelError(f"{role}: the experts have no matrices of one shape")
    if len({p.biased for p in each}) > 1:
        raise CorruptModelError(f"{role}: some experts have a bias, and some have none")
    own = _holding({str(p.format) for p in each}, role)
    each = tuple(replace(p, format=own) for p in each)
    return Planned(role, _flat(stems), (len(each), *first.shape), experts.name_of(own, role), first.biased, each=each)


def _holding(formats: set[str], role: str) -> str:
    """The format that holds experts of all of these exactly. UnsupportedModelError if there is none."""
    if len(formats) == 1:
        return next(iter(formats))
    if len(same := {format.removesuffix("z") for format in formats}) == 1:
        return f"{next(iter(same))}z"
    if formats & {"f32", "f16", "bf16"}:
        return "f32"
    raise UnsupportedModelError(
        f"{role}: lutra runs a mixture's experts in one format, and these come in {', '.join(sorted(formats)):.200}",
        "Take a release whose experts are quantized alike.",
    )


def _planned(
    checkpoint: Checkpoint, role: str, stems: tuple[str, ...] | Experts, format: str | None, ternary: str
) -> Planned:
    if isinstance(stems, Experts):
        return _planned_experts(checkpoint, role, stems, format, ternary)
    tensors = [tensor_of(stem) for stem in stems]
    for name in tensors:
        _require(checkpoint, name)
    shapes = [checkpoint.shape(name) for name in tensors]
    if len({(len(shape), *shape[1:]) for shape in shapes}) != 1 or len(shapes[0]) not in (1, 2):
        raise CorruptModelError(f"{role}: tensors of shapes {shapes} do not fit together")
    shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    biased = any(f"{stem}.bias" in checkpoint and f"{stem}.bias" not in stems for stem in stems)
    if len(shape) == 1 and biased:
        raise UnsupportedModelError(f"{role} has a bias, which lutra adds to matrices only")
    if len(shape) == 1:
        return Planned(role, stems, shape, None, biased)
    if format:
        return Planned(role, stems, shape, format, biased)
    dtypes = [checkpoint.dtype(name) for name in tensors]
    format = _format_of(dtypes, shapes, ternary)
    looked_up = getattr(formats.codec(format), "inner", formats.codec(format))
    if role in EMBEDDINGS and f"embed_{looked_up.KERNEL}_scalar" not in native.kernels():
        format = "q2" if dtypes == ["ternary"] else "f32"  # which hold it, too
    return Planned(role, stems, shape, format, biased)


def _format_of(dtypes: list[str], shapes: list[tuple[int, ...]], ternary: str) -> str:
    """The format that holds matrices of these types one above the other, exactly."""
    lossless = {**LOSSLESS, "ternary": ternary}
    each = ["f32" if dtype in DTYPES and dtype not in lossless else lossless.get(dtype, dtype) for dtype in dtypes]
    if set(each) <= {"f32", "f16", "bf16"}:
        return each[0] if len(set(each)) == 1 else "f32"
    if len(each) == 1 or (len(set(each)) == 1 and not hasattr(formats.codec(each[0]), "chains")):
        return each[0]
    return rows.name_of([(shape[0], format) for shape, format in zip(shapes, each, strict=True)])


def _expand(names: Names, layers: int) -> Iterator[tuple[str, Any]]:
    for role, stems in names.items():
        for layer in range(layers) if "{}" in role else (0,):
            yield role.format(layer), _formatted(stems, layer)


def _formatted(stems: Any, layer: int) -> Any:
    if isinstance(stems, str):
        return stems.format(layer)
    return type(stems)(_formatted(stem, layer) for stem in stems)


def _refuse_leftovers(checkpoint: Checkpoint, stems: set[str]) -> None:
    """A tensor that nobody reads means a model that is not what its config.json says."""
    known = {tensor_of(stem) for stem in stems} | {f"{stem}.bias" for stem in stems}
    for name in checkpoint.names():
        if name not in known and not name.endswith(COMPUTED):
            raise UnsupportedModelError(
                f"{checkpoint.config.get('model_type')} models have no tensor {name!r}",
                "lutra would have to ignore it, and the answers would be wrong",
            )


def _require(checkpoint: Checkpoint, name: str) -> None:
    if name not in checkpoint:
        raise CorruptModelError(f"{checkpoint.path} has no tensor {name!r}", "is the download complete?")


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


def _join(weights: list[formats.Matrix]) -> formats.Matrix:
    """Rows of all the matrices as one, in their common type."""
    if len(weights) == 1:
        return weights[0]
    if any(isinstance(w, formats.Unread) for w in weights):
        return _join_unread(weights)
    if all(isinstance(w, Coded) for w in weights):
        return _join_coded(weights)  # type: ignore[arg-type]
    if all(isinstance(w, Rotated) for w in weights) and _turn_alike(weights):
        return replace(weights[0], matrix=_join([w.matrix for w in weights]))  # type: ignore[union-attr,type-var]
    for kind, arrays in ROWS.items():
        if all(isinstance(w, kind) for w in weights):
            return _join_arrays(weights, arrays)
    if len({(type(w), getattr(w, "dtype", None)) for w in weights}) > 1:
        weights = [to_float32(w) for w in weights]
    return np.concatenate(weights).view(type(weights[0]))  # type: ignore[arg-type,return-value]


def _turn_alike(weights: list[Any]) -> bool:
    def alike(a: np.ndarray | None, b: np.ndarray | None) -> bool:
        return a is b or (a is not None and b is not None and np.array_equal(a, b))

    first = weights[0]
    return all(w.block == first.block and alike(w.signs, first.signs) and alike(w.order, first.order) for w in weights)


def _join_unread(weights: list[formats.Matrix]) -> formats.Unread:
    ends = list(accumulate(w.shape[0] for w in weights))
    begins = [0, *ends[:-1]]

    def read(begin: int, end: int) -> formats.Matrix:
        each = zip(weights, begins, ends, strict=True)
        return _join([w[max(begin, b) - b : end - b] for w, b, e in each if b < end and begin < e])

    return formats.Unread((ends[-1], weights[0].shape[1]), read)


def _join_coded(weights: list[Coded]) -> Coded:
    if len({(w.group, w.codes.dtype) for w in weights}) > 1:
        raise UnsupportedModelError("matrices that lutra joins are coded in different ways")
    zeros = [np.zeros_like(w.scale) if w.zero is None else w.zero for w in weights]
    zero = np.concatenate(zeros) if any(w.zero is not None for w in weights) else None
    codes, scale = (np.concatenate([getattr(w, name) for w in weights]) for name in ("codes", "scale"))
    return Coded(codes, scale, zero, weights[0].group)


def _join_arrays(weights: list[Any], arrays: dict[str, int]) -> Any:
    parts = {name: [getattr(w, name) for w in weights] for name in arrays}
    joined = {name: _concatenated(some, arrays[name]) for name, some in parts.items() if some[0] is not None}
    return replace(weights[0], **joined)


def _concatenated(some: list[Any], axis: int) -> np.ndarray:
    """The arrays as one, which is marked as they are."""
    kind = type(some[0]) if isinstance(some[0], np.ndarray) else np.ndarray
    return np.concatenate(some, axis).view(kind)


def tensors_of(role: str, weight: Weight) -> dict[str, np.ndarray]:
    """A packed weight's arrays under the names that a packed file has for them: those of Planned.parts()."""
    if isinstance(weight, np.ndarray):
        return {role: weight}
    parts = weight.parts if weight.bias is None else {**weight.parts, "bias": weight.bias}
    return {f"{role}.{part}": array for part, array in parts.items()}


def header_of(planned: Iterable[Planned]) -> str:
    """What read_packed needs to know of the matrices beside their bytes: JSON for the file's metadata."""
    matrices = {p.role: {"format": p.format, "shape": list(p.shape)} for p in planned if p.format}
    return json.dumps({"version": VERSION, "matrices": matrices})


def read_packed(checkpoint: Checkpoint) -> dict[str, Weight]:
    """Roles of a checkpoint that lutra wrote, mapped in place. Raises CorruptModelError for anything amiss."""
    try:
        header = json.loads(checkpoint.metadata["lutra"])
        version, table = header["version"], header["matrices"]
        shapes = {role: (str(m["format"]), tuple(int(n) for n in m["shape"])) for role, m in table.items()}
        if not all(len(shape) in (2, 3) and min(shape) >= 0 for _, shape in shapes.values()):
            raise ValueError("a weight of a shape that no matrix has")
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise CorruptModelError(f"{checkpoint.path} does not say how it is packed ({error!r})") from None
    if version != VERSION:
        raise UnsupportedModelError(
            f"{checkpoint.path} is packed in version {version}, lutra reads version {VERSION}", "convert it again"
        )
    weights: dict[str, Weight] = {}
    for name in checkpoint.names():
        role, _, _ = name.rpartition(".")
        if role not in shapes:
            weights[name] = to_float32(checkpoint.tensor(name))
    for role, (format, shape) in shapes.items():
        weights[role] = _read_matrix(checkpoint, role, format, shape)
    return weights


def _read_matrix(checkpoint: Checkpoint, role: str, format: str, shape: tuple[int, ...]) -> Packed:
    layout = formats.codec(format).layout(*shape)
    for part in layout:
        _require(checkpoint, f"{role}.{part}")
    parts = {part: np.asarray(checkpoint.tensor(f"{role}.{part}")) for part in layout}
    bias = f"{role}.bias"
    packed = Packed(format, shape, parts, np.asarray(checkpoint.tensor(bias)) if bias in checkpoint else None)
    return packed.check(role)


def by_layer(weights: Mapping[str, Weight | Planned], arch: ModuleType, config: Any) -> SimpleNamespace:
    """Weights as forward() names them: w.embed, w.layers[0].qkv. A missing head is the embedding (tied).

    Raises CorruptModelError for a weight that is missing or has another shape than the configuration says.
    """
    space = SimpleNamespace(layers=[SimpleNamespace() for _ in range(config.layers)])
    for pattern, shape in arch.shapes(config).items():
        for layer in range(config.layers) if "{}" in pattern else (0,):
            role = pattern.format(layer)
            weight = weights.get(role)
            if weight is None or tuple(weight.shape) != shape:
                found = "is missing" if weight is None else f"has shape {tuple(weight.shape)}"
                raise CorruptModelError(f"{role} {found}; the configuration says {shape}")
            place = re.fullmatch(r"layers\.(\d+)\.(.*)", role)
            setattr(space.layers[int(place[1])] if place else space, place[2] if place else role, weight)
    if not hasattr(space, "head"):
        space.head = space.embed
    return space
