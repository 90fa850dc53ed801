"""Perplexity and divergence, against transformers and torch on the same windows."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import small_chat_model, small_llama

from lutra.runtime.errors import ContextLengthError, LutraError
from lutra.runtime.model import Model
from lutra.tools.perplexity import Result, perplexity

ASSETS = Path(__file__).parents[2] / "shared" / "assets"
STORIES, HELD_OUT = ASSETS / "weights" / "stories260K", ASSETS / "text" / "tinystories_heldout.txt"


def last(model: Model, ids: Any, **options: Any) -> Result:
    return list(perplexity(model, ids, **options))[-1]


def expected(model: Any, ids: list[int], n_ctx: int, stride: int | None, begin: int | None) -> tuple[float, int, Any]:
    """The perplexity by transformers' own loss: labels that are -100 do not count. And the scored log-probabilities."""
    import torch

    losses, rows, seen = [], [], 0
    for start in range(0, len(ids) - n_ctx + 1, stride or n_ctx):
        window = torch.tensor([ids[start : start + n_ctx]])
        if stride is None and begin is not None:
            window[0, 0] = begin
        labels = window.clone()
        labels[0, : n_ctx // 2 + 1 if stride is None else max(seen - start, 1)] = -100
        seen = start + n_ctx
        with torch.no_grad():
            logits = model(window).logits[0].float()
        scored = labels[0, 1:] != -100
        rows.append(torch.log_softmax(logits[:-1][scored], dim=-1))
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], labels[0, 1:], reduction="none")[scored])
    every = torch.cat(losses)
    return math.exp(every.double().mean()), len(every), torch.cat(rows)


@pytest.mark.parametrize(("stride", "begin"), [(None, 1), (None, None), (48, None), (20, None), (1, None)])
def test_it_is_what_transformers_finds(tmp_path: Path, stride: int | None, begin: int | None) -> None:
    for library in ("torch", "transformers", "accelerate"):
        pytest.importorskip(library, reason="the oracle")
    import checkpoints

    oracle = checkpoints.dense_llama(tmp_path)
    ids = np.random.default_rng(0).integers(0, 128, 48 * (2 if stride == 1 else 4) + 5).tolist()
    with Model.load(tmp_path, threads=2) as model:
        found = last(model, ids, n_ctx=48, stride=stride, begin=begin)
    due, scored, _ = expected(oracle, ids, 48, stride, begin)
    assert found.scored == scored
    assert found.perplexity == pytest.approx(due, rel=1e-5)


def test_divergence_is_torchs(tmp_path: Path) -> None:
    for library in ("torch", "transformers", "accelerate"):
        pytest.importorskip(library, reason="the oracle")
    import checkpoints
    import torch

    oracles = []
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        oracles.append(checkpoints.dense_llama(tmp_path / str(seed), seed=seed))
    ids = np.random.default_rng(0).integers(0, 128, 200).tolist()
    with Model.load(tmp_path / "0") as model, Model.load(tmp_path / "1") as reference:
        found = last(model, ids, n_ctx=64, reference=reference).json()
    (_, _, q), (due, _, p) = (expected(oracle, ids, 64, None, None) for oracle in oracles)
    each = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(dim=1).double()
    d = found["divergence"]
    assert found["reference_perplexity"] == pytest.approx(due, rel=1e-5)
    assert d["mean"] == pytest.approx(each.mean().item(), rel=1e-4)
    assert d["max"] == pytest.approx(each.max().item(), rel=1e-4)
    assert d["percentiles"]["99"] == pytest.approx(np.percentile(each.numpy(), 99), rel=1e-4)
    assert d["error"] == pytest.approx((each.std() / len(each) ** 0.5).item(), rel=1e-4)
    assert d["same_top"] == pytest.approx((p.argmax(dim=1) == q.argmax(dim=1)).double().mean().item())


def test_a_real_model() -> None:
    for library in ("torch", "transformers", "accelerate"):
        pytest.importorskip(library, reason="the oracle")
    if not (STORIES.exists() and HELD_OUT.exists()):
        pytest.skip("the story model is not here")
    import checkpoints

    oracle = checkpoints.told(STORIES)
    with Model.load(STORIES, threads=2) as model:
        ids = model.tokenizer.encode(HELD_OUT.read_text(encoding="utf-8")[:8000])
        found = last(model, ids, n_ctx=256, begin=1)
    due, scored, _ = expected(oracle, ids, 256, None, 1)
    assert found.scored == scored
    assert found.perplexity == pytest.approx(due, rel=1e-4)
    assert due < 10  # it is a model


def test_uniform_predictions_are_as_bad_as_the_vocabulary(tmp_path: Path) -> None:
    """Where every logit is 0: exp(log(n)) = n, without any oracle."""
    folder = small_llama(tmp_path / "m")
    with Model.load(folder) as model:
        model.weights["norm"][:] = 0  # type: ignore[index]
        found = last(model, list(range(64)), n_ctx=16, stride=16)
    assert found.perplexity == pytest.approx(70, rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-4)
    assert found.scored == 4 * 15


def test_chunks_and_errors(tmp_path: Path) -> None:
    folder, other = small_llama(tmp_path / "a"), small_llama(tmp_path / "b", vocab_size=71)
    ids = list(range(64))
    with Model.load(folder) as model, Model.load(other) as reference:
        assert [r.windows for r in perplexity(model, ids, n_ctx=16, chunks=3)] == [1, 2, 3]
        with pytest.raises(LutraError, match="no window of 65"):
            last(model, ids, n_ctx=65)
        with pytest.raises(ContextLengthError):
            last(model, ids * 2, n_ctx=65)
        with pytest.raises(ValueError, match="stride"):
            last(model, ids, n_ctx=16, stride=17)
        with pytest.raises(LutraError, match="vocabularies differ"):
            last(model, ids, n_ctx=16, reference=reference)


def run_cli(*argv: object, code: str = "") -> subprocess.CompletedProcess[str]:
    start = f"import sys\nfrom lutra.cli.main import main\n{code}\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", start, *map(str, argv)], capture_output=True, text=True)


def test_the_command(tmp_path: Path) -> None:
    folder, text = small_chat_model(tmp_path / "m"), tmp_path / "text"
    text.write_text("A text of single bytes. " * 8)
    done = run_cli("perplexity", folder, "-f", text, "-c", 64, "--against", folder, "--json")
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert found["windows"] == 3
    assert found["divergence"]["same_top"] == 1
    assert found["divergence"]["max"] == pytest.approx(0, abs=1e-6)
    done = run_cli("perplexity", folder, "-f", text, "-c", 64, "--stride", 64)
    assert done.stdout.startswith("PPL = ")
    assert "3 windows of 64 tokens, stride 64; 189 tokens scored" in done.stdout
    assert run_cli("perplexity", folder, "-f", text, "-c", 64, "--stride", 65).returncode == 2
    assert run_cli("perplexity", folder, "-f", tmp_path / "none").returncode == 2


def test_an_interrupt_keeps_what_is_known(tmp_path: Path) -> None:
    folder, text = small_chat_model(tmp_path / "m"), tmp_path / "text"
    text.write_text("A text of single bytes. " * 40)
    code = """if True:
        import os, signal
        from lutra.cli import perplexity
        def show(result):
            if result.windows == 2:
                os.kill(os.getpid(), signal.SIGINT)
        perplexity._show = show
    """
    done = run_cli("perplexity", folder, "-f", text, "-c", 64, code=code)
    assert done.returncode == 128 + signal.SIGINT
    assert "2 windows of 15 of 64 tokens" in done.stdout
    assert done.stderr == ""
