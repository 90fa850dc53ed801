"""Synthetic GGUF files: published shapes with random weights, for measuring the speed of programs that read GGUF.

A file's layer matrices are all of one type. Its output matrix is what llama.cpp's quantizer makes of one: Q6_K, where
rows are not whole blocks of it Q8_0, in a file of floats F16. Blocks are random but valid: every weight is finite and
small, and ternary types hold ternary weights.

Rows of a type are whole blocks. A shape whose rows are not is widened until they are, and ``Synthetic.label`` says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lutra.runtime.errors import LutraError

__all__ = ["PEERS", "Synthetic", "Type", "plan"]

ALIGN = 32
VERSION = 1  # of what is written, part of a file's name
SPARE = 1 << 30  # bytes of disk to leave free
_AT_ONCE = 1 << 26  # bytes made at a time


@dataclass(frozen=True, eq=False)
class Type:
    """A tensor type: its number, weights and bytes of a block, and the float16 fields of a block, by offset.

    codes: from where to where in a block bytes are four 2-bit codes, of which 3 is no ternary weight.
    """

    id: int
    weights: int
    nbytes: int
    fields: dict[int, float] = field(default_factory=dict)
    codes: tuple[int, int] = (0, 0)

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of that shape."""
        return prod(shape) // self.weights * self.nbytes


F32 = Type(0, 1, 4)
TYPES = {
    "F16": Type(1, 1, 2),
    "Q4_0": Type(2, 32, 18, {0: 0.004}),
    "Q8_0": Type(8, 32, 34, {0: 0.0003}),
    "Q2_K": Type(10, 256, 84, {80: 0.002, 82: 0.003}),
    "Q3_K": Type(11, 256, 110, {108: 0.0003}),
    "Q4_K": Type(12, 256, 144, {0: 0.0002, 2: 0.0015}),
    "Q5_K": Type(13, 256, 176, {0: 0.0001, 2: 0.0015}),
    "Q6_K": Type(14, 256, 210, {208: 0.0001}),
    "IQ4_NL": Type(20, 32, 18, {0: 0.0003}),
    "IQ4_XS": Type(23, 256, 136, {0: 0.00001}),
    "TQ1_0": Type(34, 256, 54, {52: 0.02}),
    "TQ2_0": Type(35, 256, 66, {64: 0.02}, codes=(0, 64)),
    "Q1_0": Type(41, 128, 18, {0: 0.02}),
    "Q2_0": Type(42, 64, 18, {0: 0.02}, codes=(2, 18)),
}
# What files are made of, and llama.cpp's number for such a file.
PEERS = {
    "TQ2_0": 37, "TQ1_0": 36, "Q4_0": 2, "Q2_K": 10, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "Q8_0": 7,
    "IQ4_NL": 25, "IQ4_XS": 30, "Q1_0": 40, "Q2_0": 41, "F16": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Synthetic:
    """A file to be written. label: what it holds; token_bytes: of the weights that generating a token reads."""

    name: str
    label: str
    type: str
    head: str
    metadata: dict[str, str | int | float]
    tensors: dict[str, tuple[Type, tuple[int, ...]]]

    @property
    def token_bytes(self) -> int:
        """Bytes of all tensors but an embedding of which a token reads one row."""
        looked_up = "token_embd.weight" if "output.weight" in self.tensors else ""
        return sum(type.size(shape) for name, (type, shape) in self.tensors.items() if name != looked_up)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self._header()) + sum(_up(type.size(shape), ALIGN) for type, shape in self.tensors.values())

    def cached(self, work: Path) -> Path:
        """The file in that directory, written if it is not there. LutraError if the disk is too full for it."""
        path = work / self.name
        if path.exists() and path.stat().st_size == self.nbytes:
            return path
        work.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(work).free
        if self.nbytes + SPARE > free:
            raise LutraError(
                f"{self.name} takes {self.nbytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {work}",
                "choose another directory with --work, or fewer peers",
            )
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as f:
                self.write(f)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def write(self, f: BinaryIO) -> None:
        """Write the file."""
        f.write(self._header())
        rng = np.random.default_rng(0)
        for type, shape in self.tensors.values():
            for part in _noise(rng, type, shape):
                f.write(part.tobytes())
            size = type.size(shape)
            f.write(bytes(_up(size, ALIGN) - size))

    def _header(self) -> bytes:
        parts = [b"GGUF", struct.pack("<Iqq", 3, len(self.tensors), len(self.metadata))]
        parts += [_string(key) + _value(value) for key, value in self.metadata.items()]
        offset = 0
        for name, (type, shape) in self.tensors.items():
            parts.append(_string(name) + struct.pack(f"<I{len(shape)}q", len(shape), *reversed(shape)))
            parts.append(struct.pack("<IQ", type.id, offset))
            offset += _up(type.size(shape), ALIGN)
        header = b"".join(parts)
        return header + bytes(_up(len(header), ALIGN) - len(header))


