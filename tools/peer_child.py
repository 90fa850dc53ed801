"""A program that bench_peers measures, in a process of its own: a line of JSON asks, a line of JSON answers.

It also runs by its path under another Python, in which llama-cpp-python is installed and lutra is not, so this file
takes nothing but the standard library before it opens a model.

    first line    what the program says of itself, or {"error": ..., "hint": ...}
    request       {"threads", "prompt", "gen", "depth"}: feed so many tokens at once, then so many one by one
    answer        {"ns", "cpu_ns", "peak_rss"}; from "memory" {"gbps"}
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

BATCH = 512  # n_batch and n_ubatch of llama.cpp

MISSING = (
    "llama-cpp-python is not installed for {}",
    "pip install llama-cpp-python there, or name another Python with --peer-python; built by gcc 12 on a CPU with AMX, "
    "its AMX kernels crash: take a newer compiler there, or build it without AMX",
)


class LlamaCpp:
    """libllama, through the ctypes declarations of llama-cpp-python. Its defaults hold, but for the batch size."""

    def __init__(self, path: str, n_ctx: int):
        self.lib = lib = _llama_cpp()
        self._log = lib.llama_log_callback(self._keep)  # kept alive: C calls it
        self._errors: list[str] = []
        lib.llama_log_set(self._log, None)
        lib.llama_backend_init()
        options = lib.llama_model_default_params()
        options.n_gpu_layers = 0
        model = lib.llama_model_load_from_file(os.fsencode(path), options)
        if not model:
            raise RuntimeError(f"llama.cpp does not load {path}: {self._error}")
        context = lib.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, BATCH, BATCH
        self.context = lib.llama_init_from_model(model, context)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context of {n_ctx}: {self._error}")
        self.memory = lib.llama_get_memory(self.context)
        self.n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.fed = 0
        self.about = {"kernel": ""}

    def prepare(self, threads: int, depth: int) -> None:
        """Take so many threads, and go back or on to that depth."""
        self.lib.llama_set_n_threads(self.context, threads, threads)
        if self.fed > depth:
            self.lib.llama_memory_seq_rm(self.memory, 0, depth, -1)
            self.fed = depth
        if self.fed < depth:
            self.feed(_tokens(self.n_vocab, depth - self.fed))

    def feed(self, tokens: list[int]) -> None:
        """Append tokens, and wait for the last one's logits."""
        lib = self.lib
        for begin in range(0, len(tokens), BATCH):
            part = tokens[begin : begin + BATCH]
            array = (lib.llama_token * len(part))(*part)
            if lib.llama_decode(self.context, lib.llama_batch_get_one(array, len(part))):
                raise RuntimeError(f"llama_decode failed: {self._error}")
            lib.llama_synchronize(self.context)
        self.fed += len(tokens)

    def _keep(self, level: int, text: bytes, _: Any) -> None:
        if level == 4:  # an error
            self._errors.append(text.decode(errors="replace").strip())

    @property
    def _error(self) -> str:
        return self._errors[-1] if self._errors else "it does not say why"


class Lutra:
    """lutra, with a model of random weights and a float16 cache."""

    def __init__(self, shape: str, format: str, head: str, n_ctx: int):
        from lutra.tools import bench

        self.base = base = bench.synthetic(shape, format, head, threads=1)
        base.close()
        self.n_ctx, self.n_vocab = n_ctx, base.n_vocab
        self.sessions: dict[int, Any] = {}
        kernels = {kernel for kernel in self._session(1).model.plan.native.kernels if kernel.startswith("linear_")}
        self.about = {
            "kernel": " ".join(sorted(kernels)),
            "nbytes": base.nbytes,
            "token_bytes": bench.token_bytes(base),
        }

    def _session(self, threads: int) -> Any:
        from lutra.runtime.model import Model

        if threads not in self.sessions:
            base = self.base
            model = Model(base.arch, base.config, base.weights, threads=threads, kv_type="f16")
            self.sessions[threads] = model.session(self.n_ctx)
        return self.sessions[threads]

    def prepare(self, threads: int, depth: int) -> None:
        """Take so many threads, and go back or on to that depth."""
        self.session = session = self._session(threads)
        session.rewind(min(depth, len(session.tokens)))
        if len(session.tokens) < depth:
            session.feed(_tokens(self.n_vocab, depth - len(session.tokens)))

    def feed(self, tokens: list[int]) -> None:
        """Append tokens, and wait for the last one's logits."""
        self.session.feed(tokens)


class Memory:
    """The machine's read bandwidth, as lutra's bench measures it."""

    def __init__(self, nbytes: int):
        import numpy as np

        self.data = np.frombuffer(np.random.default_rng(1).bytes(nbytes), np.uint8)
        self.about: dict[str, Any] = {}

    def answer(self, threads: int) -> dict[str, Any]:
        """GB/s that so many threads read."""
        from lutra import native
        from lutra.tools.bench import read_bandwidth

        engine = native.Engine(threads)
        try:
            return {"gbps": read_bandwidth(engine, self.data)}
        finally:
            engine.close()


class Installed:
    """What there is of llama.cpp; it answers no requests."""

    def __init__(self) -> None:
        import llama_cpp

        lib = _llama_cpp()
        prefix = "LLAMA_FTYPE_MOSTLY_"  # and Q4_K_S has layers in Q4_K and no other type
        names = [name.removeprefix(prefix).removesuffix("_S") for name in dir(lib) if name.startswith(prefix)]
        self.about = {
            "version": llama_cpp.__version__,
            "types": names,
            "system": lib.llama_print_system_info().decode(),
        }


def _llama_cpp() -> Any:
    from llama_cpp import llama_cpp

    return llama_cpp


def _answer(program: LlamaCpp | Lutra, threads: int, prompt: int, gen: int, depth: int) -> dict[str, Any]:
    """Nanoseconds of one test, of CPU time for the whole request, and the most memory that the process ever held."""
    cpu_began = time.process_time_ns()
    program.prepare(threads, depth)
    at_once, token = _tokens(program.n_vocab, prompt), _tokens(program.n_vocab, 1)
    began = time.perf_counter_ns()
    if prompt:
        program.feed(at_once)
    for _ in range(gen):
        program.feed(token)
    ns = time.perf_counter_ns() - began
    return {"ns": ns, "cpu_ns": time.process_time_ns() - cpu_began, "peak_rss": _peak_rss()}


def _tokens(n_vocab: int, n: int) -> list[int]:
    return random.Random(n).choices(range(n_vocab), k=n)


def _peak_rss() -> int:
    """Bytes. Not ru_maxrss where avoidable: on Linux it starts with the parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


PROGRAMS: dict[str, Any] = {"llama.cpp": LlamaCpp, "lutra": Lutra, "memory": Memory, "installed": Installed}


def main(kind: str, options: str) -> None:
    """Serve standard input until it ends. Whatever a library prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=out)

    try:
        program = PROGRAMS[kind](**json.loads(options))
        say(program.about)
        for line in sys.stdin:
            request = json.loads(line)
            say(program.answer(**request) if kind == "memory" else _answer(program, **request))
    except ModuleNotFoundError as error:
        told = (MISSING[0].format(sys.executable), MISSING[1]) if error.name == "llama_cpp" else (str(error), None)
        say({"error": told[0], "hint": told[1]})
    except Exception as error:
        say({"error": str(error), "hint": getattr(error, "hint", None)})


if __name__ == "__main__":
    main(*sys.argv[1:])
