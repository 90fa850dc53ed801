"""Speed beside peers: lutra and llama.cpp on the same shapes, in one run and in turns.

    python -m lutra.tools.bench_peers --shape bitnet-2b-4t --peers TQ2_0,Q4_0 --formats t5 -t 1,2 -r 5 --work ggufs

Each program lives in a process of its own, loaded once, and idles while another is measured. A round measures every
program once, the read bandwidth first; rounds go through them forwards and backwards in turn, so that a machine that
warms up or slows down favours nobody. A ratio is that of the medians over the rounds; beside it stand the least and
the greatest ratio within a round.

The same for both: threads, token counts, float16 keys and values, the logits of the last token and no sampling, one
uncounted run of each test. llama.cpp gets its defaults (weights repacked for the CPU, flash attention as it chooses)
and batches of 512. Its files hold the layers in one type only and an output matrix as its own quantizer makes one
(tools/peer_gguf.py); its BitNet graph has SiLU in place of squared ReLU. Weights are random: only speed is compared.

Threads of llama.cpp wait for one another, lutra's do not, so a busy machine makes the ratios too high. "others" says
how many CPUs something else took, a virtual machine's stolen time included: where that is not about 0, measure again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from lutra.runtime import formats, memory
from lutra.runtime.errors import LutraError
from lutra.tools import bench, machine, peer_child, peer_gguf
from lutra.tools.program import exit_status

__all__ = ["Contender", "Program", "Ratio", "Row", "installed", "main", "measure", "ratios", "render"]

SETTLE = 0.05  # seconds before each measurement: threads of the program before spin a while before they sleep
QUIET = 0.05  # CPUs that others may take of a measurement
REPACKED = ("Q4_0", "Q2_K", "Q1_0")  # types of which llama.cpp may hold a second copy


class Program(Protocol):
    """What answers requests: a process, or a test's stand-in."""

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request, as peer_child documents them."""


@dataclass(frozen=True)
class Contender:
    """A program under measurement. nbytes: of its file or weights; token_bytes: of those that a token reads."""

    name: str
    is_peer: bool
    program: Program
    model: str
    head: str
    nbytes: int
    token_bytes: int
    kernel: str = ""


@dataclass(frozen=True)
class Row:
    """One test of one program. Rates are per second; a GB is 1e9 bytes."""

    name: str
    is_peer: bool
    model: str
    head: str
    nbytes: int
    token_bytes: int
    kernel: str
    n_threads: int
    n_prompt: int
    n_gen: int
    n_depth: int
    samples_ts: list[float]  # by round
    samples_read_gbps: list[float]  # what reading memory and nothing else reached, by round
    samples_others: list[float]  # CPUs that other programs and other machines took meanwhile, by round
    peak_rss: int  # of the process so far

    @property
    def test(self) -> str:
        """As llama-bench names it: "pp512", or "tg16 @ d256"."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return name + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def median_ts(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.samples_ts)

    @property
    def read_gbps(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.samples_read_gbps)

    @property
    def others(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.samples_others)

    @property
    def share(self) -> float:
        """Generation: the share of the read bandwidth with which a token's weights are read; else 0."""
        return 0.0 if self.n_prompt else self.token_bytes * self.median_ts / 1e9 / self.read_gbps


@dataclass(frozen=True)
class Ratio:
    """How much faster a format of lutra is than a peer: of the medians, and at least and most within a round."""

    model: str
    name: str
    peer: str
    n_threads: int
    test: str
    ratio: float
    low: float
    high: float


