"""Directories that ``lutra convert`` wrote: a Hugging Face directory's files, weights as kernels want them."""

from __future__ import annotations

from pathlib import Path

from lutra.models.loaders.checkpoint import Checkpoint
from lutra.models.loaders.hf_files import CONFIG, open_weights, read_json
from lutra.runtime.errors import LutraError

__all__ = ["claims", "read"]


def claims(path: Path) -> bool:
    """Whether ``path`` is a directory whose configuration says that lutra wrote it."""
    try:
        return "lutra" in read_json(path / CONFIG)
    except LutraError:
        return False


def read(path: Path) -> Checkpoint:
    """Open the directory. Raises as ``open_checkpoint`` does."""
    config = read_json(path / CONFIG)
    files, entries = open_weights(path)
    metadata = {key: value for file in files for key, value in file.metadata.items()}
    return Checkpoint(path, "lutra", config, entries, files, metadata)
