"""Speed: prompt and generation rates of a model, beside the bandwidth of the memory its weights are read from.

Rows are llama-bench's (tokens only: no tokenizer, no sampling; one warm-up), plus what a low-bit model should be
judged by: the share of the machine's read bandwidth that its weights are read with, measured in the same run.
Synthetic models have published shapes and random weights: speed does not depend on their values.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lutra import native
from lutra.runtime import formats
from lutra.runtime.errors import LutraError
from lutra.runtime.formats import Packed
from lutra.runtime.model import Model, architecture
from lutra.runtime.session import Session

__all__ = ["FORMATS", "SHAPES", "Row", "bench", "read_bandwidth", "render", "synthetic"]

_LLAMA3_VOCAB, _LLAMA2_VOCAB = 128256, 32000
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


@dataclass
class Row:
    """One test. Rates are per second; a GB is 1e9 bytes."""

    model_type: str
    model_size: int
    model_n_params: int
    n_threads: int
    n_prompt: int
    n_gen: int
    n_depth: int
    avg_ts: float
    stddev_ts: float
    weight_gbps: float  # generation: bytes of the layers' matrices over the time their kernels took; else 0
    read_gbps: float  # what reading memory and nothing else reaches, measured between the repeats
    bandwidth_ratio: float  # weight_gbps / read_gbps
    whole_ratio: float  # the same for a whole token: bytes of all weights it reads, over all its time
    samples_ts: list[float] = field(default_factory=list)
    samples_ns: list[int] = field(default_factory=list)
    kernel: str = ""
    peak_rss: int = 0
    backends: str = "CPU"
    cpu_info: str = ""

    @property
    def test(self) -> str:
        """llama-bench's name of the test, such as "pp512" or "tg128 @ d64"."""
        if self.n_prompt and self.n_gen:
            name = f"pp{self.n_prompt}+tg{self.n_gen}"
        else:
            name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return name + (f" @ d{self.n_depth}" if self.n_depth else "")


def synthetic(shape: str, format: str, head: str = "q8", **options: Any) -> Model:
    """A model of a published shape with random weights.

    ``format`` stores the layers' matrices, ``head`` the embedding and output. Options as for Model().
    """
    if shape not in SHAPES:
        raise LutraError(f"unknown shape {shape!r}", f"choose from {', '.join(SHAPES)}")
    arch = architecture(SHAPES[shape])
    config = arch.Config.read(SHAPES[shape])
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {}
    for pattern, size in arch.shapes(config).items():
        for layer in range(config.layers) if "{}" in pattern else (0,):
            stored = head if pattern in ("embed", "head") else format
            weights[pattern.format(layer)] = np.ones(size, np.float32) if len(size) == 1 else _noise(rng, stored, size)
    return Model(arch, config, weights, **options)


_GRID = {"scale": 0.02, "zero": 1, "offset": 0.01, "columns": 1}


def _noise(rng: np.random.Generator, format: str, shape: tuple[int, ...]) -> Packed:
    """A matrix of random bytes where any byte is a weight, of small random floats where not."""
    parts = {}
    for name, (dtype, size) in formats.codec(format).layout(*shape).items():
        if (last := name.rpartition(".")[2]) in _GRID:
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
    model: Callable[[int], Model],
    tests: Sequence[tuple[int, int]],
    *,
    threads: Sequence[int],
    repeats: int = 5,
    depth: int = 0,
    name: str = "model",
    warmup: bool = True,
) -> Iterator[Row]:
    """Run every (n_prompt, n_gen) test with every number of threads. ``model(threads)`` makes the model."""
    memory = np.frombuffer(np.random.default_rng(1).bytes(STREAM_BYTES), np.uint8)
    for n_threads in threads:
        with model(n_threads) as m:
            for n_prompt, n_gen in tests:
                yield _row(m, memory, n_prompt, n_gen, repeats=repeats, depth=depth, name=name, warmup=warmup)


