"""Damaged checkpoints of every kind: whatever a file says, an error of ours ends it, and little memory is taken.

Short by default; LUTRA_DAMAGE=500 tries so many changes of every kind.
"""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_models import small_chat_model

from lutra.models import weights
from lutra.models.loaders import open_checkpoint
from lutra.models.tokenizer import load_tokenizer
from lutra.runtime.errors import LutraError
from lutra.runtime.formats import to_float32
from lutra.runtime.model import architecture
from lutra.tools.convert import convert

EXAMPLES = int(os.environ.get("LUTRA_DAMAGE", "12"))
MEMORY = 64 << 20  # bytes; the checkpoints have some 300 thousand
HEADER = 4096  # bytes from a file's start, where most of what it claims is said
ODD = [None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 0.5, -1e300, 1e300, "", "odd", [], [1], [-1, 2**40], {}, {"a": 1}]

KINDS: dict[str, Callable[[Any, Path], object]] = {
    "lutra": lambda make, path: convert(small_chat_model(path.with_name("source")), path, embed_type="q6"),
    "dense": lambda make, path: small_chat_model(path),
    "shards": lambda make, path: make.checkpoints.dense_llama(path, shard_size="60KB"),
    "gemma": lambda make, path: make.checkpoints.gemma(path, "Gemma2"),
    "bitnet": lambda make, path: make.checkpoints.bitnet_packed(path),
    "latent": lambda make, path: make.checkpoints.bitnet_online(path),
    "1bitllm": lambda make, path: make.checkpoints.one_bit_llm(path),
    "llama2c": lambda make, path: make.checkpoints.llama2c(path / "tiny.bin"),
    "gptq": lambda make, path: make.quantized(path, make.gptq(ordered=True), make.gptq_settings(desc_act=True)),
    "eqat": lambda make, path: make.quantized(path, make.gptq(3, second=True, spaced=True)),
    "awq": lambda make, path: make.quantized(
        path, make.awq(), {"quantization_config": {"quant_method": "awq", "group_size": 32}}
    ),
    "compressed": lambda make, path: make.quantized(
        path, make.compressed(sym=False, ordered=True), make.compressed_settings()
    ),
    "bcq": lambda make, path: make.quantized(path, make.planes()),
    "db": lambda make, path: make.quantized(path, make.dual()),
    "fbi": lambda make, path: make.quantized(path, make.fbi, write=make.torch_bin),
    "fbi shards": lambda make, path: make.quantized(path, make.fbi, write=make.torch_shards),
    "paretoq": lambda make, path: make.quantized(path, make.paretoq(2), {"w_bits": 2}),
    "littlebit": lambda make, path: make.quantized(path, make.littlebit()),
    "onebit": lambda make, path: make.onebit_llama(path),
    "few levels": lambda make, path: make.quantized(path, make.few_levels(32, True, make.torch.float16)),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of a kind, made once."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            make = None
            if kind not in ("lutra", "dense"):
                for library in ("torch", "transformers", "safetensors", "accelerate"):
                    pytest.importorskip(library, reason="it makes such checkpoints")
                import checkpoints
                import low_bit

                make = SimpleNamespace(**vars(low_bit), checkpoints=checkpoints)
            path = tmp_path_factory.mktemp("whole") / "model"
            if kind not in ("lutra", "dense"):
                path.mkdir()
            KINDS[kind](make, path)
            made[kind] = path
        return made[kind]

    return get


def read_all(folder: Path) -> None:
    """All that is read of a checkpoint before it runs."""
    files = list(folder.iterdir())
    with open_checkpoint(files[0] if len(files) == 1 else folder) as checkpoint:
        for name in checkpoint.names():
            tensor = checkpoint.tensor(name)
            assert tuple(tensor.shape) == checkpoint.shape(name)
            to_float32(tensor)
        arch = architecture(checkpoint.config)
        config = arch.Config.read(checkpoint.config)
        if checkpoint.kind == "lutra":
            found = weights.read_packed(checkpoint)
        else:
            plan = weights.plan_roles(checkpoint, arch.NAMES, config.layers)
            found = dict(weights.pack_roles(checkpoint, plan))
        weights.by_layer(found, arch, config)
        if checkpoint.path / "tokenizer.json" in files:
            load_tokenizer(checkpoint.path, checkpoint.config)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))][:2000]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """A JSON value with another one at a path; without what is there, if it is ``...``."""
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    if by is ... and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


def changed_json(draw: Any, text: bytes) -> bytes:
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(value)))
        value = replaced(value, place, draw(st.sampled_from([*ODD, *([...] if place else [])])))
    return json.dumps(value).encode()


def changed_bytes(draw: Any, data: bytes) -> bytes:
    """Some bytes turned into others, cut out, put in or doubled; or the end cut off."""
    at = draw(st.integers(0, min(len(data), draw(st.sampled_from([HEADER, len(data)]))) - 1))
    size = draw(st.sampled_from([1, 2, 4, 8, 64]))
    other = draw(st.binary(min_size=size, max_size=size) | st.sampled_from([bytes(size), b"\xff" * size]))
    return draw(
        st.sampled_from(
            [
                data[:at] + other + data[at + size :],
                data[:at] + data[at + size :],
                data[:at] + other + data[at:],
                data[:at] + data[at : at + size] + data[at:],
                data[:at],
            ]
        )
    )


def changed(draw: Any, name: str, data: bytes) -> bytes:
    """A file with one thing or two that are not as they were."""
    odds = draw(st.integers(0, 2))
    if odds and name.endswith(".json") and data:
        return changed_json(draw, data)
    if odds == 2 and name.endswith(".safetensors"):
        size = int.from_bytes(data[:8], "little")
        header = changed_json(draw, data[8 : 8 + size])
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    return changed_bytes(draw, data)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_ends_in_an_error_of_ours(kind: str, whole: Any, tmp_path: Path) -> None:
    source = whole(kind)
    files = {file.name: file.read_bytes() for file in sorted(source.iterdir()) if file.is_file()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    read_all(tmp_path)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize="LUTRA_DAMAGE" not in os.environ,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        report_multiple_bugs=True,
    )
    @given(st.data())
    def damaged(data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(files)))
        content = changed(data.draw, name, files[name])
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        try:
            with np.errstate(all="ignore"):
                read_all(tmp_path)
        except LutraError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            (tmp_path / name).write_bytes(files[name])
        assert peak < MEMORY

    damaged()
