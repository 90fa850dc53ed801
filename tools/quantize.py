"""Quantizing a checkpoint's weights, one in memory at a time, into a journal that an interrupted run continues.

Each finished weight is a file of its own beside the directory to come. The same command with the same source finds
them and goes on; anything else in their place is thrown away.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import numpy as np

from lutra import native
from lutra.models import weights
from lutra.models.loaders import Checkpoint
from lutra.models.loaders.safetensors import SafetensorsFile, write_safetensors
from lutra.models.loaders.tensor import dtype_name
from lutra.models.weights import Planned
from lutra.runtime import formats, threads
from lutra.runtime.errors import CorruptModelError, LutraError, UnsupportedModelError
from lutra.runtime.formats import Codebook, Coded, Matrix, Packed, Planes, Unread, experts, is_finite, to_float32
from lutra.runtime.threads import ahead, in_pieces
from lutra.tools.calibrate import calibrate
from lutra.tools.quantizers import method_for

__all__ = ["Journal", "Loss", "estimated_seconds", "memory_of", "opened_journal", "quantize"]

AT_ONCE = 1 << 18  # elements whose error is measured together: few enough to stay in cache
LOCKED = 1 << 30  # the byte that Windows locks: one behind the end, as nobody can read a locked one
SAMPLE = 512  # rows or columns of a matrix that is timed; of one whose time grows faster than its elements:
LARGER = 1024
PIECES = 4  # or so many for each thread, of a method that looks at each row by itself


@dataclass(frozen=True)
class Loss:
    """What quantizing lost: the sum of squared errors, and the sum of squares before.

    rounded: matrices that a calibrated method left to one that is not.
    """

    error: float
    whole: float
    rounded: int = 0

    @property
    def relative(self) -> float:
        """The squared error as a share of the squares."""
        return self.error / self.whole if self.whole else 0.0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.error + other.error, self.whole + other.whole, self.rounded + other.rounded)


class Journal:
    """Finished weights in a folder, a file for each."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _file(self, role: str) -> Path:
        return self.folder / f"{role}.safetensors"

    def __contains__(self, role: str) -> bool:
        return self._file(role).exists()

    def write(self, role: str, packed: Packed, loss: Loss) -> None:
        """Keep a weight; it is there whole or not at all."""
        tensors = [(name, dtype_name(x), x.shape, x) for name, x in weights.tensors_of(role, packed).items()]
        write_safetensors(self._file(role), tensors, {"loss": json.dumps(astuple(loss))})

    def loss(self, role: str) -> Loss:
        """What a weight that is there lost."""
        file = SafetensorsFile(self._file(role))
        try:
            return Loss(*json.loads(file.metadata["loss"]))
        finally:
            file.close()

    def read(self, planned: Planned) -> Packed:
        """A weight that is there, mapped."""
        assert planned.format is not None
        file = SafetensorsFile(self._file(planned.role))
        parts: dict[str, Any] = {
            name.removeprefix(f"{planned.role}."): np.asarray(entry.read()) for name, entry in file.entries.items()
        }
        bias = parts.pop("bias", None)
        return Packed(planned.format, planned.shape, parts, bias).check(planned.role)  # type: ignore[arg-type]


@contextmanager
def opened_journal(dst: Path, key: dict[str, Any]) -> Iterator[Journal]:
    """The journal of the conversion to ``dst`` that ``key`` tells from any other; gone once all went well."""
    folder = dst.with_name(f".{dst.name}.partial")
    folder.mkdir(exist_ok=True)
    with (folder / "key.json").open("a+", encoding="utf-8") as file:
        if not _locked(file):
            raise LutraError(f"another conversion to {dst} is running")
        file.seek(0)
        if file.read() != json.dumps(key):
            for old in folder.glob("*.safetensors"):
                old.unlink()
            file.truncate(0)
            file.write(json.dumps(key))
            file.flush()
        yield Journal(folder)
    shutil.rmtree(folder)