def plan(shape: str, config: dict[str, Any], type: str) -> Synthetic:
    """The file of a shape, given as config.json has it, with its layers in that type."""
    if type not in PEERS:
        raise LutraError(f"unknown peer {type!r}", f"choose from {', '.join(PEERS)}")
    wide = _widened(config, TYPES[type].weights)
    label = shape if wide == config else f"{shape} padded to {TYPES[type].weights}s"
    head = "F16" if type == "F16" else "Q8_0" if wide["hidden_size"] % TYPES["Q6_K"].weights else "Q6_K"
    metadata = _metadata(shape, wide, PEERS[type])
    tensors = _tensors(wide, TYPES[type], TYPES[head], TYPES[_lookup(type, wide)])
    sizes = [(name, t.id, dims) for name, (t, dims) in tensors.items()]
    digest = hashlib.sha256(json.dumps([VERSION, metadata, sizes]).encode()).hexdigest()[:8]
    return Synthetic(f"{shape}-{type}-{digest}.gguf", label, type, head, metadata, tensors)


def _lookup(type: str, config: dict[str, Any]) -> str:
    """The type of an embedding that is not the output matrix, too: llama.cpp's choice."""
    whole = config["hidden_size"] % TYPES["Q4_K"].weights == 0
    return "Q4_K" if type in ("TQ1_0", "TQ2_0", "Q2_0") and whole else type


def _widened(config: dict[str, Any], block: int) -> dict[str, Any]:
    """The shape with every row a whole number of blocks: hidden, inner, and all heads together."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    while heads * head_dim % block:
        head_dim += 2
    sizes = {key: _up(config[key], block) for key in ("hidden_size", "intermediate_size")}
    if _is_bitnet(config) and heads * head_dim != sizes["hidden_size"]:
        raise LutraError(f"llama.cpp's bitnet has no {heads} heads of {head_dim} at a size of {sizes['hidden_size']}")
    return config | sizes | ({"head_dim": head_dim} if "head_dim" in config else {})


def _is_bitnet(config: dict[str, Any]) -> bool:
    return config["model_type"] == "bitnet"


def _metadata(shape: str, config: dict[str, Any], file_type: int) -> dict[str, str | int | float]:
    """Every architecture but BitNet runs as a Llama: nearly the same work, and only speed is wanted."""
    arch, heads = "bitnet" if _is_bitnet(config) else "llama", config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    return {
        "general.architecture": arch,
        "general.name": f"{shape}, random weights",
        "general.file_type": file_type,
        "general.quantization_version": 2,
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-5)),
        f"{arch}.rope.freq_base": float(config.get("rope_theta", 10000.0)),
        f"{arch}.rope.dimension_count": head_dim,
        f"{arch}.vocab_size": config["vocab_size"],
        "tokenizer.ggml.model": "no_vocab",
    }


def _tensors(config: dict[str, Any], layers: Type, head: Type, lookup: Type) -> dict[str, Any]:
    hidden, inner, vocab = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    layer: dict[str, tuple[Type, tuple[int, ...]]] = {
        "attn_norm": (F32, (hidden,)),
        "attn_q": (layers, (q, hidden)),
        "attn_k": (layers, (kv, hidden)),
        "attn_v": (layers, (kv, hidden)),
        "attn_output": (layers, (hidden, q)),
        "ffn_norm": (F32, (hidden,)),
        "ffn_gate": (layers, (inner, hidden)),
        "ffn_up": (layers, (inner, hidden)),
        "ffn_down": (layers, (hidden, inner)),
    }
    if _is_bitnet(config):
        layer |= {"attn_sub_norm": (F32, (q,)), "ffn_sub_norm": (F32, (inner,))}
    tied = _is_bitnet(config) or config.get("tie_word_embeddings", False)
    tensors: dict[str, tuple[Type, tuple[int, ...]]] = {
        "token_embd.weight": (head if tied else lookup, (vocab, hidden))
    }
    for i in range(config["num_hidden_layers"]):
        tensors |= {f"blk.{i}.{name}.weight": tensor for name, tensor in layer.items()}
    tensors["output_norm.weight"] = (F32, (hidden,))
    return tensors if tied else tensors | {"output.weight": (head, (vocab, hidden))}


def _noise(rng: np.random.Generator, type: Type, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A tensor in parts of some megabytes: norms of ones, small floats, or random blocks."""
    blocks = prod(shape) // type.weights
    if type is F32:
        yield np.ones(shape, np.float32)
        return
    make: Callable[[int], np.ndarray] = _floats(rng) if type is TYPES["F16"] else lambda n: _blocks(rng, type, n)
    at_once = _AT_ONCE // type.nbytes
    for begin in range(0, blocks, at_once):
        yield make(min(at_once, blocks - begin))


def _floats(rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    some = (rng.standard_normal(1 << 18, np.float32) * np.float32(0.02)).astype(np.float16)
    return lambda n: np.resize(some, n)


def _blocks(rng: np.random.Generator, type: Type, n: int) -> np.ndarray:
    data = np.frombuffer(rng.bytes(n * type.nbytes), np.uint8).reshape(n, type.nbytes).copy()
    codes = data[:, slice(*type.codes)]
    codes[:] = _TERNARY[codes]
    for offset, value in type.fields.items():
        data[:, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
    return data


# For any byte, one whose four 2-bit codes are 0, 1 or 2.
_TERNARY = np.resize([b for b in range(256) if all(b >> s & 3 != 3 for s in (0, 2, 4, 6))], 256).astype(np.uint8)


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | int | float) -> bytes:
    """A value with its type: 8 string, 4 uint32, 6 float32."""
    if isinstance(value, str):
        return struct.pack("<i", 8) + _string(value)
    return struct.pack("<iI", 4, value) if isinstance(value, int) else struct.pack("<if", 6, value)
