"""llama2.c models: a header of seven int32 and every weight as float32, in one .bin file.

Version 0 ("legacy") has no magic number, so its file size must be exactly what its header implies.
Version 1 starts with "ak42". RoPE turns neighbours (2j, 2j+1): the weights stay as they are and
the configuration says ``rope_interleaved``. Source: legacy_export and version1_export in llama2.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lutra.models.loaders.checkpoint import Checkpoint, Entry
from lutra.models.loaders.mapped import MappedFile, first_bytes
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError

__all__ = ["claims", "read"]

MAGIC = struct.pack("<I", 0x616B3432)
V0_START, V1_START = 28, 256
LIMIT = 2**24  # no model is wider; what exceeds it is some other .bin file

PER_LAYER = {
    "attention_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
WHOLE = {
    "tok_embeddings": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "output": "lm_head.weight",
}
ATTENTION, FFN = ("wq", "wk", "wv", "wo"), ("w1", "w2", "w3")


@dataclass(frozen=True)
class Header:
    version: int
    tied: bool
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int

    @classmethod
    def parse(cls, start: bytes) -> Header | None:
        """The header in a file's first bytes, or None where they cannot be one."""
        version, at = 0, 0
        start = start.ljust(V1_START, b"\0")  # a short file then has sizes of zero
        if start[:4] == MAGIC:
            (version,), at = struct.unpack_from("<I", start, 4), 8
        *numbers, shared = struct.unpack_from("<7iB", start, at)
        tied = bool(shared) if version else numbers[5] > 0
        numbers[5] = abs(numbers[5])
        header = cls(version, tied, *numbers)
        sound = all(0 < n < LIMIT for n in numbers) and header._divides()
        return header if sound and (version > 0) == (at > 0) else None

    def _divides(self) -> bool:
        pairs = self.dim % (2 * self.n_heads) == 0
        return pairs and self.n_heads % self.n_kv_heads == 0

    def shape(self, part: str) -> tuple[int, ...]:
        """The shape of one tensor of llama2.c's name."""
        kv_dim = self.dim // self.n_heads * self.n_kv_heads
        shapes = {
            "tok_embeddings": (self.vocab_size, self.dim),
            "output": (self.vocab_size, self.dim),
            "wk": (kv_dim, self.dim),
            "wv": (kv_dim, self.dim),
            "wq": (self.dim, self.dim),
            "wo": (self.dim, self.dim),
            "w1": (self.hidden_dim, self.dim),
            "w2": (self.dim, self.hidden_dim),
            "w3": (self.hidden_dim, self.dim),
            "freqs": (2, self.seq_len, self.dim // self.n_heads // 2),
        }
        return shapes.get(part, (self.dim,))  # what remains are the norms

    def config(self) -> dict[str, Any]:
        """The configuration under Hugging Face's names; the constants are those of run.c."""
        return {
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "intermediate_size": self.hidden_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.dim // self.n_heads,
            "max_position_embeddings": self.seq_len,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "rope_interleaved": True,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "float32",
            "bos_token_id": 1,
            # Stories follow one another in training: a new BOS ends this one, as in run.c.
            "eos_token_id": [2, 1],
        }


def claims(path: Path) -> bool:
    """Whether ``path`` is a .bin file, or a directory of another kind than HF with such a model."""
    if path.is_dir():
        return not (path / "config.json").exists() and bool(_models(path))
    return path.suffix == ".bin" and first_bytes(path, 2) != b"PK"  # a zip is PyTorch's


def read(path: Path) -> Checkpoint:
    """Open the file, or the one model in the directory. Raises as ``open_checkpoint`` does."""
    file = MappedFile(_only_model(path) if path.is_dir() else path)
    header = Header.parse(file.read(0, V1_START))
    if header is None:
        raise UnsupportedModelError(f"{file.path} does not start as a llama2.c model does")
    if header.version > 1:
        raise UnsupportedModelError(
            f"{file.path} is a llama2.c model of version {header.version} (quantized)",
            "Export it again as version 0 or 1, which keep the weights in float32.",
        )
    entries = _entries(file, header)
    tokenizer = _tokenizer(file.path.parent, header.vocab_size)
    files = (lambda: {"tokenizer.model": tokenizer.read_bytes()}) if tokenizer else None
    return Checkpoint(path, "llama2c", header.config(), entries, (file,), tokenizer_files=files)


def _models(folder: Path) -> list[Path]:
    """The .bin files that start like a model; tokenizers are .bin files too."""
    files = sorted(folder.glob("*.bin"))
    return [path for path in files if Header.parse(first_bytes(path, V1_START))]


def _only_model(folder: Path) -> Path:
    models = _models(folder)
    if len(models) > 1:
        names = ", ".join(path.name for path in models)
        raise UnsupportedModelError(f"{folder} holds {len(models)} llama2.c models", f"Give one of the files: {names}")
    return models[0]


def _layout(header: Header) -> list[str]:
    """The tensors in file order, under llama2.c's names."""
    if header.version == 0:
        parts = ["tok_embeddings", "attention_norm", *ATTENTION, "ffn_norm", *FFN, "norm", "freqs"]
    else:
        parts = ["attention_norm", "ffn_norm", "norm", "tok_embeddings", *ATTENTION, *FFN]
    return parts if header.tied else [*parts, "output"]


def _entries(file: MappedFile, header: Header) -> dict[str, Entry]:
    offset = V1_START if header.version else V0_START
    _check_size(file, offset + sum(_size(header, part) for part in _layout(header)))
    entries: dict[str, Entry] = {}
    for part in _layout(header):
        shape = header.shape(part)
        for name in _names(part, header.n_layers):
            entries[name] = _entry(file, offset, shape)
            offset += 4 * prod(shape)
    entries.pop("freqs", None)  # the RoPE tables, which follow from the configuration
    return entries


def _size(header: Header, part: str) -> int:
    return 4 * prod(header.shape(part)) * (header.n_layers if part in PER_LAYER else 1)


def _check_size(file: MappedFile, expected: int) -> None:
    if expected > file.size:
        raise CorruptModelError(
            f"{file.path} is cut short: its header promises {expected - file.size:,} more bytes",
            "The download did not finish: download the file again.",
        )
    if expected < file.size:
        raise CorruptModelError(f"{file.path} is no llama2.c model: {file.size - expected:,} bytes follow its weights")


def _names(part: str, n_layers: int) -> list[str]:
    if part in PER_LAYER:
        return [f"model.layers.{i}.{PER_LAYER[part]}.weight" for i in range(n_layers)]
    return [WHOLE.get(part, part)]


def _entry(file: MappedFile, offset: int, shape: tuple[int, ...]) -> Entry:
    return Entry("F32", shape, lambda: file.array(offset, np.dtype("<f4"), shape))


def _tokenizer(folder: Path, vocab_size: int) -> Path | None:
    """The SentencePiece model beside the weights; tok<vocabulary>.model where there are several."""
    for name in ("tokenizer.model", f"tok{vocab_size}.model"):
        if (folder / name).exists():
            return folder / name
    found = list(folder.glob("tok*.model"))
    return found[0] if len(found) == 1 else None
