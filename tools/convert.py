"""Convert a checkpoint to lutra's own packed directory, which starts at once because it is mapped as it is.

One weight is in memory at a time. The directory appears under its name whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lutra.models import weights
from lutra.models.loaders import Checkpoint, open_checkpoint, packed
from lutra.models.loaders.safetensors import write_safetensors
from lutra.models.loaders.tensor import DTYPES as TENSOR_TYPES
from lutra.models.weights import Planned, Weight
from lutra.runtime.errors import LutraError, UnsupportedModelError
from lutra.runtime.model import architecture
from lutra.runtime.threads import ahead
from lutra.tools.calibrate import Calibration
from lutra.tools.quantize import Journal, Loss, estimated_seconds, memory_of, opened_journal
from lutra.tools.quantize import quantize as quantize_all
from lutra.tools.quantizers import method_for

__all__ = ["EMBED_TYPES", "Report", "Tensor", "convert"]

EMBED_TYPES = {"f32": "f32", "f16": "f16", "bf16": "bf16", "q8": "q8", "q6": "q6g64", "q4": "q4g32"}  # to formats
TERNARY_TYPES = ("t5", "t2")
PIECES = 6 << 20  # bytes, about, of the pieces that a weight is worked on in

# What is copied as it is: the tokenizer, how to sample and to chat, and whose work it is.
COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "README*",
    "LICENSE*",
    "NOTICE*",
)
DTYPES: dict[type, str] = {
    np.uint8: "U8",
    np.int8: "I8",
    np.uint16: "U16",
    np.int32: "I32",
    np.float16: "F16",
    np.float32: "F32",
}


@dataclass(frozen=True)
class Tensor:
    """One weight: the index-th of count, in its format ("f32" for a vector), and the bytes it takes.

    error: what quantizing it lost, as a share of its sum of squares; None before that, or where nothing was quantized.
    """

    index: int
    count: int
    role: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    error: float | None = None


@dataclass(frozen=True)
class Report:
    """What a conversion did, or with ``dry_run`` would do. nbytes: of the weights; source_nbytes: of the files read.

    formats: how many bytes are stored in each format. error: what quantizing lost of all it quantized, as a Tensor's.
    memory: bytes that are taken while the weight that needs most is converted, about: those read of the source, those
    that it becomes, and those that its method works with. estimate: seconds that quantizing would
    take, about, where nothing was written and the method looks at the weights alone. warnings: sentences for people.
    """

    tensors: tuple[Tensor, ...]
    n_params: int
    nbytes: int
    source_nbytes: int
    seconds: float
    formats: dict[str, int]
    memory: int
    error: float | None = None
    estimate: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes on average."""
        return 8 * self.nbytes / self.n_params


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    *,
    embed_type: str | None = None,
    ternary_type: str | None = None,
    quantize: str | None = None,
    method: str | None = None,
    calibration: Calibration | None = None,
    force: bool = False,
    progress: Callable[[Tensor], None] | None = None,
) -> Report:
    """Write the checkpoint at ``src`` as a packed directory ``dst``; with ``dst`` None only report what it would be.

    Nothing is lost: ternary weights stay ternary, others keep their type. ``embed_type`` stores the embedding and
    output matrices in one of EMBED_TYPES instead; ``ternary_type`` is one of TERNARY_TYPES, the one that this CPU runs
    best if None. ``force`` replaces a ``dst`` that an earlier conversion wrote.
    ``progress`` is called before each weight is packed. The source is only read.

    ``quantize``: the format that all other matrices are quantized to, by ``method``, one of quantizers.methods(), or
    the usual one for the format; embedding and output then are "q8" unless ``embed_type`` says otherwise.
    ``calibration``: the text that a calibrated method needs. ``progress`` is called after each quantized weight, too,
    with its error. An interrupted run leaves its finished weights in a hidden folder beside ``dst``, and the same call
    goes on from there.

    Raises as open_checkpoint() does; UnsupportedModelError for a model that is converted already, or a format that
    there is no method for; LutraError if ``dst`` exists, or the disk is full or refuses; ValueError for another type.
    Then there is no ``dst``.
    """
    if embed_type not in (None, *EMBED_TYPES):
        raise ValueError(f"embed_type is one of {', '.join(EMBED_TYPES)}, not {embed_type!r}")
    if ternary_type not in (None, *TERNARY_TYPES):
        raise ValueError(f"ternary_type is one of {', '.join(TERNARY_TYPES)}, not {ternary_type!r}")
    started = time.perf_counter()
    src, dst = Path(src), None if dst is None else Path(dst)
    how = method_for(quantize, method) if quantize else None
    with open_checkpoint(src) as checkpoint:
        if checkpoint.kind == "lutra":
            hint = "quantize the checkpoint that it was made from" if quantize else f"lutra run {src}"
            raise UnsupportedModelError(f"{src} is converted already", hint)
        arch = architecture(checkpoint.config)
        config = arch.Config.read(checkpoint.config)
        embed = EMBED_TYPES[embed_type or "q8"] if embed_type or quantize else None
        names = weights.names_of(arch, config)
        plan = weights.plan_roles(checkpoint, names, config.layers, embed, ternary_type, quantize)
        weights.by_layer({p.role: p for p in plan}, arch, config)  # refuses shapes that the configuration does not mean
        made, trouble = _made_files(checkpoint)
        lossy = [p for p in plan if p.format and not weights.is_kept(p.role)] if quantize else []
        counter = _Counter(plan, progress)
        if dst is not None and how is None:
            with _appearing(dst, force) as folder:
                _require_space(folder, counter.nbytes)
                _write(checkpoint, plan, made, folder, counter)
        elif dst is not None and how is not None:
            _refuse_existing(dst, force)
            texts = calibration.texts(checkpoint, config.n_ctx) if calibration else []
            key = {"source": _identity(checkpoint), "format": quantize, "method": how.__name__, "texts": _digest(texts)}
            with opened_journal(dst, key) as journal, _appearing(dst, force) as folder:
                _require_space(folder, counter.nbytes + sum(p.nbytes for p in lossy))
                quantize_all(checkpoint, arch, config, lossy, how, journal, texts, counter)
                _write(checkpoint, plan, made, folder, counter, journal)
        return counter.report(
            source_nbytes=sum(file.stat().st_size for file in checkpoint.weight_files),
            seconds=time.perf_counter() - started,
            memory=PIECES + _most(checkpoint, plan, lossy, how),
            estimate=estimated_seconds(how, lossy) if how and dst is None else None,
            warnings=(*_warnings(checkpoint, lossy), *counter.warnings(), *trouble),
        )


