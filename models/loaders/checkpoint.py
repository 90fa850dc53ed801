"""What every loader hands back: a configuration and lazily read tensors under logical names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from lutra.models.tokenizer import Tokenizer, load_tokenizer
from lutra.runtime.errors import CorruptModelError
from lutra.runtime.formats import Matrix, Unread

__all__ = ["Checkpoint", "Entry", "Source", "modules_with"]


@dataclass(frozen=True)
class Entry:
    """One logical tensor: what its headers say, and how to get its values.

    dtype: a name of ``tensor.DTYPES``; or, of a matrix that ``read`` gives as no array but Coded and the like, the
        format of ours that holds it exactly, "ternary" for any of those for ternary matrices.
    by_rows: gives a function that reads the rows from one to before another, without the others; None if that takes
        all of them.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Matrix]
    by_rows: Callable[[], Callable[[int, int], Matrix]] | None = None


@dataclass
class Source:
    """A directory as it is on disk, for the ``decode`` functions to recognise and rewrite."""

    path: Path
    config: dict[str, Any]
    entries: dict[str, Entry]
    kind: str = "dense"
    notes: list[str] = field(default_factory=list)  # which of several conventions it follows, for people

    @property
    def quantization(self) -> dict[str, Any]:
        """``quantization_config``, or {} without one. Raises CorruptModelError for a non-table."""
        value = self.config.get("quantization_config") or {}
        if not isinstance(value, dict):
            raise CorruptModelError(f"{self.path}: quantization_config is not a JSON object")
        return value


class Mapped(Protocol):
    path: Path

    def close(self) -> None: ...
    def release(self) -> None: ...
    def here_and_there(self) -> AbstractContextManager[None]: ...


class Checkpoint:
    """A checkpoint opened for reading. Nothing of a tensor is touched before ``tensor(name)``.

    path: the directory or file it was opened from.
    kind: how its weights are stored: "dense", "bitnet", "1bitllm", "llama2c", "lutra", ...
    config: the model's configuration under Hugging Face's names. ``model_type``, ``rope_scaling`` (a dict with
        ``rope_type``, or None), ``torch_dtype`` and ``tie_word_embeddings`` are always there, whichever
        layout the file had. Keys of ours: ``rope_interleaved`` is true where RoPE turns neighbours
        (2j, 2j+1) instead of the halves (j, j+D/2); ``norm_offset`` is what is added to Gemma's and Qwen3.5's
        norms, 1 unless a container has done it; ``linear_heads_tiled``, ``linear_rates_as_logarithms``,
        ``linear_qkvz_by_head`` and ``linear_gates_by_head`` say how a container stores Qwen3.5's and Qwen3-Next's
        (models/qwen3_5_text.py).
        A "lutra" checkpoint's configuration is left exactly as it is on disk.
    metadata: the strings a weight file carries about itself (safetensors ``__metadata__``).
    tokenizer_files: makes the tokenizer's files by name, such as "tokenizer.model", where they do not lie in ``path``
        as in a Hugging Face directory; else None. Raises as tokenizer() does.
    notes: which of several conventions the files turned out to follow, a sentence each, for people to read.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        config: dict[str, Any],
        entries: Mapping[str, Entry],
        files: tuple[Mapped, ...],
        metadata: Mapping[str, str] | None = None,
        tokenizer_files: Callable[[], Mapping[str, bytes]] | None = None,
        notes: Sequence[str] = (),
    ):
        self.path = path
        self.kind = kind
        self.config = config
        self.metadata = dict(metadata or {})
        self.tokenizer_files = tokenizer_files
        self.notes = tuple(notes)
        self._entries = entries
        self._files = files

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold its tensors."""
        return tuple(file.path for file in self._files)

    def names(self) -> list[str]:
        """The tensors' logical names, such as "model.layers.0.self_attn.q_proj.weight"."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's logical shape, from headers alone. Raises KeyError for an unknown name."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """ "F32", "F16", "BF16", "U8", ...; or the format of ours that holds it, or "ternary". Headers alone."""
        return self._entries[name].dtype

    def tensor(self, name: str) -> Matrix:
        """The tensor's values: a read-only array of ``shape(name)``, or Coded and the like.

        An array looks straight into the file (bfloat16 as ``formats.BF16``); anything else is made anew
        at every call, and none of it is kept. Raises KeyError for an unknown name,
        CorruptModelError for values that contradict the format, ModelClosedError after close().
        """
        return self._entries[name].read()

    def unread(self, name: str) -> Matrix:
        """The same tensor, but, where that can be, none of it read yet: ``Unread``. Raises as tensor() does, later."""
        entry = self._entries[name]
        if entry.by_rows is None:
            return entry.read()
        return Unread((entry.shape[0], entry.shape[1]), entry.by_rows())

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read anew at every call. Raises as load_tokenizer()."""
        return load_tokenizer(self.tokenizer_files() if self.tokenizer_files else self.path, self.config)

    def release(self) -> None:
        """Give back the memory that what was read of the files takes up; it is read again when it is needed."""
        for file in self._files:
            file.release()

    def close(self) -> None:
        """Let go of the files. Arrays already given stay valid. Closing twice is fine."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Checkpoint {self.kind} {self.path} with {len(self._entries)} tensors>"


def modules_with(verb: str) -> Iterator[ModuleType]:
    """The loaders that have a function of this name, so that a new file here is a new loader."""
    package = importlib.import_module(__package__)
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        if hasattr(module, verb):
            yield module
