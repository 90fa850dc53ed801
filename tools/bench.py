"""Speed: prompt and generation rates of a model, beside what the machine could do at most.

Rows are llama-bench's (tokens only: no tokenizer, no sampling; one warm-up), plus what a low-bit model should be
judged by, measured in the same run: the share of the machine's read bandwidth that its weights are read with, the
share of its rate of byte multiplications that a prompt reaches, the time until the first token, and memory.
Synthetic models have published shapes and random weights: speed does not depend on their values.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import groupby
from typing import Any

import numpy as np

from lutra import native
from lutra.models.weights import is_kept
from lutra.runtime import formats
from lutra.runtime.errors import LutraError
from lutra.runtime.formats import Packed
from lutra.runtime.model import Model, architecture
from lutra.runtime.session import Session
from lutra.tools import machine

__all__ = [
    "FORMATS",
    "SHAPES",
    "Entry",
    "Row",
    "Test",
    "bench",
    "read_bandwidth",
    "render",
    "synthetic",
    "table",
    "token_bytes",
]

_LLAMA3_VOCAB, _LLAMA2_VOCAB, _FALCON3_VOCAB = 128256, 32000, 131072
SHAPES: dict[str, dict[str, Any]] = {
    "bitnet-2b-4t": {
        "model_type": "bitnet",
        "num_hidden_layers": 30,
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_attention_heads": 20,
        "num_key_value_heads": 5,
        "head_dim": 128,
        "vocab_size": _LLAMA3_VOCAB,
        "max_position_embeddings": 1 << 17,  # 4096 as released; more here, for --n-depth
        "hidden_act": "relu2",
        "tie_word_embeddings": True,
    },
    "bitnet-3b": {
        "model_type": "bitnet",
        "num_hidden_layers": 26,
        "hidden_size": 3200,
        "intermediate_size": 8640,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 100,
        "vocab_size": _LLAMA2_VOCAB + 2,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    "bitnet-large": {
        "model_type": "bitnet",
        "num_hidden_layers": 24,
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 96,
        "vocab_size": _LLAMA2_VOCAB + 2,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    "llama2-7b": {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "vocab_size": _LLAMA2_VOCAB,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "llama3-8b": {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": _LLAMA3_VOCAB,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "tinyllama-1.1b": {
        "model_type": "llama",
        "num_hidden_layers": 22,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": _LLAMA2_VOCAB,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "falcon3-1b": {
        "model_type": "llama",
        "num_hidden_layers": 18,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": _FALCON3_VOCAB,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "falcon3-3b": {
        "model_type": "llama",
        "num_hidden_layers": 22,
        "hidden_size": 3072,
        "intermediate_size": 9216,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": _FALCON3_VOCAB,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "falcon3-7b": {
        "model_type": "llama",
        "num_hidden_layers": 28,
        "hidden_size": 3072,
        "intermediate_size": 23040,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": _FALCON3_VOCAB,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "model_type": "bitnet",
        "num_hidden_layers": 2,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 1024,
        "max_position_embeddings": 1024,
        "hidden_act": "relu2",
        "tie_word_embeddings": True,
    },
}
FORMATS = formats.names()
STREAM_PART = 1 << 20  # bytes, as native/kernels/stream.c has it
STREAM_BYTES = 512 << 20  # read per measurement: far more than any cache


@dataclass(frozen=True)
class Test:
    """What is timed: a prompt, then tokens one by one, with ``n_depth`` tokens in the context beforehand."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name, such as "pp512", "tg128 @ d4096" or "pp512+tg128"."""
        parts = [f"pp{self.n_prompt}"] * bool(self.n_prompt) + [f"tg{self.n_gen}"] * bool(self.n_gen)
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_ctx(self) -> int:
        """Tokens in the context at its end."""
        return self.n_depth + self.n_prompt + self.n_gen


@dataclass(frozen=True)
class Entry:
    """A model of the table. ``open(n_ctx)`` loads it, or makes one of that context if it is synthetic."""

    name: str
    open: Callable[[int], Model]
    filename: str = ""
    synthetic: bool = False