class _Counter:
    """The weights one by one, as they are announced and as they turn out."""

    def __init__(self, plan: list[Planned], progress: Callable[[Tensor], None] | None):
        self._progress = progress
        self._loss = Loss(0, 0)
        self._known = {
            p.role: Tensor(index, len(plan), p.role, p.shape, p.format or "f32", p.nbytes)
            for index, p in enumerate(plan)
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.nbytes for tensor in self._known.values())

    def __call__(self, role: str, loss: Loss | None = None) -> None:
        """Announce a weight; or, with its loss, that it has been quantized."""
        if loss:
            self._loss += loss
            self._known[role] = replace(self._known[role], error=loss.relative)
        if self._progress:
            self._progress(self._known[role])

    def warnings(self) -> Iterator[str]:
        """What did not go as it should."""
        if rounded := self._loss.rounded:
            yield f"{rounded} experts were only rounded: fewer of the text's tokens chose them than they have columns"

    def report(self, **rest: Any) -> Report:
        """All of them."""
        tensors = tuple(self._known.values())
        formats: Counter[str] = Counter()
        for tensor in tensors:
            formats[tensor.format] += tensor.nbytes
        n_params, error = sum(prod(t.shape) for t in tensors), self._loss.relative if self._loss.whole else None
        return Report(tensors, n_params, self.nbytes, formats=dict(formats), error=error, **rest)


def _warnings(checkpoint: Checkpoint, lossy: list[Planned]) -> Iterator[str]:
    stored = {checkpoint.dtype(weights.tensor_of(stem)) for p in lossy for stem in p.stems}
    if rounded := sorted(stored - set(TENSOR_TYPES)):
        yield f"the source is low-bit already ({', '.join(rounded)}): quantizing it again loses more"


def _most(checkpoint: Checkpoint, plan: list[Planned], lossy: list[Planned], how: ModuleType | None) -> int:
    """The most that is held together: a weight; or two, as one is quantized while the last one is written."""
    alone = max(_memory(checkpoint, p, how if p in lossy else None) for p in plan)
    if how is None or getattr(how, "CALIBRATED", False):
        return alone
    each = [_memory(checkpoint, p, how) for p in lossy]
    return max([alone, *map(sum, pairwise(each))])


def _memory(checkpoint: Checkpoint, planned: Planned, how: ModuleType | None) -> int:
    names = [weights.tensor_of(stem) for stem in planned.stems]
    read = sum(weights.nbytes_of(checkpoint.dtype(name), checkpoint.shape(name)) for name in names)
    made = 0 if planned.mapped and not how else planned.nbytes
    return read + made + (memory_of(how, planned) if how else 0)


