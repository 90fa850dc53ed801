"""The bench program: its rows and forms, never its speeds."""

import csv
import io
import json
import math
import weakref

import pytest
import tiny

from lutra.cli.main import main
from lutra.runtime import model
from lutra.runtime.errors import LutraError
from lutra.tools import bench, machine

LLAMA_BENCH = [
    "build_commit",
    "cpu_info",
    "backends",
    "model_filename",
    "model_type",
    "model_size",
    "model_n_params",
    "n_batch",
    "n_threads",
    "type_k",
    "type_v",
    "n_prompt",
    "n_gen",
    "n_depth",
    "test_time",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
    "samples_ns",
    "samples_ts",
]  # its names


@pytest.fixture(autouse=True)
def small_measures(monkeypatch):
    monkeypatch.setattr(bench, "STREAM_BYTES", 4 << 20)
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.001)


def tiny_bench(flags):
    return main(["bench", "--shape", "tiny", *flags.split()])


def rows(capsys, flags):
    assert tiny_bench(f"{flags} -o json") == 0
    return json.loads(capsys.readouterr().out)


def test_rows(capsys):
    found = rows(capsys, "-p 8,70 -n 3 -r 2 -t 1,2 -d 5")
    assert [(r["n_threads"], r["test"]) for r in found] == [
        (threads, test) for threads in (1, 2) for test in ("pp8 @ d5", "pp70 @ d5", "tg3 @ d5")
    ]
    for r in found:
        assert len(r["samples_ts"]) == 2
        assert r["avg_ts"] > 0
        assert r["read_gbps"] > 0
        assert r["kernel"].startswith("linear_t5_")
        generates = r["test"].startswith("tg")
        assert [r[name] > 0 for name in ("weight_gbps", "bandwidth_ratio", "whole_ratio")] == [generates] * 3
        assert [r[name] > 0 for name in ("gmacs", "peak_gmacs", "gmacs_ratio")] == [not generates] * 3


def test_combinations(capsys):
    """Depths go round the prompts, generations and both together, as llama-bench's do."""
    found = rows(capsys, "-p 4 -n 2 -pg 6,3 -pg 70,1 -d 0,9 -r 1 -t 1 --format T5,q4g32 --head q8,Q4")
    tests = ["pp4", "tg2", "pp6+tg3", "pp70+tg1"]
    names = ["tiny t5", "tiny t5 + q4", "tiny q4g32", "tiny q4g32 + q4"]
    assert [(r["model_type"], r["test"]) for r in found] == [
        (name, test + depth) for name in names for depth in ("", " @ d9") for test in tests
    ]
    both = found[2]
    assert (both["n_prompt"], both["n_gen"], both["n_depth"]) == (6, 3, 0)
    assert min(both["weight_gbps"], both["whole_ratio"], both["gmacs"]) > 0
    assert both["ttft_ms"] < both["avg_ns"] / 1e6


def test_keys(capsys):
    (row,) = rows(capsys, "-p 5 -n 0 -r 3 -t 1 --cache-type f16")
    assert list(row)[: len(LLAMA_BENCH)] == LLAMA_BENCH
    assert (row["n_batch"], row["type_k"], row["load_s"]) == (model.ROWS, "f16", None)
    assert row["test_time"].endswith("Z")
    assert len(row["samples_ns"]) == 3
    assert 0 < row["ttft_ms"] <= row["avg_ns"] / 1e6
    assert row["kv_bytes"] == 2 * 2 * 2 * 64 * 16 * 2  # layers, keys and values, heads, columns, positions, f16
    assert row["rss_ratio"] == row["peak_rss"] / (row["model_size"] + row["kv_bytes"])
    assert row["peak_rss"] > row["model_size"]


def test_depth_beyond_the_published_context(capsys, tmp_path):
    (row,) = rows(capsys, "-p 0 -n 1 -d 1100 -r 1 -t 1 --no-warmup")
    assert row["test"] == "tg1 @ d1100"
    assert bench.synthetic("tiny", "t5", threads=1).config.n_ctx == 1024


def test_progress(capsys):
    assert tiny_bench("-p 4 -n 2 -r 2 -t 1 --progress --delay 0.001 -o jsonl") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    lines = err.splitlines()
    assert lines[0] == "1/2 tiny t5, 1 threads, pp4: warm-up"
    assert lines[1].startswith("1/2 tiny t5, 1 threads, pp4: run 1/2, ")
    assert len(lines) == 2 * 4


@pytest.mark.parametrize(("shape", "params"), [
    ("llama2-7b", 6_738_415_616), ("llama3-8b", 8_030_261_248), ("tinyllama-1.1b", 1_100_048_384),
    ("smollm2-135m", 134_515_008), ("falcon3-1b", 1_669_408_768), ("falcon3-3b", 3_227_655_168),
    ("falcon3-7b", 7_455_550_464),
])  # fmt: skip
def test_shapes_have_as_many_parameters_as_published(shape, params):
    arch = bench.architecture(bench.SHAPES[shape])
    config = arch.Config.read(bench.SHAPES[shape])
    sizes = [(role, math.prod(size)) for role, size in arch.shapes(config).items()]
    assert sum(n * (config.layers if "{}" in role else 1) for role, n in sizes) == params


@pytest.mark.parametrize("format", bench.FORMATS)
def test_every_format_and_head(capsys, format):
    (row,) = rows(capsys, f"--format {format} --head {tiny.head_format(format)} -p 0 -n 2 -r 1")
    assert row["model_n_params"] == 1444608


