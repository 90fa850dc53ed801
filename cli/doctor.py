"""lutra doctor: what this machine is, what lutra makes of it, and whether the two agree."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from lutra.cli.parser import Parser

if TYPE_CHECKING:
    from lutra.runtime.model import Model

HELP = "Show what lutra found on this machine, and check its kernels"

EXAMPLES = """\
LUTRA_CPU=scalar|avx2|... makes any verb do without the instructions above that level.

examples:
  lutra doctor
  lutra doctor --json > report.json
  LUTRA_CPU=avx2 lutra doctor"""


def add_arguments(parser: Parser) -> None:
    """Declare the flags."""
    parser.usage = "lutra doctor [flags]"
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print it for programs")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if the self-test failed."""
    report = examine()
    if args.json:
        import json

        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0 if report["self_test"]["ok"] else 1


def examine() -> dict[str, Any]:
    """Everything that doctor knows, ready for JSON."""
    import platform

    import numpy

    from lutra import __version__, native
    from lutra.runtime import memory, threads
    from lutra.tools.machine import cpu_name

    return {
        "lutra": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "os": platform.platform(),
        "cpu": {
            "name": cpu_name(),
            "features": _found_features(),
            "used": native.cpu_features(),
            "refused": native.cpu_refused(),
            "level": os.environ.get("LUTRA_CPU") or None,
        },
        "threads": {"default": threads.default(), "why": threads.reason()},
        "memory": {"total": _total_memory(), "available": memory.available()},
        "kernels": _chosen_kernels(),
        "built_in_model": _built_in(),
        "paths": _paths(),
        "self_test": self_test(),
    }


def _found_features() -> list[str]:
    """What the CPU has, whatever LUTRA_CPU says."""
    from lutra import native

    level = os.environ.pop("LUTRA_CPU", None)
    try:
        return native.cpu_features()
    finally:
        if level is not None:
            os.environ["LUTRA_CPU"] = level


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _chosen_kernels() -> dict[str, str]:
    """Op -> its best kernel that this CPU can run."""
    from lutra import native

    return {name.rpartition("_")[0]: name for name, runs in native.kernels().items() if runs}


def _built_in() -> str | None:
    from lutra.runtime.errors import ModelNotFoundError
    from lutra.runtime.llm import resolve

    try:
        return str(resolve(None))
    except ModelNotFoundError:
        return None


def _paths() -> dict[str, str | None]:
    from lutra import native
    from lutra.cli.chat import history_file

    return {"package": os.path.dirname(os.path.dirname(native.__file__)), "history": history_file()}


def self_test() -> dict[str, Any]:
    """Run a tiny ternary model on the chosen kernels and on the scalar ones, which must agree to the bit."""
    import time

    import numpy as np

    from lutra import native

    started = time.perf_counter()
    chosen, scalar = (_tiny_model(native.Engine(2, features)) for features in (None, 0))
    with chosen, scalar:
        tokens = list(range(40))
        ok = np.array_equal(chosen.session().logits(tokens), scalar.session().logits(tokens))
        kernels = sorted(set(chosen.plan.native.kernels))
    return {"ok": ok, "milliseconds": round(1000 * (time.perf_counter() - started)), "kernels": kernels}


def _tiny_model(engine: Any) -> Model:
    """A llama of random ternary matrices."""
    import numpy as np

    from lutra.models import llama
    from lutra.runtime import formats
    from lutra.runtime.model import Model

    rng = np.random.default_rng(0)
    config = llama.Config.read(llama.TINY)

    def weight(role: str, shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        codes = rng.integers(-1, 2, shape).astype(np.int8)
        matrix = formats.Coded(codes, rng.uniform(0.01, 0.1, (len(codes), 1)).astype(np.float32))
        return formats.pack(matrix, "q8" if role == "embed" else "t5")

    weights = {
        role.format(layer): weight(role, shape)
        for role, shape in llama.shapes(config).items()
        for layer in range(config.layers if "{}" in role else 1)
    }
    return Model(llama, config, weights, engine=engine)


def _print(report: dict[str, Any]) -> None:
    cpu, threads, memory = report["cpu"], report["threads"], report["memory"]
    level = f"; LUTRA_CPU={cpu['level']} allows {', '.join(cpu['used']) or 'none of them'}" if cpu["level"] else ""
    refused = f"; not {cpu['refused']}" if cpu["refused"] else ""
    test = report["self_test"]
    rows = {
        "lutra": f"{report['lutra']}, Python {report['python']}, numpy {report['numpy']}",
        "system": report["os"],
        "cpu": f"{cpu['name']}: {', '.join(cpu['features']) or 'no vector instructions we use'}{refused}{level}",
        "threads": f"{threads['default']}, {threads['why']}",
        "memory": f"{_gigabytes(memory['available'])} available of {_gigabytes(memory['total'])}",
        "built-in": report["built_in_model"] or "none",
        "package": report["paths"]["package"],
        "history": report["paths"]["history"] or "off (LUTRA_NOHISTORY)",
        "kernels": _by_isa(report["kernels"]),
        "self-test": f"{'passed' if test['ok'] else 'FAILED'} in {test['milliseconds']} ms",
    }
    for name, text in rows.items():
        print(f"{name:10} {text}")
    if not test["ok"]:
        print("error: kernels and their scalar references disagree", file=sys.stderr)
        print("hint: LUTRA_CPU=scalar is slow but right; please report the output of lutra doctor", file=sys.stderr)


def _gigabytes(n: int | None) -> str:
    return "?" if n is None else f"{n / 1e9:.1f} GB"


def _by_isa(kernels: dict[str, str]) -> str:
    """Kernels grouped by their instructions, a line each."""
    groups: dict[str, list[str]] = {}
    for op, kernel in sorted(kernels.items()):
        groups.setdefault(kernel.rpartition("_")[2], []).append(op)
    return f"\n{'':11}".join(f"{isa}: {' '.join(ops)}" for isa, ops in groups.items())