def _locked(file: TextIO) -> bool:
    """Keep a file for this process until it is closed; False if another one has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(LOCKED)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def quantize(
    checkpoint: Checkpoint,
    arch: ModuleType,
    config: Any,
    plan: Sequence[Planned],
    method: ModuleType,
    journal: Journal,
    texts: Sequence[Sequence[int]] = (),
    announce: Callable[[str, Loss | None], None] = lambda role, loss: None,
) -> None:
    """Quantize the planned matrices that are not in the journal yet.

    plan: those matrices, their formats the wanted ones. texts: token ids for a method that is calibrated. announce:
    called with each role before its turn, and with its loss after it.

    Raises CorruptModelError for weights that are not finite, UnsupportedModelError for those that a format cannot hold.
    """
    wanted = {p.role: p for p in plan}
    crowd: list[tuple[Packed, Loss]] = []  # experts of the role at work

    def one(role: str, hessian: np.ndarray | None = None, expert: int | None = None) -> Packed:
        planned = wanted[role]
        if role not in journal:
            if not expert:
                announce(role, None)
            if expert is None:
                journal.write(role, *_quantized(checkpoint, planned, method, hessian))
            else:
                crowd.append(_quantized(checkpoint, planned.each[expert], method, hessian))
                if len(crowd) < len(planned.each):
                    return crowd[expert][0]
                journal.write(role, *_together(crowd))
                crowd.clear()
            checkpoint.release()
        if expert in (None, len(planned.each) - 1):
            announce(role, journal.loss(role))
        packed = journal.read(planned)
        return packed if expert is None else packed.experts[expert]

    if getattr(method, "CALIBRATED", False):
        calibrate(checkpoint, arch, config, wanted, texts, one, skip=lambda role: role in journal)
    else:
        made = ahead(lambda p: _quantized(checkpoint, p, method, None), (p for p in plan if p.role not in journal))
        for role in wanted:
            if role not in journal:
                announce(role, None)
                journal.write(role, *next(made))
                checkpoint.release()
            announce(role, journal.loss(role))


def _quantized(
    checkpoint: Checkpoint, planned: Planned, method: ModuleType, hessian: np.ndarray | None
) -> tuple[Packed, Loss]:
    if planned.each:
        return _together([_quantized(checkpoint, p, method, None) for p in planned.each])
    floats, bias = planned.floats(checkpoint)
    assert planned.format is not None
    unseen = getattr(method, "CALIBRATED", False) and hessian is None
    if unseen:
        method = method_for(planned.format)
    try:
        packed, loss = _packed(floats, planned.format, method, () if hessian is None else (hessian,))
    except _NotFinite:
        raise CorruptModelError(f"{planned.role} holds weights that are not finite numbers") from None
    except ValueError as error:
        raise UnsupportedModelError(f"{planned.role} cannot be stored in {planned.format}: {error}") from None
    return packed.with_bias(bias), replace(loss, rounded=int(unseen))


class _NotFinite(ValueError):
    """Among the weights are some that are no finite numbers."""


def _packed(floats: Unread, format: str, method: ModuleType, more: Sequence[np.ndarray] = ()) -> tuple[Packed, Loss]:
    """A matrix quantized and packed, rows by rows where the method allows it: then most of it stays in cache."""
    codec = formats.codec(format)
    lost: list[tuple[float, float]] = []

    def quantized(begin: int, end: int) -> Matrix:
        values = floats[begin:end]
        if not _are_finite(values):
            raise _NotFinite
        matrix = method.quantize(values, codec, *more)
        if not isinstance(matrix, np.ndarray):  # floats are rounded by pack
            lost.extend(_losses(values, matrix))
        return matrix  # type: ignore[no-any-return]

    by_rows = getattr(method, "BY_ROWS", False)
    packed = formats.pack(
        Unread(floats.shape, quantized, AT_ONCE) if by_rows else quantized(0, floats.shape[0]), format
    )
    error, whole = (math.fsum(sums) for sums in zip(*(lost or _losses(floats, packed.matrix)), strict=True))
    return packed, Loss(error, whole)  # the same sums in whatever order


def _together(each: Sequence[tuple[Packed, Loss]]) -> tuple[Packed, Loss]:
    """All experts of a mixture as one weight."""
    return experts.stacked((packed for packed, _ in each), len(each)), sum((loss for _, loss in each), Loss(0, 0))


def _are_finite(values: np.ndarray) -> bool:
    found: list[bool] = []
    rows = max(1, AT_ONCE // values.shape[1])
    in_pieces(lambda some: found.append(is_finite(values[some])), len(values), rows)
    return all(found)


def _losses(values: np.ndarray | Unread, matrix: Any) -> list[tuple[float, float]]:
    """The sums of squared errors, and of squares before, of some rows each."""
    lost: list[tuple[float, float]] = []

    def piece(some: slice) -> None:
        lost.append(native.squares(values[some], to_float32(matrix[some])))

    if isinstance(matrix, (np.ndarray, Coded, Planes, Codebook)):
        in_pieces(piece, values.shape[0], max(1, AT_ONCE // values.shape[1]))
    else:
        piece(slice(None))  # a product's rows are not to be had one by one
    return lost


def memory_of(method: ModuleType, planned: Planned) -> int:
    """Bytes that quantizing a matrix works with, about; those it is read from and those it becomes are not counted."""
    if planned.each:
        return max(memory_of(method, p) for p in planned.each)
    if getattr(method, "BY_ROWS", False):
        return 0  # some rows at a time
    rows, cols = planned.shape
    return int(method.memory(rows, cols, formats.codec(planned.format or "")))


def estimated_seconds(method: ModuleType, plan: Sequence[Planned]) -> float | None:
    """How long quantizing would take, about: smaller matrices of every shape are timed. None if texts decide it."""
    if getattr(method, "CALIBRATED", False):
        return None
    rng, total = np.random.default_rng(0), 0.0
    work: Callable[..., float] = getattr(method, "work", lambda rows, cols, codec: rows * cols)
    longest = LARGER if hasattr(method, "work") else SAMPLE
    each = [p for whole in plan for p in whole.each or (whole,)]
    for (format, (rows, cols)), count in Counter((p.format or "", p.shape) for p in each).items():
        codec, smaller = formats.codec(format), max(1.0, max(rows, cols) / longest)
        shape = [int(n / smaller) or 1 for n in (rows, cols)]
        if getattr(method, "BY_ROWS", False):
            shape = [min(rows, PIECES * threads.default() * max(1, AT_ONCE // cols)), cols]
        elif not hasattr(method, "work"):
            shape[0] = min(rows, shape[0] * threads.default())  # a piece for each thread
        values = rng.standard_normal(shape, np.float32)
        floats = Unread((shape[0], shape[1]), partial(_between, values))
        seconds = math.inf
        for _ in range(1 if hasattr(method, "work") else 3):  # a short time is best measured by the least of some
            started = time.perf_counter()
            _packed(floats, format, method)
            seconds = min(seconds, time.perf_counter() - started)
        total += count * seconds * work(rows, cols, codec) / work(*shape, codec)
    return total


def _between(values: np.ndarray, begin: int, end: int) -> np.ndarray:
    return values[begin:end]