@dataclass
class Row:
    """One test. The first fields are llama-bench's. Rates are per second; a GB is 1e9 bytes."""

    build_commit: str  # the version
    cpu_info: str
    backends: str
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_batch: int  # tokens that one step of a prompt feeds
    n_threads: int
    type_k: str
    type_v: str
    n_prompt: int
    n_gen: int
    n_depth: int
    test_time: str
    avg_ns: int
    stddev_ns: int
    avg_ts: float
    stddev_ts: float
    samples_ns: list[int] = field(repr=False)
    samples_ts: list[float] = field(repr=False)
    test: str
    kernel: str  # of the layers' first matrix
    ttft_ms: float  # until the logits of the prompt, or of one token where there is none; the mean
    load_s: float | None  # None: synthetic
    weight_gbps: float  # generation: bytes of the layers' matrices over the time their kernels took; else 0
    read_gbps: float  # what reading memory and nothing else reaches, measured between the repeats
    bandwidth_ratio: float  # weight_gbps / read_gbps
    whole_ratio: float  # the same for a whole token: bytes of all weights it reads, over all its time
    gmacs: float  # prompt: multiply-adds (1e9) of the layers' matrices over the time their kernels took; else 0
    peak_gmacs: float  # what multiplying bytes and nothing else reaches, measured between the repeats; else 0
    gmacs_ratio: float  # gmacs / peak_gmacs
    kv_bytes: int  # of the session's cache, which the tests of one depth share
    peak_rss: int  # of this test, without the memory that read_gbps is measured with
    rss_ratio: float  # peak_rss / (model_size + kv_bytes)


def synthetic(shape: str, format: str, head: str = "q8", *, n_ctx: int = 0, **options: Any) -> Model:
    """A model of a published shape with random weights, which knows n_ctx tokens even if the published one does not.

    ``format`` stores the layers' matrices, ``head`` the embedding and output. Options as for Model().
    """
    if shape not in SHAPES:
        raise LutraError(f"unknown shape {shape!r}", f"choose from {', '.join(SHAPES)}")
    published = SHAPES[shape]
    longest = max(published["max_position_embeddings"], n_ctx)
    arch = architecture(published)
    config = arch.Config.read(published | {"max_position_embeddings": longest})
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {}
    for pattern, size in arch.shapes(config).items():
        for layer in range(config.layers) if "{}" in pattern else (0,):
            stored = head if is_kept(pattern) else format
            weights[pattern.format(layer)] = np.ones(size, np.float32) if len(size) == 1 else _noise(rng, stored, size)
    return Model(arch, config, weights, **options)


_GRID = {"scale": 0.02, "unit": 0.0003, "zero": 1, "offset": 0.01, "columns": 1, "table": 64, "digits": 1}


def _noise(rng: np.random.Generator, format: str, shape: tuple[int, ...]) -> Packed:
    """A matrix of random bytes where any byte is a weight, of small random floats where not."""
    parts = {}
    for name, (dtype, size) in formats.codec(format).layout(*shape).items():
        if (last := name.rpartition(".")[2]) in _GRID and dtype is not np.int8:
            parts[name] = np.full(size, _GRID[last], dtype)
        elif np.dtype(dtype).itemsize == 1:
            parts[name] = np.frombuffer(rng.bytes(int(np.prod(size))), dtype).reshape(size)
        else:
            small = rng.standard_normal(size[1], np.float32) * np.float32(0.02)
            stored = small if dtype == np.float32 else formats.pack(small[None, :], format).parts["data"]
            parts[name] = np.tile(stored, (size[0], 1))
    return Packed(format, (shape[0], shape[1]), parts).check(format)