def test_a_real_model_has_the_same_rows(capsys, tmp_path):
    checkpoints = pytest.importorskip("checkpoints", reason="needs torch and transformers")
    checkpoints.bitnet_packed(tmp_path)
    assert main(["bench", str(tmp_path), "-p", "4", "-n", "2", "-r", "1", "-o", "jsonl"]) == 0
    assert [json.loads(line)["test"] for line in capsys.readouterr().out.splitlines()] == ["pp4", "tg2"]


def test_a_real_model_loads_and_has_a_context(capsys, tmp_path):
    checkpoints = pytest.importorskip("checkpoints", reason="needs torch and transformers")
    checkpoints.bitnet_packed(tmp_path)
    assert main(["bench", str(tmp_path), "-p", "4", "-n", "0", "-r", "1", "-t", "1", "-o", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["load_s"] > 0
    assert (row["model_filename"], row["model_type"]) == (str(tmp_path), tmp_path.name)
    assert main(["bench", str(tmp_path), "-p", "4", "-n", "0", "-d", "0,1000000"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: a context of 1000004 tokens: this model knows 1 to ")
    assert main(["bench", str(tmp_path), "--format", "t5"]) == 2


def table(capsys, form, flags):
    assert tiny_bench(f"{flags} -r 1 -t 1 -o {form}") == 0
    return capsys.readouterr().out


def test_forms_for_programs(capsys):
    (from_csv,) = csv.DictReader(io.StringIO(table(capsys, "csv", "-p 4 -n 0")))
    (from_jsonl,) = map(json.loads, table(capsys, "jsonl", "-p 4 -n 0").splitlines())
    assert set(from_jsonl) - set(from_csv) == {"samples_ns", "samples_ts"}
    assert from_csv["test"] == from_jsonl["test"] == "pp4"
    assert int(from_csv["model_size"]) == from_jsonl["model_size"]


def test_the_table_has_no_empty_columns(capsys):
    lines = table(capsys, "md", "-p 4 -n 0").splitlines()
    prompt = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert prompt[:7] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert "GMAC/s / peak" in prompt
    assert "weights / read GB/s" not in prompt
    assert "load s" not in prompt
    assert lines[1].startswith("| ----")
    assert "pp4" in lines[2]
    both = table(capsys, "md", "-p 4 -n 2").splitlines()
    assert len({len(line) for line in both}) == 1
    assert len(bench._COLUMNS) <= 12


def test_lists(capsys):
    for arguments in (["--list"], ["--shape", "list"]):
        assert main(["bench", *arguments]) == 0
        out = capsys.readouterr().out
        assert "bitnet-2b-4t" in out
        assert ("t5" in out) == (arguments == ["--list"])


@pytest.mark.parametrize(("arguments", "words"), [
    ("--shape nothing", "bitnet-2b-4t"), ("--shape tiny --format t5,t99", "t99"), ("--shape tiny --head t5", "t5"),
    ("-p -5", "-p"), ("-p 5,x", "5,x"), ("-p 1,,2", "1,,2"), ("-d many", "many"), ("-n 3,-1", "-1"), ("-pg 512", "512"),
    ("-pg 5,0", "5,0"), ("-pg 1,2,3", "1,2,3"), ("-r 0", "0"), ("--delay -1", "-1"), ("--delay nan", "nan"),
    ("-t two", "two"), ("-o sql", "sql"), ("-p 0 -n 0", "nothing"), ("--shape tiny a_model", "either"),
    ("--format t5", "--shape"),
])  # fmt: skip
def test_wrong_usage(arguments, words, capsys):
    try:
        code = main(["bench", *arguments.split()])
    except SystemExit as stopped:
        code = stopped.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    error, *hint = err.splitlines()
    assert error.startswith("error: ")
    assert words in error
    assert len(hint) <= 1


def test_lists_from_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("LUTRA_ARG_N_PROMPT", "3,4")
    monkeypatch.setenv("LUTRA_ARG_PROMPT_GEN", "5,1")
    found = rows(capsys, "-n 0 -r 1 -t 1")
    assert [r["test"] for r in found] == ["pp3", "pp4", "pp5+tg1"]


def test_rows_survive_what_stops_the_bench(capsys, monkeypatch):
    opened = bench.synthetic

    def fail_on_q8(shape, format, *arguments, **options):
        if format == "q8":
            raise LutraError("no q8 today")
        return opened(shape, format, *arguments, **options)

    monkeypatch.setattr(bench, "synthetic", fail_on_q8)
    assert tiny_bench("--format t5,q8 -p 4 -n 0 -r 1 -t 1 -o json") == 1
    out, err = capsys.readouterr()
    assert [r["model_type"] for r in json.loads(out)] == ["tiny t5"]
    assert err.startswith("error: no q8 today")


def test_one_model_at_a_time_is_in_memory(capsys, monkeypatch):
    opened, seen = bench.synthetic, []

    def opening(*arguments, **options):
        assert [weight() for weight in seen] == [None] * len(seen)
        model = opened(*arguments, **options)
        seen.append(weakref.ref(model.weights["layers.0.qkv"].parts["data"]))
        return model

    monkeypatch.setattr(bench, "synthetic", opening)
    assert len(rows(capsys, "--format t5,q8,f32 -p 4 -n 2 -r 1 -t 1,2")) == 12
    assert len(seen) == 3


def test_what_there_is_not():
    with pytest.raises(LutraError, match="unknown shape"):
        bench.synthetic("nothing", "t5")
    with pytest.raises(LutraError, match="embed_t5"):
        bench.synthetic("tiny", "f32", "t5")
