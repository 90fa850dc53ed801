"""What a checkpoint is, from its headers alone: its shapes, how they are stored, and what it takes to run it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from lutra.models import weights
from lutra.models.loaders import Checkpoint, open_checkpoint
from lutra.models.tokenizer import Tokenizer
from lutra.models.weights import Planned
from lutra.runtime import formats, memory
from lutra.runtime.cache import memory_bytes, position_bytes
from lutra.runtime.errors import LutraError, ModelNotFoundError, UnsupportedModelError
from lutra.runtime.formats import Packed
from lutra.runtime.model import architecture

__all__ = ["Memory", "Report", "Weights", "describe"]


@dataclass(frozen=True)
class Weights:
    """Weights of one role, shape and format: as many as there are layers of that kind.

    role: "layers.{}.qkv". stored: what the checkpoint's tensors are, as "BF16" or "ternary". format: how lutra holds
    them; "" of a model that it cannot run. nbytes: of all of them.
    """

    role: str
    count: int
    shape: tuple[int, ...]
    stored: str
    format: str
    nbytes: int

    @property
    def n_params(self) -> int:
        """Elements of all of them."""
        return self.count * prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits that an element takes."""
        return 8 * self.nbytes / max(self.n_params, 1)


@dataclass(frozen=True)
class Memory:
    """Bytes that a session of n_ctx tokens takes. weights: mapped if a conversion wrote them, else packed at load."""

    n_ctx: int
    kv_type: str
    weights: int
    cache: int
    available: int | None

    @property
    def total(self) -> int:
        """Weights and cache; the scratch memory of a step, some megabytes, comes on top."""
        return self.weights + self.cache


@dataclass(frozen=True)
class Report:
    """What describe() found. config: the shape as the architecture reads it; {} if lutra cannot run the model.

    refusal: why it cannot, or None. conventions, warnings: sentences for people. tokenizer: its kind, vocabulary size,
    and the ids that begin and end a text; None where there is none.
    """

    path: str
    kind: str
    architecture: str
    refusal: str | None
    config: dict[str, Any]
    weights: tuple[Weights, ...]
    conventions: tuple[str, ...]
    tokenizer: dict[str, Any] | None
    chat_template: bool
    memory: Memory | None
    warnings: tuple[str, ...]

    @property
    def n_params(self) -> int:
        """Elements of all weights; a tied matrix counts once."""
        return sum(w.n_params for w in self.weights)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, as lutra holds them."""
        return sum(w.nbytes for w in self.weights)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes on average."""
        return 8 * self.nbytes / max(self.n_params, 1)

    def json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        whole = asdict(self)
        for each, w in zip(whole["weights"], self.weights, strict=True):
            each["bits_per_weight"] = round(w.bits_per_weight, 4)
        if self.memory:
            whole["memory"]["total"] = self.memory.total
        return {**whole, "n_params": self.n_params, "nbytes": self.nbytes,
                "bits_per_weight": round(self.bits_per_weight, 4)}  # fmt: skip


def describe(path: str | os.PathLike[str], *, n_ctx: int | None = None, kv_type: str = "f16") -> Report:
    """Describe the checkpoint at ``path``; of its weights, only the headers are read.

    n_ctx: the context to say the memory for; None: all that the model knows. kv_type: how the cache stores keys and
    values. A sound model that lutra cannot run is described as its files have it, with the refusal.

    Raises as open_checkpoint() does.
    """
    with open_checkpoint(path) as checkpoint:
        try:
            arch = architecture(checkpoint.config)
            config = arch.Config.read(checkpoint.config)
            found = _roles(checkpoint, arch, config)
            weights.by_layer(found, arch, config)
            refusal, grouped = None, _grouped(checkpoint, arch, config, found)
        except UnsupportedModelError as error:
            config, refusal, grouped = None, str(error), _as_stored(checkpoint)
        tokenizer, trouble = _tokenizer(checkpoint)
        needed = _memory(config, sum(w.nbytes for w in grouped), n_ctx, kv_type) if config else None
        return Report(
            path=str(checkpoint.path),
            kind=checkpoint.kind,
            architecture=str(checkpoint.config.get("model_type")),
            refusal=refusal,
            config=_plain(config) if config else {},
            weights=grouped,
            conventions=tuple(_conventions(checkpoint, config, grouped)),
            tokenizer=_about(tokenizer) if tokenizer else None,
            chat_template=bool(tokenizer and tokenizer.chat_template),
            memory=needed,
            warnings=tuple([*trouble, *_warnings(checkpoint, config, grouped, tokenizer, needed)]),
        )


def _roles(checkpoint: Checkpoint, arch: ModuleType, config: Any) -> Mapping[str, weights.Weight | Planned]:
    if checkpoint.kind == "lutra":
        return weights.read_packed(checkpoint)
    return {p.role: p for p in weights.plan_roles(checkpoint, weights.names_of(arch, config), config.layers)}