def read_bandwidth(engine: native.Engine, data: np.ndarray) -> float:
    """GB/s with which the engine's threads read ``data`` (uint8 [n]) once, front to back."""
    parts = data.nbytes // STREAM_PART
    sums = np.zeros(parts, np.int64)
    args = [
        native.Arg(native.ABSOLUTE, array.ctypes.data, cols, 0) for array, cols in ((sums, parts), (data, STREAM_PART))
    ]
    plan = native.Plan(engine, [native.Op("stream", args, [], [], False, False)], [sums, data])
    step = plan.step()
    step.n_tokens = step.n_ctx = 1
    began = time.perf_counter()
    plan.run(step)
    return parts * STREAM_PART / (time.perf_counter() - began) / 1e9


def bench(
    entries: Sequence[Entry],
    tests: Sequence[Test],
    *,
    threads: Sequence[int],
    repeats: int = 5,
    kv_type: str = "f16",
    warmup: bool = True,
    delay: float = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:
    """Run every test on every model with every number of threads.

    delay: seconds between two tests. progress: told what is being done, a line at a time. Raises
    ContextLengthError for a test that a model's context does not hold.
    """
    memory = np.frombuffer(np.random.default_rng(1).bytes(STREAM_BYTES), np.uint8)
    labels = _Labels(len(entries) * len(threads) * len(tests), progress)
    for entry in entries:
        beds = _beds(entry, tests, threads, kv_type, memory)
        yield from (bed.row(test, repeats, warmup, labels.next(bed.name(test), delay)) for bed, test in beds)


def _beds(
    entry: Entry, tests: Sequence[Test], threads: Sequence[int], kv_type: str, memory: np.ndarray
) -> Iterator[tuple[_Bed, Test]]:
    """Every test with what it runs in. The model's memory is free again afterwards."""
    most = max((test.n_ctx for test in tests), default=1)
    began = time.perf_counter()
    with entry.open(most) as base:
        load_s = None if entry.synthetic else time.perf_counter() - began
    for n_threads in threads:
        with Model(base.arch, base.config, base.weights, threads=n_threads, kv_type=kv_type) as m:
            m.session(most)  # the context must hold every test, before any of them takes its time
            for depth, some in groupby(tests, lambda test: test.n_depth):
                group = list(some)
                bed = _Bed(m, entry, memory, depth, max(test.n_ctx for test in group), load_s)
                yield from ((bed, test) for test in group)


class _Labels:
    """Says which test of how many is running."""

    def __init__(self, total: int, progress: Callable[[str], None]):
        self.total, self.done, self._progress = total, 0, progress

    def next(self, name: str, delay: float) -> Callable[[str], None]:
        """A progress function for the next test, after a delay unless it is the first."""
        time.sleep(delay if self.done else 0)
        self.done += 1
        label = f"{self.done}/{self.total} {name}"
        return lambda text: self._progress(f"{label}: {text}")


@dataclass
class _Run:
    """Nanoseconds of one repeat."""

    all: int
    first: int  # until the first logits: the prompt's, or those of a generation's first token
    gen: int


class _Bed:
    """A model with a context of some depth, ready for tests."""

    def __init__(self, m: Model, entry: Entry, memory: np.ndarray, depth: int, n_ctx: int, load_s: float | None):
        self.m, self.entry, self.memory, self.load_s = m, entry, memory, load_s
        self.session = m.session(n_ctx)
        if depth:
            self.session.feed(_tokens(m, depth))
        self.profile = _Profile(m, self.session)
        self.arithmetic = machine.Arithmetic(m.engine)

    def name(self, test: Test) -> str:
        """What runs, in words."""
        return f"{self.entry.name}, {self.m.engine.threads} threads, {test.name}"

    def row(self, test: Test, repeats: int, warmup: bool, progress: Callable[[str], None]) -> Row:
        """Run the test and say what came of it."""
        machine.forget_peak_memory()
        test_time = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        if warmup:
            progress("warm-up")
            self._once(test)
        self.profile.reset()
        runs: list[_Run] = []
        limits = [self._limits(test)]
        for i in range(repeats):
            runs.append(self._once(test))
            limits.append(self._limits(test))
            rate = (test.n_prompt + test.n_gen) * 1e9 / runs[-1].all
            progress(f"run {i + 1}/{repeats}, {rate:.2f} t/s")
        read, peak = (statistics.median(x) for x in zip(*limits, strict=True))
        return self._row(test, test_time, runs, read, peak)

    def _limits(self, test: Test) -> tuple[float, float]:
        """GB/s of reading, and GMAC/s of multiplying where there is a prompt."""
        return read_bandwidth(self.m.engine, self.memory), self.arithmetic.gmacs() if test.n_prompt else 0.0

    def _once(self, test: Test) -> _Run:
        session, feed = self.session, self.session.feed
        session.rewind(test.n_depth)
        if missing := test.n_depth - len(session.tokens):  # recurrent layers go back further
            self.profile.enter("depth")
            feed(_tokens(self.m, test.n_depth)[-missing:])
        prompt, token = _tokens(self.m, test.n_prompt), _tokens(self.m, 1)
        self.profile.enter("prompt")
        began = time.perf_counter_ns()
        if test.n_prompt:
            feed(prompt)
        prompted = first = time.perf_counter_ns()
        self.profile.enter("gen")
        if test.n_gen:
            feed(token)
            first = first if test.n_prompt else time.perf_counter_ns()
        for _ in range(test.n_gen - 1):
            feed(token)
        ended = time.perf_counter_ns()
        return _Run(ended - began, first - began, ended - prompted)

    def _row(self, test: Test, test_time: str, runs: list[_Run], read_gbps: float, peak_gmacs: float) -> Row:
        m, profile, ns = self.m, self.profile, [run.all for run in runs]
        rates = [(test.n_prompt + test.n_gen) * 1e9 / t for t in ns]
        token_rate = statistics.fmean(test.n_gen * 1e9 / run.gen for run in runs) if test.n_gen else 0.0
        weight_gbps = profile.per_ns("gen", profile.layer_bytes * test.n_gen * len(runs))
        gmacs = profile.per_ns("prompt", profile.layer_macs * test.n_prompt * len(runs))
        kv_bytes = self.session._cache.memory.nbytes
        rss = max(0, machine.peak_memory() - self.memory.nbytes)
        return Row(
            build_commit=_version(),
            cpu_info=machine.cpu_name(),
            backends="CPU",
            model_filename=self.entry.filename,
            model_type=self.entry.name,
            model_size=m.nbytes,
            model_n_params=m.n_params,
            n_batch=m.plan.rows,
            n_threads=m.engine.threads,
            type_k=m.kv_type,
            type_v=m.kv_type,
            n_prompt=test.n_prompt,
            n_gen=test.n_gen,
            n_depth=test.n_depth,
            test_time=test_time,
            avg_ns=round(statistics.fmean(ns)),
            stddev_ns=round(_deviation(ns)),
            avg_ts=statistics.fmean(rates),
            stddev_ts=_deviation(rates),
            samples_ns=ns,
            samples_ts=rates,
            test=test.name,
            kernel=profile.kernel,
            ttft_ms=statistics.fmean(run.first for run in runs) / 1e6,
            load_s=self.load_s,
            weight_gbps=weight_gbps,
            read_gbps=read_gbps,
            bandwidth_ratio=weight_gbps / read_gbps,
            whole_ratio=profile.token_bytes * token_rate / 1e9 / read_gbps,
            gmacs=gmacs,
            peak_gmacs=peak_gmacs,
            gmacs_ratio=gmacs / peak_gmacs if peak_gmacs else 0.0,
            kv_bytes=kv_bytes,
            peak_rss=rss,
            rss_ratio=rss / (m.nbytes + kv_bytes),
        )


def _deviation(x: Sequence[float]) -> float:
    return statistics.stdev(x) if len(x) > 1 else 0.0


def token_bytes(m: Model) -> int:
    """Bytes of the weights that generating a token reads: of an embedding apart from the output, only a row."""
    return m.nbytes - (0 if m.config.tied else m.by_layer.embed.nbytes)


def _macs(weight: Packed) -> int:
    """Multiply-adds that it takes a token to pass the matrix, or the factors that it is stored as."""
    if weight.chains:
        return sum(_macs(factor) for chain in weight.chains for _, factor in chain)
    return weight.shape[0] * weight.shape[1]


class _Profile:
    """Time spent in the layers' matrices, for prompts and for generation, and how large they are."""

    def __init__(self, m: Model, session: Session):
        layers = [w for role, w in m.weights.items() if isinstance(w, Packed) and role.startswith("layers.")]
        self.layer_bytes = sum(w.nbytes for w in layers)
        self.layer_macs = sum(map(_macs, layers))
        self.token_bytes = token_bytes(m)
        plan = m.plan.native
        last = len(plan.op_names) - 1  # the head
        firsts = [ops[0] for ops in plan.stages if plan.op_names[ops[0]].startswith("linear_") and last not in ops]
        self._stages = [i for i, ops in enumerate(plan.stages) if ops[0] in firsts]
        self.kernel = plan.kernels[firsts[0]]
        self._ns = {phase: np.zeros(len(plan.stages), np.int64) for phase in ("depth", "prompt", "gen")}
        self._step = session._step

    def enter(self, phase: str) -> None:
        """From now on time is the phase's."""
        self._step.stage_ns = native.ffi.cast("int64_t *", self._ns[phase].ctypes.data)

    def reset(self) -> None:
        """Forget all time."""
        for ns in self._ns.values():
            ns[:] = 0

    def per_ns(self, phase: str, amount: int) -> float:
        """The amount over the time that the phase spent in the layers' matrices; 0 if it took none."""
        ns = int(self._ns[phase][self._stages].sum())
        return amount / ns if amount and ns else 0.0


def _tokens(m: Model, n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, m.n_vocab, n).tolist()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lutra")
    except PackageNotFoundError:  # running from its sources
        return ""


def render(rows: Sequence[Row], output: str) -> str:
    """The rows as "md", "json", "jsonl" or "csv", which has no samples."""
    records = [asdict(row) for row in rows]
    if output == "json":
        return json.dumps(records, indent=2)
    if output == "jsonl":
        return "\n".join(json.dumps(record) for record in records)
    if output == "csv":
        names = [name for name, value in records[0].items() if not isinstance(value, list)]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().rstrip()
    return _markdown(rows)


_EMPTY = "-"
_LEFT = 3  # columns that begin at their left
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model_type,
    "size": lambda row: _bytes(row.model_size),
    "params": lambda row: _count(row.model_n_params),
    "backend": lambda row: row.backends,
    "threads": lambda row: str(row.n_threads),
    "test": lambda row: row.test,
    "t/s": lambda row: f"{row.avg_ts:.2f} ± {row.stddev_ts:.2f}",
    "weights / read GB/s": lambda row: _share(row.weight_gbps, row.read_gbps, 1),
    "GMAC/s / peak": lambda row: _share(row.gmacs, row.peak_gmacs, 0),
    "TTFT ms": lambda row: f"{row.ttft_ms:.1f}",
    "load s": lambda row: _EMPTY if row.load_s is None else f"{row.load_s:.2f}",
    "RSS (/ model)": lambda row: f"{_bytes(row.peak_rss)} ({row.rss_ratio:.2f})",
}


def _bytes(n: int) -> str:
    return f"{n / 2**20:.2f} MiB" if n < 2**30 else f"{n / 2**30:.2f} GiB"


def _count(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n < 1e9 else f"{n / 1e9:.2f} B"


def _share(value: float, limit: float, digits: int) -> str:
    return f"{value:.{digits}f} / {limit:.{digits}f} = {value / limit:.2f}" if value else _EMPTY


def _markdown(rows: Sequence[Row]) -> str:
    columns = [[name, *map(cell, rows)] for name, cell in _COLUMNS.items()]
    columns = [column for column in columns if any(cell != _EMPTY for cell in column[1:])]
    head, *lines = zip(*columns, strict=True)
    return table(head, lines, _LEFT)


def table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """A table in markdown. left: columns that begin at their left; others end at their right."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]

    def line_of(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line_of(head), line_of(rule), *map(line_of, lines)])
