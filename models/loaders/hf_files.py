"""The files of a Hugging Face directory: config.json, and weights in one or many files of safetensors or PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from lutra.models.loaders.checkpoint import Entry, Mapped
from lutra.models.loaders.refusals import refuse
from lutra.models.loaders.safetensors import SafetensorsFile
from lutra.runtime.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError

__all__ = ["CONFIG", "INDEX", "WEIGHTS", "WeightFile", "open_weights", "read_json"]

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SINGLE = (WEIGHTS, "pytorch_model.bin")  # the names of a single file; the first is taken
UNFINISHED = ("*.incomplete", "*.part", "*.partial", "*.crdownload", "*.aria2", "*.tmp")


class WeightFile(Mapped, Protocol):
    """A file of tensors. metadata: the strings that it carries about itself."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object. Raises ModelNotFoundError, CorruptModelError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path.parent} has no {path.name}", _hint(path.parent)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptModelError(f"{path} is not sound JSON: {error}", _hint(path.parent)) from error
    if not isinstance(value, dict):
        raise CorruptModelError(f"{path} is not a JSON object")
    return value


def open_weights(path: Path) -> tuple[tuple[WeightFile, ...], dict[str, Entry]]:
    """The weight files and all their tensors; like transformers, prefers a single file. Raises as open_checkpoint()."""
    for name in SINGLE:
        if (path / name).exists():
            file = _open_file(path / name)
            return (file,), file.entries
        if (path / f"{name}.index.json").exists():
            return _open_sharded(path, path / f"{name}.index.json")
    refuse(path)
    if others := sorted(file.name for file in path.glob("*.safetensors")):
        raise UnsupportedModelError(
            f"{path} has no {WEIGHTS} and no {INDEX}, and lutra does not know what {others[0]!r:.80} holds",
            "Download the whole model again, as transformers names its files.",
        )
    raise ModelNotFoundError(f"{path} has no weights ({WEIGHTS})", _hint(path))


def _open_sharded(path: Path, index: Path) -> tuple[tuple[WeightFile, ...], dict[str, Entry]]:
    weight_map = _weight_map(index)
    shards = _open_shards(path, sorted(set(weight_map.values())))
    entries = {}
    for name, shard in weight_map.items():
        if name not in shards[shard].entries:
            raise CorruptModelError(f"{path / shard} lacks {name!r:.80}, which the index promises")
        entries[name] = shards[shard].entries[name]
    return tuple(shards.values()), entries


def _open_shards(path: Path, names: list[str]) -> dict[str, WeightFile]:
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        raise CorruptModelError(
            f"{path} lacks {len(missing)} of its {len(names)} weight files: {missing[0]}",
            _hint(path),
        )
    return {name: _open_file(path / name) for name in names}


def _open_file(path: Path) -> WeightFile:
    try:
        return SafetensorsFile(path) if path.suffix == Path(WEIGHTS).suffix else _torch_file(path)
    except CorruptModelError as error:
        if unfinished := _unfinished(path.parent):
            error.hint = _resume(unfinished)
        raise


def _torch_file(path: Path) -> WeightFile:
    from lutra.models.loaders.torch_zip import TorchFile  # few models need it, and it zipfile

    return TorchFile(path)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard's file name. A shard may not lie outside the directory."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CorruptModelError(f"{index} has no weight_map")
    ending = Path(index.name.removesuffix(".index.json")).suffix
    for shard in table.values():
        if not isinstance(shard, str) or not shard.endswith(ending) or _has_folder(shard):
            raise CorruptModelError(f"{index} names {shard!r:.80} as a weight file")
    return table


def _has_folder(name: str) -> bool:
    return any(mark in name for mark in "/\\:\0")


def _hint(path: Path) -> str:
    unfinished = _unfinished(path)
    return _resume(unfinished) if unfinished else "Download the model again."


def _resume(unfinished: Path) -> str:
    return f"A download did not finish ({unfinished.name}): start it again to complete it."


def _unfinished(path: Path) -> Path | None:
    """A file that a downloader left: here, or in either place of the Hugging Face cache."""
    places = [path, path / ".cache" / "huggingface" / "download"]
    if path.parent.name == "snapshots":
        places.append(path.parent.parent / "blobs")
    for place in places:
        for pattern in UNFINISHED:
            if found := next(place.glob(pattern), None):
                return found
    return None
