"""Checkpoints that lutra knows by sight but cannot read: each is refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from lutra.runtime.errors import UnsupportedModelError

__all__ = ["claims", "read", "refuse_weight_files"]

GGUF_MAGIC = b"GGUF"
ZIP_MAGIC = b"PK\x03\x04"


def claims(path: Path) -> bool:
    """Whether ``path`` is a file of a foreign container."""
    return path.is_file() and _container(path) is not None


def read(path: Path) -> NoReturn:
    """Raise UnsupportedModelError that names the container of the file ``path``."""
    what, hint = _container(path) or ("something unknown", None)
    raise UnsupportedModelError(f"{path} is {what}, which lutra does not read", hint)


def _container(path: Path) -> tuple[str, str] | None:
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix == ".safetensors" or path.name == "config.json":
        return "one file of a model", f"Give its directory: {path.parent}"
    if start == GGUF_MAGIC:
        return "a GGUF file", "Give the Hugging Face directory of the model instead."
    if start == ZIP_MAGIC:
        return "a PyTorch pickle", "Save the model as safetensors."
    return None


def refuse_weight_files(path: Path) -> None:
    """Raise UnsupportedModelError when the directory's only weights are of a foreign container."""
    for pattern in ("*.gguf", "pytorch_model*.bin", "*.pth", "*.pt"):
        for file in sorted(path.glob(pattern)):
            read(file)