def _row(
    m: Model, memory: np.ndarray, n_prompt: int, n_gen: int, *, repeats: int, depth: int, name: str, warmup: bool
) -> Row:
    session = m.session(depth + n_prompt + n_gen)
    if depth:
        session.feed(_tokens(m, depth))
    profile = _Profile(m, session)
    if warmup:
        _once(m, session, n_prompt, n_gen, depth)
    profile.reset()
    ns, bandwidth = [], []
    for _ in range(repeats):
        bandwidth.append(read_bandwidth(m.engine, memory))
        ns.append(_once(m, session, n_prompt, n_gen, depth))
    bandwidth.append(read_bandwidth(m.engine, memory))
    rates = [(n_prompt + n_gen) * 1e9 / t for t in ns]
    read_gbps, avg = statistics.median(bandwidth), statistics.fmean(rates)
    generates = n_gen and not n_prompt
    whole_gbps = profile.token_bytes * avg / 1e9 if generates else 0.0
    weight_gbps = profile.layer_bytes * n_gen * repeats / profile.layer_ns if generates else 0.0
    return Row(
        model_type=name,
        model_size=m.nbytes,
        model_n_params=m.n_params,
        n_threads=m.engine.threads,
        n_prompt=n_prompt,
        n_gen=n_gen,
        n_depth=depth,
        avg_ts=avg,
        stddev_ts=statistics.stdev(rates) if len(rates) > 1 else 0.0,
        weight_gbps=weight_gbps,
        read_gbps=read_gbps,
        bandwidth_ratio=weight_gbps / read_gbps,
        whole_ratio=whole_gbps / read_gbps,
        samples_ts=rates,
        samples_ns=ns,
        kernel=profile.kernel,
        peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024),
        cpu_info=_cpu_info(),
    )


class _Profile:
    """Time spent in the layers' matrices, and how many bytes they are."""

    def __init__(self, m: Model, session: Session):
        layers = [w for role, w in m.weights.items() if isinstance(w, Packed) and role.startswith("layers.")]
        self.layer_bytes = sum(w.nbytes for w in layers)
        looked_up = 0 if m.config.tied else m.by_layer.embed.nbytes  # a token reads one row of it
        self.token_bytes = m.nbytes - looked_up
        plan = m.plan.native
        last = len(plan.op_names) - 1  # the head
        firsts = [ops[0] for ops in plan.stages if plan.op_names[ops[0]].startswith("linear_") and last not in ops]
        self._stages = [i for i, ops in enumerate(plan.stages) if ops[0] in firsts]
        self.kernel = plan.kernels[firsts[0]]
        self._ns = np.zeros(len(plan.stages), np.int64)
        session._step.stage_ns = native.ffi.cast("int64_t *", self._ns.ctypes.data)

    def reset(self) -> None:
        self._ns[:] = 0

    @property
    def layer_ns(self) -> int:
        return int(self._ns[self._stages].sum())


def _once(m: Model, session: Session, n_prompt: int, n_gen: int, depth: int) -> int:
    """Nanoseconds of one repeat."""
    session.rewind(depth)
    prompt, token = _tokens(m, n_prompt), _tokens(m, 1)
    began = time.perf_counter_ns()
    if n_prompt:
        session.feed(prompt)
    for _ in range(n_gen):
        session.feed(token)
    return time.perf_counter_ns() - began


def _tokens(m: Model, n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, m.n_vocab, n).tolist()


def _cpu_info() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def render(rows: Sequence[Row], output: str) -> str:
    """The rows as "md", "json", "jsonl" or "csv"."""
    records = [asdict(row) | {"test": row.test} for row in rows]
    if output == "json":
        return json.dumps(records, indent=2)
    if output == "jsonl":
        return "\n".join(json.dumps(record) for record in records)
    if output == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().rstrip()
    return _markdown(rows)


def _markdown(rows: Sequence[Row]) -> str:
    head = ["model", "size", "params", "backend", "threads", "test", "t/s", "weights GB/s", "read GB/s", "ratio"]
    table = [
        [
            row.model_type,
            f"{row.model_size / 2**20:.2f} MiB" if row.model_size < 2**30 else f"{row.model_size / 2**30:.2f} GiB",
            f"{row.model_n_params / 1e6:.2f} M" if row.model_n_params < 1e9 else f"{row.model_n_params / 1e9:.2f} B",
            row.backends,
            str(row.n_threads),
            row.test,
            f"{row.avg_ts:.2f} ± {row.stddev_ts:.2f}",
            f"{row.weight_gbps:.1f}" if row.weight_gbps else "-",
            f"{row.read_gbps:.1f}",
            f"{row.bandwidth_ratio:.2f}" if row.weight_gbps else "-",
        ]
        for row in rows
    ]
    lines = [head, *table]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def line_of(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < 3 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line_of(head), line_of(rule), *map(line_of, table)])
