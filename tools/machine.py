"""What this machine is and can do, measured by ops that do nothing else, and what memory this process has taken."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import numpy as np

from lutra import native
from lutra.runtime.ops import PEAK_BYTES, PEAK_STEPS

__all__ = ["Arithmetic", "cpu_name", "forget_peak_memory", "peak_memory"]

PEAK_SECONDS = 0.05  # of multiplying, per measurement
_PARTS = 8  # per thread
_CPUS, _STATUS, _CLEAR_REFS = Path("/proc/cpuinfo"), Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Arithmetic:
    """How fast an engine's threads multiply bytes, with what their CPU level has for it (kernels/int8/peak.c)."""

    def __init__(self, engine: native.Engine):
        self._engine = engine
        parts = _PARTS * engine.threads
        self._outs = [np.zeros(parts, np.int64) for _ in ("count", "sum")]
        self._ins: list[np.ndarray] = [np.ones((parts, PEAK_BYTES), dtype) for dtype in (np.uint8, np.int8)]
        few = 100 * PEAK_STEPS
        self._plan = self._planned(few)
        self._seconds()  # wakes the threads
        steps = few * PEAK_SECONDS / self._seconds()
        self._plan = self._planned(int(min(max(steps, PEAK_STEPS), 1 << 30)))

    def _planned(self, steps: int) -> native.Plan:
        arrays = [*self._outs, *self._ins]
        args = [native.Arg(native.ABSOLUTE, x.ctypes.data, x.shape[-1], x.strides[0]) for x in arrays]
        return native.Plan(self._engine, [native.Op("peak", args, [steps], [], False, False)], arrays)

    def _seconds(self) -> float:
        step = self._plan.step()
        step.n_tokens = step.n_ctx = 1
        began = time.perf_counter()
        self._plan.run(step)
        return time.perf_counter() - began

    def gmacs(self) -> float:
        """Multiply-adds per second, in 1e9."""
        seconds = self._seconds()
        return float(self._outs[0].sum()) / seconds / 1e9


def cpu_name() -> str:
    """The processor's name, or that of a board that has one."""
    try:
        fields = [line.partition(":") for line in _CPUS.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        fields = []
    names = {name.strip(): value.strip() for name, _, value in fields}
    return names.get("model name") or names.get("Model") or platform.processor() or platform.machine()


def forget_peak_memory() -> None:
    """Let peak_memory() begin anew, where the system can: on Linux."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """The most bytes that were resident at once, since forget_peak_memory() or the process began; 0: unknown."""
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