class Child:
    """A program in a process of its own (peer_child.py). LutraError if it fails or ends."""

    def __init__(self, name: str, command: Sequence[str], kind: str, options: dict[str, Any]):
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115, closed with the child
        try:
            self._process = subprocess.Popen(
                [*command, kind, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            self._errors.close()
            raise LutraError(f"{name}: {command[0]} does not start: {error.strerror}") from None
        try:
            self.about = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        with suppress(BrokenPipeError):  # the answer has the reason
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LutraError(f"{self.name} ended with status {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LutraError(f"{self.name}: {answer['error']}", answer.get("hint"))
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """End the process."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._errors.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _peer_command(python: str) -> list[str]:
    return [python, peer_child.__file__]


_OWN_COMMAND = [sys.executable, "-m", peer_child.__name__]


def installed(python: str) -> dict[str, Any]:
    """What llama.cpp that Python has: its "version", the tensor "types" it knows, and its "system" line."""
    with Child("llama.cpp", _peer_command(python), "installed", {}) as child:
        return child.about


@contextmanager
def contenders(
    shape: str, peers: Sequence[str], names: Sequence[str], *, head: str, python: str, work: Path, n_ctx: int
) -> Iterator[list[Contender]]:
    """Processes of all programs, loaded: peers by their GGUF type, lutra by its format."""
    config = bench.SHAPES[shape]
    files = [peer_gguf.plan(shape, config, type) for type in peers]
    needed = sum(file.nbytes * (2 if file.type in REPACKED else 1) for file in files)
    memory.require(needed, f"running {len(files)} peers side by side", "take fewer with --peers")
    with ExitStack() as stack:
        found = []
        for file in files:
            name, path = f"llama.cpp {file.type}", file.cached(work)
            options = {"path": str(path), "n_ctx": n_ctx}
            child = stack.enter_context(Child(name, _peer_command(python), "llama.cpp", options))
            found.append(Contender(name, True, child, file.label, file.head, path.stat().st_size, file.token_bytes))
        for format in names:
            name = f"lutra {format}"
            options = {"shape": shape, "format": format, "head": head, "n_ctx": n_ctx}
            child = stack.enter_context(Child(name, _OWN_COMMAND, "lutra", options))
            found.append(Contender(name, False, child, shape, head, **child.about))
        yield found


def measure(
    found: Sequence[Contender],
    reader: Program,
    tests: Sequence[tuple[int, int]],
    *,
    threads: Sequence[int],
    rounds: int,
    depth: int = 0,
) -> Iterator[list[Row]]:
    """Run every (n_prompt, n_gen) test with every number of threads; one row per program for each of them."""
    order = _interleaved(found)
    for n_threads in threads:
        for n_prompt, n_gen in tests:
            request = {"threads": n_threads, "prompt": n_prompt, "gen": n_gen, "depth": depth}
            for one in order:
                one.program.ask(**request)
            samples: dict[str, list[float]] = {one.name: [] for one in order}
            others: dict[str, list[float]] = {one.name: [] for one in order}
            peak_rss, read = {}, []
            for i in range(rounds):
                time.sleep(SETTLE)
                read.append(reader.ask(threads=n_threads)["gbps"])
                for one in order if i % 2 == 0 else reversed(order):
                    time.sleep(SETTLE)
                    answer, taken = _watched(one.program, request)
                    others[one.name].append(taken)
                    samples[one.name].append((n_prompt + n_gen) * 1e9 / answer["ns"])
                    peak_rss[one.name] = answer["peak_rss"]
            yield [
                Row(
                    name=one.name,
                    is_peer=one.is_peer,
                    model=one.model,
                    head=one.head,
                    nbytes=one.nbytes,
                    token_bytes=one.token_bytes,
                    kernel=one.kernel,
                    n_threads=n_threads,
                    n_prompt=n_prompt,
                    n_gen=n_gen,
                    n_depth=depth,
                    samples_ts=samples[one.name],
                    samples_read_gbps=read,
                    samples_others=others[one.name],
                    peak_rss=peak_rss[one.name],
                )
                for one in found
            ]


def _watched(program: Program, request: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The answer to a request, and how many CPUs were busy with something else."""
    busy, began = _busy_seconds(), time.perf_counter()
    answer = program.ask(**request)
    wall = time.perf_counter() - began
    return answer, max(0.0, _busy_seconds() - busy - answer["cpu_ns"] / 1e9) / wall


def _busy_seconds() -> float:
    """CPU time that was not idle, of all CPUs since the machine started, stolen time included; 0 where none tells."""
    try:
        words = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, words)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _interleaved(found: Sequence[Contender]) -> list[Contender]:
    """Peers and lutra's formats spread evenly among each other, a peer first."""
    place: dict[str, float] = {}
    for group in ([c for c in found if c.is_peer], [c for c in found if not c.is_peer]):
        place |= {c.name: (i + 0.5) / len(group) for i, c in enumerate(group)}
    return sorted(found, key=lambda c: (place[c.name], not c.is_peer))


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Every format of lutra over every peer, of the rows of one test with one number of threads."""
    found = []
    for own in (row for row in rows if not row.is_peer):
        for peer in (row for row in rows if row.is_peer):
            by_round = [a / b for a, b in zip(own.samples_ts, peer.samples_ts, strict=True)]
            ratio = own.median_ts / peer.median_ts
            found.append(
                Ratio(own.model, own.name, peer.name, own.n_threads, own.test, ratio, min(by_round), max(by_round))
            )
    return found


def render(groups: Sequence[Sequence[Row]]) -> str:
    """Two markdown tables: the rates, and the ratios of lutra to each peer. A group: rows of one measurement."""
    rates = [_rate_cells(row) for rows in groups for row in rows]
    tables = [bench.table(RATE_HEAD, rates, left=3)]
    found = [_ratio_cells(rows) for rows in groups]
    for peers in dict.fromkeys(peers for peers, _ in found if peers):
        lines = [line for same, cells in found if same == peers for line in cells]
        head = ["lutra", "model", "threads", "test", *(f"/ {peer}" for peer in peers)]
        tables.append(bench.table(head, lines, left=2))
    return "\n\n".join(tables)


RATE_HEAD = [
    "program", "model", "head", "size", "peak RSS", "threads", "test",
    "t/s", "min..max", "read GB/s", "share", "others",
]  # fmt: skip


def _rate_cells(row: Row) -> list[str]:
    return [
        row.name,
        row.model,
        row.head,
        f"{row.nbytes / 2**20:.0f} MiB",
        f"{row.peak_rss / 2**20:.0f} MiB",
        str(row.n_threads),
        row.test,
        f"{row.median_ts:.2f}",
        f"{min(row.samples_ts):.2f}..{max(row.samples_ts):.2f}",
        f"{row.read_gbps:.1f}",
        f"{row.share:.2f}" if row.share else "-",
        f"{row.others:.2f}",
    ]


def _ratio_cells(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[list[str]]]:
    """The peers of one measurement, and a line per format of lutra."""
    found = ratios(rows)
    lines: dict[str, list[str]] = {}
    for r in found:
        line = lines.setdefault(r.name, [r.name, r.model, str(r.n_threads), r.test])
        line.append(f"{r.ratio:.2f} ({r.low:.2f}..{r.high:.2f})")
    return tuple(dict.fromkeys(r.peer for r in found)), list(lines.values())


def record(groups: Sequence[Sequence[Row]], conditions: dict[str, Any]) -> dict[str, Any]:
    """Everything, for JSON."""
    rows = [
        asdict(row)
        | {
            "test": row.test,
            "median_ts": row.median_ts,
            "read_gbps": row.read_gbps,
            "share": row.share,
            "others": row.others,
        }
        for group in groups
        for row in group
    ]
    return {"conditions": conditions, "rows": rows, "ratios": [asdict(r) for group in groups for r in ratios(group)]}


def _chosen(names: str | None, known: Sequence[str], what: str) -> list[str]:
    """A list like A,B of known names; all of them without one."""
    if names is None:
        return list(known)
    found = _names(names)
    for name in found:
        if name not in known:
            raise LutraError(f"there is no {what} {name!r} here", f"choose from {', '.join(known)}")
    return found


def _names(text: str) -> list[str]:
    """A list like A,B without repeats."""
    return list(dict.fromkeys(name for name in text.split(",") if name))


def _counts(text: str) -> list[int]:
    """A list like 1,2,4."""
    return [int(part) for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser("python -m lutra.tools.bench_peers", description="lutra and llama.cpp, side by side.")
    p.add_argument("--list", action="store_true", help="print the peers, formats and shapes there are, and stop")
    p.add_argument("--shape", default="bitnet-2b-4t", metavar="NAME,NAME", help="shapes (default %(default)s)")
    p.add_argument("--peers", metavar="TYPE,TYPE", help="GGUF types; all that llama.cpp knows by default; '': none")
    p.add_argument("--formats", default="t5", metavar="NAME,NAME", help="lutra's formats (default %(default)s)")
    p.add_argument("--head", default="q8", metavar="NAME", help="lutra's format of the embedding and output matrix")
    p.add_argument("-p", "--n-prompt", type=_counts, default=[128, 512], metavar="N,N", help="prompt tokens; 0: none")
    p.add_argument("-n", "--n-gen", type=_counts, default=[16], metavar="N,N", help="tokens generated; 0: none")
    p.add_argument("-d", "--depth", type=int, default=0, metavar="N", help="tokens in the context beforehand")
    p.add_argument("-t", "--threads", type=_counts, default=[1, 2], metavar="N,N", help="numbers of threads")
    p.add_argument("-r", "--rounds", type=int, default=5, metavar="N", help="rounds of each test (default 5)")
    p.add_argument("--peer-python", default=sys.executable, metavar="PATH", help="the Python with llama-cpp-python")
    p.add_argument("--work", type=Path, metavar="DIR", help="where GGUF files are kept; by default they are not")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write everything there; -: print it")
    return p


def _run(args: argparse.Namespace) -> None:
    there = installed(args.peer_python) if args.list or args.peers != "" else {}
    known = [type for type in peer_gguf.PEERS if type in there.get("types", ())]
    if args.list:
        print(f"llama-cpp-python {there['version']}\n{there['system'].strip()}\npeers: {', '.join(known)}")
        print(f"formats: {', '.join(bench.FORMATS)}\nshapes: {', '.join(bench.SHAPES)}")
        return
    tests = [(n, 0) for n in args.n_prompt if n] + [(0, n) for n in args.n_gen if n]
    if not tests or args.rounds < 1 or min(args.threads) < 1 or args.depth < 0:
        raise LutraError("nothing to measure", "give -p or -n, and at least one round and thread")
    peers, shapes = _chosen(args.peers, known, "peer"), _chosen(args.shape, list(bench.SHAPES), "shape")
    for name in _names(args.formats):
        formats.codec(name)  # an error now rather than after all peers are loaded
    groups: list[list[Row]] = []
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_peers_")))
        reader = stack.enter_context(Child("memory", _OWN_COMMAND, "memory", {"nbytes": bench.STREAM_BYTES}))
        for shape in shapes:
            groups += _measured(args, shape, peers, work, reader, tests)
    conditions = {
        "cpu": machine.cpu_name(),
        "cpus": os.cpu_count(),
        "llama_cpp": there,
        "rounds": args.rounds,
        "kv": "f16",
        "batch": peer_child.BATCH,
    }
    print(render(groups))
    print(f"\n{conditions['cpu']}, {conditions['cpus']} CPUs; medians of {args.rounds} rounds")
    others = max(row.others for rows in groups for row in rows)
    if others > QUIET:
        print(
            f"warning: other programs took up to {others:.2f} CPUs; that does not slow all alike: measure again",
            file=sys.stderr,
        )
    if there:
        print(f"llama-cpp-python {there['version']}: {there['system'].strip()}")
    if args.json:
        text = json.dumps(record(groups, conditions), indent=2)
        print(text) if str(args.json) == "-" else args.json.write_text(text + "\n")


def _measured(
    args: argparse.Namespace, shape: str, peers: list[str], work: Path, reader: Child, tests: list[tuple[int, int]]
) -> list[list[Row]]:
    """All rows of one shape, with a word about each on standard error."""
    n_ctx = args.depth + max(prompt + gen for prompt, gen in tests)
    groups = []
    with contenders(
        shape, peers, _names(args.formats), head=args.head, python=args.peer_python, work=work, n_ctx=n_ctx
    ) as found:
        options = {"threads": args.threads, "rounds": args.rounds, "depth": args.depth}
        for rows in measure(found, reader, tests, **options):
            groups.append(rows)
            rates = ", ".join(f"{row.name} {row.median_ts:.2f}" for row in rows)
            print(f"{shape}, {rows[0].n_threads} threads, {rows[0].test}: {rates} t/s", file=sys.stderr)
    return groups


def main(argv: list[str] | None = None) -> int:
    """The command line's exit status."""
    args = parser().parse_args(argv)
    return exit_status(lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