def _grouped(
    checkpoint: Checkpoint, arch: ModuleType, config: Any, found: Mapping[str, weights.Weight | Planned]
) -> tuple[Weights, ...]:
    """The weights of all layers, those alike as one."""
    each = []
    for pattern in arch.shapes(config):
        for layer in range(config.layers) if "{}" in pattern else (0,):
            weight = found[pattern.format(layer)]
            format = "f32" if isinstance(weight, np.ndarray) else weight.format or "f32"
            stored = _stored(checkpoint, weight) if isinstance(weight, Planned) else format
            role = re.sub(r"(?<=\.)\d+(?=\.)", "{}", pattern)
            each.append((role, tuple(weight.shape), stored, format, _nbytes(weight)))
    return _counted(each)


def _stored(checkpoint: Checkpoint, planned: Planned) -> str:
    return " + ".join(dict.fromkeys(checkpoint.dtype(weights.tensor_of(stem)) for stem in planned.stems))


def _nbytes(weight: weights.Weight | Planned) -> int:
    bias = weight.bias.nbytes if isinstance(weight, Packed) and weight.bias is not None else 0
    return weight.nbytes + bias


def _as_stored(checkpoint: Checkpoint) -> tuple[Weights, ...]:
    """The tensors by their own names, for a model whose roles nobody knows."""
    each = []
    for name in checkpoint.names():
        shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
        each.append((re.sub(r"(?<=\.)\d+(?=\.)", "{}", name), shape, dtype, "", weights.nbytes_of(dtype, shape)))
    return _counted(each)


def _counted(each: Iterable[tuple[str, tuple[int, ...], str, str, int]]) -> tuple[Weights, ...]:
    groups: dict[tuple[str, tuple[int, ...], str, str], list[int]] = {}
    for *key, nbytes in each:
        groups.setdefault(tuple(key), []).append(nbytes)  # type: ignore[arg-type]
    return tuple(
        Weights(role, len(sizes), shape, stored, format, sum(sizes))
        for (role, shape, stored, format), sizes in groups.items()
    )


def _plain(config: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if isinstance(value, (str, int, float, bool))}


def _tokenizer(checkpoint: Checkpoint) -> tuple[Tokenizer | None, list[str]]:
    """The tokenizer, or what is wrong with it."""
    try:
        return checkpoint.tokenizer(), []
    except ModelNotFoundError:
        return None, ["there is no tokenizer: only token ids go in"]
    except LutraError as error:
        return None, [f"the tokenizer cannot be read: {error}"]


def _about(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "kind": tokenizer.kind,
        "vocab": tokenizer.vocab_size,
        "bos": tokenizer.bos_id,
        "eos": sorted(tokenizer.eos_ids),
    }


def _memory(config: Any, nbytes: int, n_ctx: int | None, kv_type: str) -> Memory:
    n_ctx = config.n_ctx if n_ctx is None else n_ctx
    cache = n_ctx * position_bytes(kv_type, config.kv_shapes)
    cache += memory_bytes(config.recurrent_floats)
    return Memory(n_ctx, kv_type, nbytes, cache, memory.available())


def _conventions(checkpoint: Checkpoint, config: Any, grouped: tuple[Weights, ...]) -> Iterable[str]:
    yield from checkpoint.notes
    if config is None:
        return
    own_head = any(w.role == "head" for w in grouped)
    yield "the output matrix is its own" if own_head else "the output matrix is the embedding (tied)"
    c = config.DEFAULTS | checkpoint.config
    if len(config.frequency):
        pairs = "neighbours (2j, 2j+1)" if c.get("rope_interleaved") else "halves (j, j + D/2)"
        kind = (c.get("rope_scaling") or {}).get("rope_type", "none")
        yield f"RoPE turns {pairs}, base {c.get('rope_theta', 10000.0):g}, scaling {kind}"
    seen = dict.fromkeys(_activations(w.format) for w in grouped if "{}" in w.role and len(w.shape) > 1)
    yield f"layers see their activations as {' and '.join(seen)}"


def _activations(format: str) -> str:
    codec = formats.codec(format)
    if any(hasattr(codec, made) for made in ("chains", "stack", "rotation")):
        return f"what {format} is made of does"
    if codec.ACT_GROUP is None:
        return "floats"
    return f"int8 with a scale per {f'{codec.ACT_GROUP} columns' if codec.ACT_GROUP else 'token'}"


def _warnings(
    checkpoint: Checkpoint,
    config: Any,
    grouped: tuple[Weights, ...],
    tokenizer: Tokenizer | None,
    needed: Memory | None,
) -> Iterable[str]:
    if config is None:
        return
    if checkpoint.kind != "lutra" and any(w.format not in ("f32", "f16", "bf16") for w in grouped):
        yield "the weights are packed at every start: `lutra convert` does it once and for all"
    if "max_position_embeddings" not in checkpoint.config:
        yield f"the configuration names no context; {config.n_ctx} tokens are assumed"
    if tokenizer and tokenizer.vocab_size > config.vocab:
        yield f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab}: some text cannot go in"
    if tokenizer and not tokenizer.eos_ids:
        yield "nothing says which token ends an answer: it goes on until the context is full"
    if tokenizer and not tokenizer.chat_template:
        yield "there is no chat template: lutra run continues text, lutra chat writes lines of User: and Assistant:"
    if needed and needed.n_ctx > config.n_ctx:
        yield f"the model knows contexts of {config.n_ctx} tokens at most"
    if needed and needed.available is not None and needed.total > needed.available:
        yield f"more memory is needed than the {needed.available / 1e9:.2f} GB that are free"
