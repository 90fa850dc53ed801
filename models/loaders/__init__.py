"""Readers of checkpoints: ``open_checkpoint(path)`` recognises what lies there.

One module per container (a module with ``claims(path)`` and ``read(path)``) and one per way of
storing weights inside a Hugging Face directory (a module with ``decode(source)``). Both kinds are
found by their functions: a new file here is a new loader.
"""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

from lutra.models.loaders import packed
from lutra.models.loaders.checkpoint import Checkpoint, Entry, modules_with
from lutra.models.loaders.refusals import refuse
from lutra.models.loaders.tensor import BF16, dtype_name, to_float32
from lutra.runtime.errors import ModelNotFoundError, UnsupportedModelError

__all__ = ["BF16", "Checkpoint", "Entry", "dtype_name", "open_checkpoint", "to_float32"]


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a Hugging Face directory, a directory that lutra wrote, a GGUF file or a llama2.c model.

    Only headers and configuration are read, and what decides a format: scales, zeros, some rows. Raises
    ModelNotFoundError where nothing lies at ``path``, UnsupportedModelError for a kind of checkpoint that lutra does
    not know how to run (named in the message), CorruptModelError for damaged or incomplete files.
    """
    path = Path(path)
    if not path.exists():
        raise ModelNotFoundError(f"there is no model at {path}")
    if not path.is_dir() and not path.is_file():  # a pipe would be waited for
        raise UnsupportedModelError(f"{path} is neither a directory nor a file on a disk", "lutra maps its models.")
    for container in chain([packed], modules_with("claims")):  # ours first: for it the others are not even imported
        if container.claims(path):
            checkpoint: Checkpoint = container.read(path)
            return checkpoint
    refuse(path)
    raise UnsupportedModelError(
        f"{path} is neither a Hugging Face model directory nor a GGUF or llama2.c model",
        "Give the directory that holds config.json and model.safetensors, a .gguf file, or a llama2.c .bin file.",
    )
