"""The bench program: its rows and forms, never its speeds."""

import json

import pytest
import tiny

from lutra.cli.main import main
from lutra.runtime.errors import LutraError
from lutra.tools import bench


@pytest.fixture(autouse=True)
def small_memory(monkeypatch):
    monkeypatch.setattr(bench, "STREAM_BYTES", 4 << 20)


def rows(capsys, *arguments):
    assert main(["bench", "--shape", "tiny", *arguments, "-o", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows(capsys):
    found = rows(capsys, "-p", "8,70", "-n", "3", "-r", "2", "-t", "1,2", "-d", "5")
    assert [(r["n_threads"], r["test"]) for r in found] == [
        (threads, test) for threads in (1, 2) for test in ("pp8 @ d5", "pp70 @ d5", "tg3 @ d5")
    ]
    for r in found:
        assert len(r["samples_ts"]) == 2
        assert r["avg_ts"] > 0
        assert r["read_gbps"] > 0
        assert r["kernel"].startswith("linear_t5_")
        assert (r["weight_gbps"] > 0) == (r["bandwidth_ratio"] > 0) == r["test"].startswith("tg")


@pytest.mark.parametrize("format", bench.FORMATS)
def test_every_format_and_head(capsys, format):
    (row,) = rows(capsys, "--format", format, "--head", tiny.head_format(format), "-p", "0", "-n", "2", "-r", "1")
    assert row["model_n_params"] == 1444608


def test_a_real_model_has_the_same_rows(capsys, tmp_path):
    checkpoints = pytest.importorskip("checkpoints", reason="needs torch and transformers")
    checkpoints.bitnet_packed(tmp_path)
    assert main(["bench", str(tmp_path), "-p", "4", "-n", "2", "-r", "1", "-o", "jsonl"]) == 0
    assert [json.loads(line)["test"] for line in capsys.readouterr().out.splitlines()] == ["pp4", "tg2"]


@pytest.mark.parametrize("form", ["md", "csv", "jsonl", "json"])
def test_forms(form, capsys):
    assert main(["bench", "--shape", "tiny", "-p", "4", "-n", "0", "-r", "1", "-t", "1", "-o", form]) == 0
    assert "pp4" in capsys.readouterr().out


def test_what_there_is_not(capsys):
    assert main(["bench", "--shape", "nothing"]) == 1
    assert "bitnet-2b-4t" in capsys.readouterr().err
    with pytest.raises(LutraError, match="embed_t5"):
        bench.synthetic("tiny", "f32", "t5")
