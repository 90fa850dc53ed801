"""Hugging Face model directories: weights of any encoding, and a configuration in any version's layout."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lutra.models.loaders.checkpoint import Checkpoint, Entry, Source, modules_with
from lutra.models.loaders.expert_stacks import split_experts
from lutra.models.loaders.few_levels import find_few_levels
from lutra.models.loaders.fp8 import unscaled
from lutra.models.loaders.hf_files import CONFIG, INDEX, WEIGHTS, WeightFile, open_weights, read_json
from lutra.models.loaders.refusals import refuse_encoding
from lutra.models.loaders.tensor import DTYPES
from lutra.models.loaders.text_part import take_text
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError

__all__ = ["claims", "read"]

HEADS = ("lm_head", "embed_out")  # the second is GPT-NeoX's
MAX_FLOAT = 1e30  # JSON's integers can be larger than any float


def claims(path: Path) -> bool:
    """Whether ``path`` is a directory with any of the files that make a Hugging Face model."""
    return path.is_dir() and any((path / name).exists() for name in (CONFIG, WEIGHTS, INDEX))


def read(path: Path) -> Checkpoint:
    """Open the directory. Raises as ``open_checkpoint`` does."""
    config = read_json(path / CONFIG)
    files, entries = open_weights(path)
    source = Source(path, config, entries)
    take_text(source)
    source.entries = _renamed(source)
    split_experts(source)
    source.entries = {name: _shaped(name, entry) for name, entry in source.entries.items()}
    _decode(source, files)
    source.entries = {name: unscaled(entry) for name, entry in source.entries.items()}
    source.config = normalized(source.config, source.entries)
    _untie(source)
    metadata = {key: value for file in files for key, value in file.metadata.items()}
    return Checkpoint(path, source.kind, source.config, source.entries, files, metadata, notes=source.notes)


def _decode(source: Source, files: tuple[WeightFile, ...]) -> None:
    """Let the one module that recognises this way of storing weights rewrite the source.

    Their tests exclude each other (quant_method is one word), so their order does not matter.
    """
    for kind in modules_with("decode"):
        if kind.decode(source):
            return
    refuse_encoding(source)
    find_few_levels(source, files)


def _renamed(source: Source) -> dict[str, Entry]:
    """The entries under the names of a whole model, whatever wrapped it when it was saved, or if only its body was."""
    found = (re.fullmatch(r"(.*?)(model\.)?(?:decoder\.)?embed_tokens\.weight", name) for name in source.entries)
    wrapper, body = next((embed.groups() for embed in found if embed), ("", "model."))
    if body and wrapper and all(name.startswith(wrapper) for name in source.entries):
        return {name.removeprefix(wrapper): entry for name, entry in source.entries.items()}
    if body or wrapper:
        return source.entries
    if source.config.get("tie_word_embeddings") is False and "lm_head.weight" not in source.entries:
        raise UnsupportedModelError(
            f"{source.path} has no output matrix, lm_head: it was not made to write text",
            "Embedding models and classifiers are saved so: use the model that it was made from.",
        )
    return {name if name.startswith("lm_head.") else f"model.{name}": e for name, e in source.entries.items()}


def _untie(source: Source) -> None:
    """A head beside the embedding, but unlike it, is its own whatever the configuration says, as for transformers."""
    head, embed = (source.entries.get(f"{name}.weight") for name in ("lm_head", "model.embed_tokens"))
    if not head or not embed or not source.config["tie_word_embeddings"]:
        return
    if (head.dtype, head.shape) == (embed.dtype, embed.shape) and head.dtype in DTYPES and head.shape:
        values = zip(head.read(), embed.read(), strict=True)  # type: ignore[arg-type]
        if all(np.array_equal(ours, theirs) for ours, theirs in values):
            return
    source.config["tie_word_embeddings"] = False
    source.notes.append("the output matrix is not the embedding, though config.json says they are tied")


def _shaped(name: str, entry: Entry) -> Entry:
    """The weight of a convolution of each channel on its own, [channels, 1, taps], as a matrix; ERNIE's biases of
    experts, [1, experts], as a vector; others as they are."""
    shape: tuple[int, ...]
    if len(entry.shape) == 3 and entry.shape[1] == 1:
        shape = entry.shape[::2]
    elif len(entry.shape) == 2 and entry.shape[0] == 1 and name.endswith(".e_score_correction_bias"):
        shape = entry.shape[1:]
    else:
        return entry
    return replace(entry, shape=shape, read=lambda: entry.read().reshape(shape))  # type: ignore[union-attr]


def normalized(config: dict[str, Any], entries: dict[str, Entry]) -> dict[str, Any]:
    """``config`` in one layout, whichever transformers wrote it. What silence means is known to the architecture.

    transformers 5 keeps all of RoPE in ``rope_parameters`` and says ``dtype``; transformers 4 has
    ``rope_theta`` and ``rope_scaling`` at the top level and says ``torch_dtype``.
    """
    config = dict(config)
    if not isinstance(config.get("model_type"), str):
        raise CorruptModelError("config.json does not say its model_type")
    _fold_rope(config)
    dtype = config.pop("dtype", None) or config.get("torch_dtype") or "float32"
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    tied = config.get("tie_word_embeddings")
    config["tie_word_embeddings"] = bool(tied) or not any(f"{head}.weight" in entries for head in HEADS)
    return config


def _fold_rope(config: dict[str, Any]) -> None:
    parameters = _table(config, "rope_parameters")
    if "full_attention" in parameters:  # one set per kind of layer, as in Gemma 3
        local = _table(parameters, "sliding_attention")
        if local.get("rope_type", "default") != "default":
            raise UnsupportedModelError(f"lutra scales no RoPE of sliding layers, as {local['rope_type']!r:.40} does")
        config.setdefault("rope_local_base_freq", local.get("rope_theta"))
        parameters = _table(parameters, "full_attention")
    scaling = {**parameters, **_table(config, "rope_scaling")}
    theta = scaling.pop("rope_theta", None) or config.pop("rope_theta", None)
    if "partial_rotary_factor" in scaling:
        config["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    kind = scaling.pop("type", None)  # what transformers called it before 4.43
    scaling.setdefault("rope_type", kind or "default")
    config.pop("rope_parameters", None)
    config["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    if theta is not None:
        config["rope_theta"] = _theta(theta)


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CorruptModelError(f"config.json says {key} is {value!r:.80}, which is no table")
    return value


def _theta(value: object) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < MAX_FLOAT:  # type: ignore[operator]
        raise CorruptModelError(f"config.json says rope_theta is {value!r:.80}")
    return float(value)  # type: ignore[arg-type]
