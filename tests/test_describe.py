"""lutra show: what it says is what the model turns out to be, and it reads headers only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_models import small_chat_model, small_llama

from lutra.cli.main import main
from lutra.models.loaders.checkpoint import Checkpoint
from lutra.runtime.model import Model
from lutra.tools.convert import convert
from lutra.tools.describe import describe


def no_values(monkeypatch: Any) -> None:
    def refuse(self: Checkpoint, name: str) -> None:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "tensor", refuse)


@pytest.mark.parametrize("kind", ["dense_f16_biased", "bitnet_packed", "llama_bitlinear", "one_bit_llm", "llama2c"])
def test_headers_tell_what_the_model_is(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    from test_convert import make

    src = make(kind, tmp_path / "src")
    convert(src, tmp_path / "dst")
    with Model.load(src) as model:
        n_params, nbytes, layers = model.n_params, model.nbytes, model.config.layers
        biases = sum(w.bias.nbytes for w in model.weights.values() if getattr(w, "bias", None) is not None)
        cache = model.session()._cache.memory.nbytes
    packed = describe(tmp_path / "dst", kv_type="f32")
    no_values(monkeypatch)
    found = describe(src, kv_type="f32")
    for report in (found, packed):
        assert report.refusal is None
        assert (report.n_params, report.nbytes) == (n_params, nbytes + biases)
        assert report.config["layers"] == layers
        assert report.memory is not None
        assert report.memory.cache == pytest.approx(cache, rel=0.2)  # whose positions come by 16
    if kind in ("bitnet_packed", "llama_bitlinear"):
        word = "divided" if kind == "llama_bitlinear" else "multiplied"
        assert any(word in text for text in found.conventions)


def test_a_packed_models_matrices_are_not_read(tmp_path: Path, monkeypatch: Any) -> None:
    convert(small_llama(tmp_path / "m"), tmp_path / "dst", embed_type="q4")
    described = describe(tmp_path / "dst")
    formats = {w.role: w.format for w in described.weights}
    assert formats["embed"] == "q4g32"
    assert formats["layers.{}.qkv"] == "f32"
    assert described.weights[1].count == 2


def test_a_model_that_cannot_run_is_still_described(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    folder = small_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    no_values(monkeypatch)
    report = describe(folder)
    assert report.refusal is not None
    assert "mamba" in report.refusal
    roles = {w.role: (w.count, w.shape) for w in report.weights}
    assert roles["model.layers.{}.mlp.gate_proj.weight"] == (2, (96, 64))
    assert report.memory is None
    assert main(["show", str(folder)]) == 4
    assert "mamba" in capsys.readouterr().out


def test_warnings(tmp_path: Path, monkeypatch: Any) -> None:
    folder = small_llama(tmp_path / "m")
    warnings = " ".join(describe(folder, n_ctx=65).warnings)
    assert "no tokenizer" in warnings
    assert "64 tokens at most" in warnings
    (folder / "tokenizer.json").write_text("{")
    assert "cannot be read" in " ".join(describe(folder).warnings)
    monkeypatch.setattr("lutra.runtime.memory.available", lambda: 1000)
    assert "more memory" in " ".join(describe(folder).warnings)


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    folder = small_chat_model(tmp_path / "m")
    assert main(["show", str(folder), "-c", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bits_per_weight"] == 32
    assert found["memory"]["n_ctx"] == 100
    assert found["tokenizer"]["kind"] == "HuggingFace"
    assert found["chat_template"] is True
    assert main(["show", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "layers.{}.gate_up" in out
    assert "192x64" in out
    assert main(["show", str(tmp_path / "none")]) == 3
