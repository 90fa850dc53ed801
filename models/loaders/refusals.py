"""Checkpoints that lutra knows by sight but cannot read: each is refused by its name.

Asked last, after every loader has declined, so that a new loader needs no edit here.
"""

from __future__ import annotations

from pathlib import Path

from lutra.models.loaders.checkpoint import Source
from lutra.models.loaders.mapped import first_bytes
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError

__all__ = ["refuse", "refuse_encoding"]

# What a matrix's tensors are called in ways of storing weights that no configuration need name.
NAMES = {
    ".Qidxs": "QuIP#",
    ".q_weight": "EXL2",
    ".trellis": "EXL3",
    ".codebooks": "AQLM",
    ".centroids": "VPTQ",
    ".dense_weights": "SpQR",
    ".W_q": "HQQ",
    ".weight._data": "quanto",
    ".weight:_data": "torchao",
}
FOREIGN_WEIGHTS = ("pytorch_model*.bin", "*.pth", "*.pt", "*.zip", "*.tar", "*.tar.*", "*.tgz", "*.7z")
TAR = 257  # where its mark is
ARCHIVES = (b"PK", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!")  # how others begin


def refuse(path: Path) -> None:
    """Raise UnsupportedModelError when ``path`` is, or has only, weights of a foreign container.

    CorruptModelError for a file of nothing.
    """
    if path.is_file():
        _refuse_file(path)
    if (path / "adapter_config.json").exists():
        raise UnsupportedModelError(
            f"{path} is an adapter (LoRA), which changes another model and is none itself",
            "Merge it into its model with peft: merge_and_unload() and save_pretrained().",
        )
    for pattern in FOREIGN_WEIGHTS:
        for file in sorted(path.glob(pattern)):
            _refuse_file(file)


def _refuse_file(path: Path) -> None:
    if path.stat().st_size == 0:
        raise CorruptModelError(f"{path} is empty", "Download it again.")
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise UnsupportedModelError(f"{path} is one file of a model", f"Give its directory: {path.parent}")
    start = first_bytes(path, 512)
    of_torch = start[:2] == b"PK" and b"data.pkl" in start  # its first record
    if not of_torch and (start.startswith(ARCHIVES) or start[TAR : TAR + 5] == b"ustar"):
        raise UnsupportedModelError(
            f"{path} is an archive, and lutra unpacks none", "Unpack it, and give the directory that was in it."
        )
    if of_torch or start[:2] == b"\x80\x02":
        raise UnsupportedModelError(
            f"{path} is a PyTorch file, of which lutra reads only a directory's pytorch_model.bin",
            "Load it with transformers and call save_pretrained: that writes safetensors.",
        )


def refuse_encoding(source: Source) -> None:
    """Raise UnsupportedModelError when the weights are stored in a low-bit way not read here."""
    if what := _encoding(source):
        raise UnsupportedModelError(
            f"{source.path} stores its weights as {what}, which lutra does not read",
            "Use a release in float16 or bfloat16, or one quantized by GPTQ, AWQ, llm-compressor or llama.cpp.",
        )


def _encoding(source: Source) -> str | None:
    if source.quantization:
        return f"{source.quantization.get('quant_method', 'quantized')!s:.40} tensors"
    endings = (name[at:] for name in source.entries for at in range(len(name)) if name[at] == ".")
    found = next((NAMES[ending] for ending in endings if ending in NAMES), None)
    return found and f"{found} tensors"
