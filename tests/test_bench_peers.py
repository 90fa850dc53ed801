"""The bench beside peers: its files, rounds and tables, never its speeds."""

import io
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lutra.runtime.errors import LutraError
from lutra.tools import bench, bench_peers, peer_gguf

# A Python with llama-cpp-python; without it the tests that run llama.cpp are skipped.
PEER_PYTHON = os.environ.get("LUTRA_PEER_PYTHON", sys.executable)


@pytest.fixture(autouse=True)
def small_memory(monkeypatch):
    monkeypatch.setattr(bench, "STREAM_BYTES", 4 << 20)
    monkeypatch.setattr(bench_peers, "SETTLE", 0)


@pytest.fixture
def llama_cpp():
    try:
        return bench_peers.installed(PEER_PYTHON)
    except LutraError as error:
        pytest.skip(f"{error} (LUTRA_PEER_PYTHON can name another)")


class Fake:
    """A program that takes a second for `rate` tokens."""

    def __init__(self, rates=()):
        self.rates, self.asked = list(rates), []

    def ask(self, **request):
        self.asked.append(request)
        if "prompt" not in request:
            return {"gbps": 10.0}
        rate = self.rates[(len(self.asked) - 2) % len(self.rates)]  # the first one is not counted
        return {"ns": (request["prompt"] + request["gen"]) * 10**9 // rate, "cpu_ns": 0, "peak_rss": 1 << 30}


def contender(name, rates, is_peer, model="tiny"):
    return bench_peers.Contender(name, is_peer, Fake(rates), model, "Q6_K", 1 << 20, 10**9)


def groups(*found, tests=((8, 0), (0, 4)), threads=(1, 2), rounds=3):
    return list(bench_peers.measure(found, Fake(), tests, threads=threads, rounds=rounds))


def test_rounds_and_ratios():
    found = contender("llama.cpp TQ2_0", [1, 2, 4], True), contender("lutra t5", [4, 4, 8], False)
    measured = groups(*found)
    assert [(rows[0].n_threads, rows[0].test) for rows in measured] == [(t, x) for t in (1, 2) for x in ("pp8", "tg4")]
    for one in found:
        assert len(one.program.asked) == 4 * (1 + 3)
        assert one.program.asked[0] == {"threads": 1, "prompt": 8, "gen": 0, "depth": 0}
    rows = groups(*found, tests=[(0, 4)], threads=[2])[0]
    assert [row.median_ts for row in rows] == pytest.approx([2, 4])
    assert [row.share for row in rows] == pytest.approx([0.2, 0.4])
    (ratio,) = bench_peers.ratios(rows)
    assert (ratio.name, ratio.peer) == ("lutra t5", "llama.cpp TQ2_0")
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((2, 2, 4))


def test_what_others_took(monkeypatch):
    """Two CPU seconds for each request, of which the program took half a one."""
    seconds = iter(range(0, 1000, 2))
    monkeypatch.setattr(bench_peers, "_busy_seconds", lambda: next(seconds))
    clock = iter(range(1000))
    monkeypatch.setattr(bench_peers, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    program = Fake([1])
    program.asked.append({})
    answer, others = bench_peers._watched(program, {"prompt": 1, "gen": 0})
    assert others == 2.0
    monkeypatch.setattr(program, "ask", lambda **request: answer | {"cpu_ns": 500_000_000})
    assert bench_peers._watched(program, {})[1] == 1.5


def test_peers_and_formats_take_turns():
    found = [contender(f"p{i}", [1], True) for i in range(4)] + [contender(f"c{i}", [1], False) for i in range(2)]
    assert [one.name for one in bench_peers._interleaved(found)] == ["p0", "c0", "p1", "p2", "c1", "p3"]
    assert [one.name for one in bench_peers._interleaved(found[3:5])] == ["p3", "c0"]


def test_tables():
    measured = groups(
        contender("llama.cpp TQ2_0", [5], True, "tiny padded to 256s"), contender("lutra t5", [10], False)
    )
    rates, factors = bench_peers.render(measured).split("\n\n")
    assert len(rates.splitlines()) == 2 + 4 * 2
    assert "tiny padded to 256s" in rates
    assert [cell.strip() for cell in factors.splitlines()[2].split("|")][1:-1] == [
        "lutra t5", "tiny", "1", "pp8", "2.00 (2.00..2.00)",
    ]  # fmt: skip
    for line in (rates + "\n" + factors).splitlines():
        assert line[:2] + line[-2:] == "|  |"
    everything = json.loads(json.dumps(bench_peers.record(measured, {"cpu": "x"})))
    assert len(everything["rows"]) == 8
    assert everything["rows"][0]["test"] == "pp8"
    assert len(everything["ratios"]) == 4


def test_tables_without_peers():
    assert "lutra t5" in bench_peers.render(groups(contender("lutra t5", [10], False)))


@pytest.mark.parametrize("type", peer_gguf.PEERS)
@pytest.mark.parametrize("shape", bench.SHAPES)
def test_rows_are_whole_blocks(shape, type):
    file = peer_gguf.plan(shape, bench.SHAPES[shape], type)
    for stored, dims in file.tensors.values():
        assert dims[-1] % stored.weights == 0
    assert file.token_bytes <= file.nbytes


@pytest.mark.parametrize(
    ("type", "label", "head"),
    [
        ("TQ2_0", "bitnet-3b padded to 256s", "Q6_K"),
        ("Q1_0", "bitnet-3b padded to 128s", "Q8_0"),
        ("Q4_0", "bitnet-3b", "Q8_0"),
        ("F16", "bitnet-3b", "F16"),
    ],
)
def test_widened_rows_are_told(type, label, head):
    file = peer_gguf.plan("bitnet-3b", bench.SHAPES["bitnet-3b"], type)
    assert (file.label, file.head) == (label, head)


@pytest.mark.parametrize("type", peer_gguf.PEERS)
def test_a_file_is_written_once(type, tmp_path):
    file = peer_gguf.plan("tiny", bench.SHAPES["tiny"], type)
    path = file.cached(tmp_path)
    assert path.stat().st_size == file.nbytes
    before = path.stat().st_mtime_ns
    assert file.cached(tmp_path).stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"cut short")
    assert file.cached(tmp_path).stat().st_size == file.nbytes


def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(peer_gguf, "SPARE", 1 << 60)
    with pytest.raises(LutraError, match="are free in"):
        peer_gguf.plan("tiny", bench.SHAPES["tiny"], "Q4_0").cached(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("type", peer_gguf.PEERS)
def test_gguf_reads_it(type, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the gguf package")
    if not hasattr(gguf.GGMLQuantizationType, type):
        pytest.skip(f"this gguf package does not know {type}")
    untied = bench.SHAPES["tiny"] | {"model_type": "llama", "tie_word_embeddings": False}
    for config in (bench.SHAPES["tiny"], untied):
        file = peer_gguf.plan("tiny", config, type)
        reader = gguf.GGUFReader(file.cached(tmp_path))
        assert reader.fields["general.file_type"].contents() == peer_gguf.PEERS[type]
        assert [tensor.name for tensor in reader.tensors] == list(file.tensors)
        for tensor in reader.tensors:
            stored, dims = file.tensors[tensor.name]
            assert (int(tensor.tensor_type), tensor.shape.tolist()) == (stored.id, list(reversed(dims)))
            try:
                values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError:
                continue
            assert np.isfinite(values).all()
            assert values.std() == 0 if len(dims) == 1 else 0.001 < values.std() < 0.5
            if tensor.tensor_type.name in ("TQ1_0", "TQ2_0"):
                assert len(np.unique(values)) == 3


def test_files_are_alike():
    first, second = io.BytesIO(), io.BytesIO()
    for f in (first, second):
        peer_gguf.plan("tiny", bench.SHAPES["tiny"], "TQ1_0").write(f)
    assert first.getvalue() == second.getvalue()


def test_lutra_alone(capsys, tmp_path):
    arguments = ["--shape", "tiny", "--peers", "", "--formats", "t5,f16", "-p", "8", "-n", "2", "-r", "2", "-d", "5"]
    assert bench_peers.main([*arguments, "-t", "1,2", "--json", str(tmp_path / "out.json")]) == 0
    assert "lutra t5" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert [(r["name"], r["n_threads"], r["test"]) for r in found["rows"]] == [
        (name, t, test) for t in (1, 2) for test in ("pp8 @ d5", "tg2 @ d5") for name in ("lutra t5", "lutra f16")
    ]
    assert all(len(r["samples_ts"]) == 2 and r["peak_rss"] > 0 and r["read_gbps"] > 0 for r in found["rows"])


def test_what_there_is_not(capsys):
    for arguments, word in (
        (["--peer-python", "no-such-python", "--list"], "does not start"),
        (["--shape", "nothing", "--peers", ""], "bitnet-2b-4t"),
        (["--shape", "tiny", "--peers", "", "--formats", "nothing"], "unknown weight format"),
        (["--shape", "tiny", "--peers", "", "-p", "0", "-n", "0"], "nothing to measure"),
        (["--shape", "tiny", "--peers", "", "-p", "1025"], "context"),
    ):
        assert bench_peers.main(arguments) != 0
        assert word in capsys.readouterr().err
    with pytest.raises(LutraError, match="unknown peer"):
        peer_gguf.plan("tiny", bench.SHAPES["tiny"], "Q9_9")


def test_a_process_that_dies():
    with pytest.raises(LutraError, match=r"ended with status 3: .*last words"):
        bench_peers.Child(
            "it", [sys.executable, "-c", "import sys; sys.stderr.write('last words'); sys.exit(3)"], "", {}
        )


def test_llama_cpp(llama_cpp, capsys, tmp_path):
    known = [type for type in peer_gguf.PEERS if type in llama_cpp["types"]]
    arguments = ["--peer-python", PEER_PYTHON, "--shape", "tiny", "-p", "600", "-n", "2", "-r", "2", "-d", "3"]
    assert bench_peers.main([*arguments, "-t", "1,2", "--work", str(tmp_path), "--json", str(tmp_path / "j")]) == 0
    found = json.loads((tmp_path / "j").read_text())
    assert {r["peer"] for r in found["ratios"]} == {f"llama.cpp {type}" for type in known}
    assert len(found["rows"]) == 4 * (len(known) + 1)
    assert "/ llama.cpp" in capsys.readouterr().out


def test_llama_cpp_says_what_is_wrong(llama_cpp, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, but no more")
    with pytest.raises(LutraError, match="does not load"):
        bench_peers.Child(
            "llama.cpp",
            bench_peers._peer_command(PEER_PYTHON),
            "llama.cpp",
            {"path": str(tmp_path / "bad.gguf"), "n_ctx": 8},
        )
