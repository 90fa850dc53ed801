"""Converting: what is written is what the source says, and nothing is left of what fails."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_models import small_llama

from lutra.models.loaders import open_checkpoint
from lutra.runtime.errors import CorruptModelError, LutraError, ModelNotFoundError, UnsupportedModelError
from lutra.runtime.model import Model
from lutra.tools import convert as converter
from lutra.tools.convert import Tensor, convert

WEIGHTS = Path(__file__).parents[2] / "shared" / "assets" / "weights"
KINDS = (
    "dense_llama",
    "dense_bf16_shards",
    "dense_f16_biased",
    "bitnet_online",
    "bitnet_packed",
    "bitnet_unpacked",
    "llama_bitlinear",
    "one_bit_llm",
    "llama2c",
)
TOKENS = list(range(20))


def make(kind: str, path: Path) -> Path:
    """A tiny checkpoint of a kind; returns where it is."""
    for library in ("torch", "transformers", "safetensors", "accelerate"):
        pytest.importorskip(library)
    import checkpoints
    import torch

    path.mkdir()
    if kind == "llama2c":
        checkpoints.llama2c(path / "tiny.bin")
        return path / "tiny.bin"
    if kind == "dense_bf16_shards":
        checkpoints.dense_llama(path, torch.bfloat16, shard_size="60KB", vocab_size=99)
    elif kind == "dense_f16_biased":
        checkpoints.dense_llama(path, torch.float16, attention_bias=True, mlp_bias=True)
    else:
        getattr(checkpoints, kind)(path)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_llama(tmp_path / "small")


def logits(path: Path) -> np.ndarray:
    with Model.load(path, threads=2) as model:
        return model.session().logits(TOKENS)


def digest(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def leftovers(folder: Path, *known: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path not in known]


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_model_computes_the_same_bits(kind: str, tmp_path: Path) -> None:
    src, dst = make(kind, tmp_path / "src"), tmp_path / "dst"
    before = digest(src)
    report = convert(src, dst)
    assert np.array_equal(logits(dst), logits(src))
    assert digest(src) == before
    with Model.load(dst) as model:
        assert report.n_params == model.n_params
        assert report.nbytes >= model.nbytes  # biases are no Packed parts
    assert leftovers(tmp_path, tmp_path / "src", dst) == []
    config = json.loads((dst / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["lutra"] == {"format_version": 1}


def test_weights_are_mapped_not_copied(small: Path, tmp_path: Path) -> None:
    convert(small, tmp_path / "dst")

    def is_mapped(array: Any) -> bool:
        while isinstance(array, np.ndarray):
            array = array.base
        return isinstance(array, memoryview) or type(array).__name__ == "mmap"

    with Model.load(tmp_path / "dst") as model:
        parts = [part for w in model.weights.values() if hasattr(w, "parts") for part in w.parts.values()]
        assert all(is_mapped(part) for part in parts)
        assert all(part.ctypes.data % 64 == 0 for part in parts if part.nbytes % 64 == 0)


@pytest.mark.parametrize(
    ("embed_type", "tolerance"), [("q4", 0.3), ("q6", 0.07), ("q8", 0.02), ("f16", 0.002), ("bf16", 0.01), ("f32", 0.0)]
)
def test_embed_type_is_smaller_and_close(small: Path, tmp_path: Path, embed_type: str, tolerance: float) -> None:
    convert(small, tmp_path / "dst", embed_type=embed_type)
    exact, found = logits(small), logits(tmp_path / "dst")
    assert np.abs(found - exact).max() <= tolerance * np.abs(exact).max()
    with Model.load(tmp_path / "dst") as model:
        assert model.weights["embed"].format == converter.EMBED_TYPES[embed_type]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["bitnet_packed", "llama_bitlinear"])
def test_both_ternary_formats_give_the_same_bits(tmp_path: Path, kind: str) -> None:
    src, found = make(kind, tmp_path / "src"), []
    for format in converter.TERNARY_TYPES:
        convert(src, tmp_path / format, ternary_type=format)
        with Model.load(tmp_path / format) as model:
            assert model.weights["layers.0.qkv"].format == format  # type: ignore[union-attr]
            found.append(model.session().logits(TOKENS))
    np.testing.assert_array_equal(*found)


def test_an_unknown_type(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embed_type"):
        convert(small, tmp_path / "dst", embed_type="q3")
    with pytest.raises(ValueError, match="ternary_type"):
        convert(small, tmp_path / "dst", ternary_type="q2")


def test_a_report_without_writing(small: Path, tmp_path: Path) -> None:
    planned = convert(small, None)
    assert leftovers(tmp_path, small) == []
    done = convert(small, tmp_path / "dst")
    assert (planned.tensors, planned.nbytes, planned.formats) == (done.tensors, done.nbytes, done.formats)
    size = (tmp_path / "dst" / "model.safetensors").stat().st_size
    assert 0 < size - done.nbytes < 10_000
    assert planned.bits_per_weight == 32


def test_progress_names_every_weight_once(small: Path, tmp_path: Path) -> None:
    seen: list[Tensor] = []
    report = convert(small, tmp_path / "dst", progress=seen.append)
    assert sorted(t.role for t in seen) == sorted(t.role for t in report.tensors)
    assert {t.count for t in seen} == {len(report.tensors)}


def test_files_beside_the_weights_are_carried_over(small: Path, tmp_path: Path) -> None:
    (small / "additional_chat_templates").mkdir()
    carried = {
        "tokenizer.json": b"{ }",
        "vocab.json": b"{}",
        "merges.txt": b"a b\n",
        "generation_config.json": b"{}",
        "chat_template.jinja": b"x\r\n",
        "additional_chat_templates/tool_use.jinja": b"y",
        "LICENSE.txt": b"\xff",
        "README.md": b"",
    }
    for name, content in carried.items():
        (small / name).write_bytes(content)
    (small / "training_args.bin").write_bytes(b"no")
    convert(small, tmp_path / "dst")
    found = {str(f.relative_to(tmp_path / "dst")): f for f in (tmp_path / "dst").rglob("*") if f.is_file()}
    assert found.keys() == carried.keys() | {"config.json", "model.safetensors"}
    assert all(found[name].read_bytes() == content for name, content in carried.items())


@pytest.mark.parametrize("name", ["stories260K", "stories260K/stories260K.bin"])
def test_a_story_model_tells_the_same_tokens(name: str, tmp_path: Path) -> None:
    if not (WEIGHTS / name).exists():
        pytest.skip("the story model is not here")
    convert(WEIGHTS / name, tmp_path / "dst")
    with Model.load(WEIGHTS / name) as source, Model.load(tmp_path / "dst") as converted:
        a, b = source.tokenizer, converted.tokenizer
        text = "Once upon a time, Lily went home."
        assert a.encode(text) == b.encode(text)
        assert (a.bos_id, a.eos_ids) == (b.bos_id, b.eos_ids)
        assert a.decode(a.encode(text)) == b.decode(a.encode(text)) == text


def test_a_tokenizer_that_the_loader_makes(small: Path, tmp_path: Path, monkeypatch: Any) -> None:
    refusals = iter([None, UnsupportedModelError("no words for this")])

    def made() -> dict[str, bytes]:
        if refusal := next(refusals):
            raise refusal
        return {"tokenizer.model": b"made"}

    def opened(path: Path) -> Any:
        checkpoint = open_checkpoint(path)
        checkpoint.tokenizer_files = made
        return checkpoint

    monkeypatch.setattr(converter, "open_checkpoint", opened)
    (small / "tokenizer.model").write_bytes(b"of something else")
    assert convert(small, tmp_path / "a").warnings == ()
    assert (tmp_path / "a/tokenizer.model").read_bytes() == b"made"
    (small / "tokenizer.model").unlink()
    (warning,) = convert(small, tmp_path / "b").warnings
    assert "no words for this" in warning
    assert not (tmp_path / "b/tokenizer.model").exists()


def test_an_existing_destination_stays(small: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "thesis.tex").write_text("years")
    for force in (False, True):
        with pytest.raises(LutraError, match=r"exists|not written by lutra"):
            convert(small, dst, force=force)
    assert (dst / "thesis.tex").read_text() == "years"
    assert leftovers(tmp_path, small, dst) == []


def test_force_replaces_what_lutra_wrote(small: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    convert(small, dst)
    (dst / "old").touch()
    with pytest.raises(LutraError, match="exists"):
        convert(small, dst)
    convert(small, dst, force=True, embed_type="q8")
    assert not (dst / "old").exists()
    assert leftovers(tmp_path, small, dst) == []


def test_refusals_say_why(small: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    convert(small, dst)
    with pytest.raises(UnsupportedModelError, match="converted already"):
        convert(dst, tmp_path / "again")
    with pytest.raises(ModelNotFoundError):
        convert(tmp_path / "nowhere", tmp_path / "again")
    with pytest.raises(LutraError, match="no folder"):
        convert(small, tmp_path / "a" / "b")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CorruptModelError, match=r"model.layers.2"):
        convert(small, tmp_path / "again")
    assert leftovers(tmp_path, small, dst) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
@pytest.mark.parametrize("at", [0, 9])
def test_nothing_is_left_of_a_failure(small: Path, tmp_path: Path, error: Any, at: int) -> None:
    def fail(tensor: Tensor) -> None:
        if tensor.index == at:
            raise error

    with pytest.raises((KeyboardInterrupt, MemoryError, LutraError)):
        convert(small, tmp_path / "dst", progress=fail)
    assert leftovers(tmp_path, small) == []


def test_a_failed_replacement_keeps_the_old_one(small: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    convert(small, dst)
    before = digest(dst)

    def fail(_: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(small, dst, force=True, progress=fail)
    assert digest(dst) == before


def test_a_full_disk_is_seen_before_it_is_written_to(small: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(converter.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(LutraError, match=r"0\.0 MB free"):
        convert(small, tmp_path / "dst")
    assert leftovers(tmp_path, small) == []


def test_a_disk_that_fills_up(small: Path, tmp_path: Path) -> None:
    """A limit on file sizes makes writing fail as a full disk does."""
    code = """if True:
        import resource, signal, sys
        from lutra.tools.convert import convert
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        convert(sys.argv[1], sys.argv[2])
    """
    done = subprocess.run([sys.executable, "-c", code, small, tmp_path / "dst"], capture_output=True, text=True)
    assert f"LutraError: {tmp_path / 'dst'} cannot be written: File too large" in done.stderr
    assert leftovers(tmp_path, small) == []


def test_two_at_once_make_one(small: Path, tmp_path: Path) -> None:
    barrier, outcomes = threading.Barrier(2), []

    def attempt() -> None:
        def meet(tensor: Tensor) -> None:
            if tensor.index == 3:
                barrier.wait(10)

        try:
            outcomes.append(convert(small, tmp_path / "dst", progress=meet))
        except LutraError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [o for o in outcomes if isinstance(o, str)] == [f"{tmp_path / 'dst'} was written by somebody else meanwhile"]
    assert np.array_equal(logits(tmp_path / "dst"), logits(small))
    assert leftovers(tmp_path, small, tmp_path / "dst") == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(small: Path, tmp_path: Path, sent: signal.Signals) -> None:
    code = """if True:
        import os, sys
        from lutra.tools import convert
        from lutra.cli.main import main
        pack = convert.Planned.pack
        def slow(self, checkpoint):
            os.kill(os.getpid(), int(sys.argv[3]))
            return pack(self, checkpoint)
        convert.Planned.pack = slow
        sys.exit(main(["convert", sys.argv[1], sys.argv[2]]))
    """
    command = [sys.executable, "-c", code, str(small), str(tmp_path / "dst"), str(int(sent))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 128 + sent
    assert done.stderr == ""
    assert leftovers(tmp_path, small) == []


def test_memory_stays_near_the_largest_weight(tmp_path: Path) -> None:
    """72 matrices of 2 or 4 MB, and the process grows by far less than their sum."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    folder = small_llama(tmp_path / "src", hidden_size=1024, intermediate_size=1024, num_hidden_layers=12)
    code = """if True:
        import sys
        from pathlib import Path
        from lutra.tools.convert import convert
        def peak():
            return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")) / 1000
        before = peak()
        report = convert(sys.argv[1], sys.argv[2])
        print(report.nbytes / 1e6, peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", code, folder, tmp_path / "dst"], capture_output=True, text=True)
    written, grown = map(float, done.stdout.split())
    assert written > 250
    assert grown < 80
    shutil.rmtree(tmp_path / "dst")


@pytest.mark.parametrize("format", ["", "q4g32"])
def test_memory_is_what_a_report_says(format: str, tmp_path: Path) -> None:
    """That of the largest weight, 34 MB, as it is read and as it becomes."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    folder = small_llama(tmp_path / "src", hidden_size=1024, intermediate_size=4096, num_hidden_layers=1)
    code = """if True:
        import sys
        from lutra.tools.convert import convert
        def peak():
            return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")) / 1000
        before = peak()
        report = convert(sys.argv[1], sys.argv[2], quantize=sys.argv[3] or None)
        print(peak() - before, report.memory / 1e6)
    """
    command = [sys.executable, "-c", code, folder, tmp_path / "dst", format]
    grown, said = map(float, subprocess.run(command, capture_output=True, text=True).stdout.split())
    assert said / 2 < grown < said * 1.25  # how much of two weights is held at once is a matter of chance
    shutil.rmtree(tmp_path)