def _identity(checkpoint: Checkpoint) -> list[Any]:
    """What changes when the source does."""
    src = checkpoint.path
    files = sorted(file for file in src.iterdir() if file.is_file()) if src.is_dir() else checkpoint.weight_files
    return [str(src.resolve()), *([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files)]


def _digest(texts: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _write(
    checkpoint: Checkpoint,
    plan: list[Planned],
    made: Mapping[str, bytes],
    folder: Path,
    announce: Callable[[str], None],
    journal: Journal | None = None,
) -> None:
    packer = _Packer(checkpoint, plan, announce, journal)
    tensors = [
        (name, DTYPES[dtype], shape, partial(packer.read, name))
        for planned in plan
        for name, (dtype, shape) in planned.parts().items()
    ]
    metadata = {"format": "pt", "lutra": weights.header_of(plan)}
    write_safetensors(folder / "model.safetensors", tensors, metadata)
    config = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
    config["lutra"] = {"format_version": weights.VERSION}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _copy_files(checkpoint, made, folder)


class _Packer:
    """Packs weights ahead of the file's writer, and keeps what it asks for last: tensors that fill no cache lines.

    Weights that are in the journal are packed already.
    """

    def __init__(
        self, checkpoint: Checkpoint, plan: list[Planned], announce: Callable[[str], None], journal: Journal | None
    ):
        self.checkpoint, self.announce, self.journal = checkpoint, announce, journal
        self.packed = zip(plan, ahead(self._packed, plan), strict=True)
        self.waiting: dict[str, np.ndarray] = {}

    def read(self, name: str) -> np.ndarray:
        """One tensor of the weights."""
        while name not in self.waiting:
            planned, packed = next(self.packed)
            if not self._is_known(planned):
                self.announce(planned.role)
            self.waiting.update(weights.tensors_of(planned.role, packed))
            self.checkpoint.release()
        return self.waiting.pop(name)

    def _is_known(self, planned: Planned) -> bool:
        return self.journal is not None and planned.role in self.journal

    def _packed(self, planned: Planned) -> Weight:
        if self.journal and self._is_known(planned):
            return self.journal.read(planned)
        return planned.pack(self.checkpoint)


def _made_files(checkpoint: Checkpoint) -> tuple[Mapping[str, bytes], list[str]]:
    """The tokenizer's files that the loader makes, and what people should know of those it cannot make."""
    try:
        return (checkpoint.tokenizer_files() if checkpoint.tokenizer_files else {}), []
    except UnsupportedModelError as error:
        return {}, [f"the tokenizer is left out: {error}"]


def _copy_files(checkpoint: Checkpoint, made: Mapping[str, bytes], folder: Path) -> None:
    for name, content in made.items():
        (folder / name).write_bytes(content)
    source = checkpoint.path
    for pattern in COPIED if source.is_dir() else ():  # what lies beside a single file may be anybody's
        for file in source.glob(pattern):
            target = folder / file.relative_to(source)
            if file.is_file() and not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def _require_space(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise LutraError(
            f"the converted model needs {nbytes / 1e6:,.1f} MB and {folder.parent} has {free / 1e6:,.1f} MB free",
            "free some space or write to another disk",
        )


@contextmanager
def _appearing(dst: Path, force: bool) -> Iterator[Path]:
    """A new folder that becomes ``dst`` if all goes well, and is gone if anything does not."""
    _refuse_existing(dst, force)
    temporary = dst.with_name(f".{dst.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        _move(temporary, dst, force)
    except (OSError, LutraError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise LutraError(f"{dst} cannot be written: {cause.strerror or cause}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_existing(dst: Path, force: bool) -> None:
    if not dst.parent.is_dir():
        raise LutraError(f"there is no folder {dst.parent} to write to", f"mkdir -p {dst.parent}")
    if not os.path.lexists(dst):
        return
    if not force:
        raise LutraError(f"{dst} exists already", "choose another name, or --force to replace it")
    if dst.is_symlink() or not packed.claims(dst):
        raise LutraError(f"{dst} was not written by lutra, so --force does not replace it", "remove it yourself")


def _move(temporary: Path, dst: Path, force: bool) -> None:
    """Give the finished folder its name; an older one goes away only then."""
    old = temporary.with_suffix(".old")
    try:
        if force and packed.claims(dst):
            os.rename(dst, old)
        os.rename(temporary, dst)
    except OSError as error:
        if old.exists() and not dst.exists():
            os.rename(old, dst)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise LutraError(f"{dst} was written by somebody else meanwhile") from None
        raise
    finally:
        if dst.exists():
            shutil.rmtree(old, ignore_errors=True)
