"""Convert a checkpoint to lutra's own packed directory, which starts at once because it is mapped as it is.

One weight is in memory at a time. The directory appears under its name whole or not at all.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lutra.models import weights
from lutra.models.loaders import Checkpoint, open_checkpoint
from lutra.models.loaders.safetensors import write_safetensors
from lutra.models.weights import Planned
from lutra.runtime.errors import LutraError, UnsupportedModelError
from lutra.runtime.model import architecture

__all__ = ["EMBED_TYPES", "Report", "Tensor", "convert"]

EMBED_TYPES = {"f32": "f32", "f16": "f16", "bf16": "bf16", "q8": "q8", "q6": "q6g64", "q4": "q4g32"}  # to formats
TERNARY_TYPES = ("t5", "t2")

# What is copied as it is: the tokenizer, how to sample and to chat, and whose work it is.
COPIED = (
    "tokenizer.json",
    "tokenizer.model",
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
    """One weight: the index-th of count, in its format ("f32" for a vector), and the bytes it takes."""

    index: int
    count: int
    role: str
    shape: tuple[int, ...]
    format: str
    nbytes: int


@dataclass(frozen=True)
class Report:
    """What a conversion did, or with ``dry_run`` would do. nbytes: of the weights; source_nbytes: of the files read.

    formats: how many bytes are stored in each format.
    """

    tensors: tuple[Tensor, ...]
    n_params: int
    nbytes: int
    source_nbytes: int
    seconds: float
    formats: dict[str, int]

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
    force: bool = False,
    progress: Callable[[Tensor], None] | None = None,
) -> Report:
    """Write the checkpoint at ``src`` as a packed directory ``dst``; with ``dst`` None only report what it would be.

    Nothing is lost: ternary weights stay ternary, others keep their type. ``embed_type`` stores the embedding and
    output matrices in one of EMBED_TYPES instead; ``ternary_type`` is one of TERNARY_TYPES, the one that this CPU runs
    best if None. ``force`` replaces a ``dst`` that an earlier conversion wrote.
    ``progress`` is called before each weight is packed. The source is only read.

    Raises as open_checkpoint() does; UnsupportedModelError for a model that is converted already; LutraError if
    ``dst`` exists, or the disk is full or refuses; ValueError for another type. Then there is no ``dst``.
    """
    if embed_type not in (None, *EMBED_TYPES):
        raise ValueError(f"embed_type is one of {', '.join(EMBED_TYPES)}, not {embed_type!r}")
    if ternary_type not in (None, *TERNARY_TYPES):
        raise ValueError(f"ternary_type is one of {', '.join(TERNARY_TYPES)}, not {ternary_type!r}")
    started = time.perf_counter()
    src = Path(src)
    with open_checkpoint(src) as checkpoint:
        if checkpoint.kind == "lutra":
            raise UnsupportedModelError(f"{src} is converted already", f"lutra run {src}")
        arch = architecture(checkpoint.config)
        config = arch.Config.read(checkpoint.config)
        embed = EMBED_TYPES[embed_type] if embed_type else None
        plan = weights.plan_roles(checkpoint, arch.NAMES, config.layers, embed, ternary_type)
        weights.by_layer({p.role: p for p in plan}, arch, config)  # refuses shapes that the configuration does not mean
        tensors = tuple(_tensors(plan))
        if dst is not None:
            with _appearing(Path(dst), force) as folder:
                _require_space(folder, sum(t.nbytes for t in tensors))
                _write(checkpoint, plan, folder, _announcer(tensors, progress))
    return _report(tensors, _source_size(src), time.perf_counter() - started)


def _tensors(plan: list[Planned]) -> Iterator[Tensor]:
    for index, p in enumerate(plan):
        yield Tensor(index, len(plan), p.role, p.shape, p.format or "f32", p.nbytes)


def _report(tensors: tuple[Tensor, ...], source_nbytes: int, seconds: float) -> Report:
    formats: Counter[str] = Counter()
    for tensor in tensors:
        formats[tensor.format] += tensor.nbytes
    n_params = sum(prod(t.shape) for t in tensors)
    return Report(tensors, n_params, formats.total(), source_nbytes, seconds, dict(formats))


def _source_size(src: Path) -> int:
    files = [src] if src.is_file() else [*src.glob("model*.safetensors")] or [*src.glob("*.bin")]
    return sum(file.stat().st_size for file in files)


def _announcer(tensors: tuple[Tensor, ...], progress: Callable[[Tensor], None] | None) -> Callable[[str], None]:
    by_role = {t.role: t for t in tensors}
    return lambda role: progress(by_role[role]) if progress else None


def _write(checkpoint: Checkpoint, plan: list[Planned], folder: Path, announce: Callable[[str], None]) -> None:
    packer = _Packer(checkpoint, announce)
    tensors = [
        (name, DTYPES[dtype], shape, packer.reader(planned, name))
        for planned in plan
        for name, (dtype, shape) in planned.parts().items()
    ]
    metadata = {"format": "pt", "lutra": weights.header_of(plan)}
    write_safetensors(folder / "model.safetensors", tensors, metadata)
    config = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
    config["lutra"] = {"format_version": weights.VERSION}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _copy_files(checkpoint, folder)


class _Packer:
    """Packs each weight when the file's writer reaches its first tensor, and keeps only what is not written yet."""

    def __init__(self, checkpoint: Checkpoint, announce: Callable[[str], None]):
        self.checkpoint, self.announce = checkpoint, announce
        self.waiting: dict[str, np.ndarray] = {}

    def reader(self, planned: Planned, name: str) -> Callable[[], np.ndarray]:
        """A function that gives one tensor of a weight."""

        def read() -> np.ndarray:
            if name not in self.waiting:
                self.announce(planned.role)
                self.checkpoint.release()
                self.waiting.update(weights.tensors_of(planned.role, planned.pack(self.checkpoint)))
            return self.waiting.pop(name)

        return read


def _copy_files(checkpoint: Checkpoint, folder: Path) -> None:
    if checkpoint.tokenizer_file is not None:
        shutil.copyfile(checkpoint.tokenizer_file, folder / "tokenizer.model")
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
            f"the converted model needs {nbytes / 1e9:.2f} GB and {folder.parent} has {free / 1e9:.2f} GB free",
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
    if dst.is_symlink() or not _is_ours(dst):
        raise LutraError(f"{dst} was not written by lutra, so --force does not replace it", "remove it yourself")


def _is_ours(dst: Path) -> bool:
    try:
        config: Any = json.loads((dst / "config.json").read_bytes())
        return "lutra" in config
    except (OSError, ValueError, TypeError):
        return False


def _move(temporary: Path, dst: Path, force: bool) -> None:
    """Give the finished folder its name; an older one goes away only then."""
    old = temporary.with_suffix(".old")
    try:
        if force and _is_ours(dst):
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
