"""How many threads to run with, and arrays worked on by that many."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

__all__ = ["ahead", "default", "in_pieces", "reason"]

T = TypeVar("T")
U = TypeVar("U")
AHEAD = 2  # more fill the caches with one another's rows

_SYSTEM = Path("/sys")


def default() -> int:
    """One thread per physical performance core that this process may use, within its control group's quota."""
    return _decide()[0]


def reason() -> str:
    """Why ``default()`` is what it is, in words."""
    return _decide()[1]


def in_pieces(work: Callable[[slice], None], count: int, step: int) -> None:
    """Call work(slice) for all of range(count), ``step`` at a time, in threads. Raises what one of them raises.

    numpy and the native library let other threads run. Pieces that stay in cache are worth more than threads.
    """
    pieces = [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]
    if len(pieces) < 2:
        return _all(map(work, pieces))
    with ThreadPoolExecutor(default()) as pool:
        return _all(pool.map(work, pieces))


def ahead(work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """map(work, items), but the next two are at work while the caller is: so disks and processors are, at once."""
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[Future[U]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()


def _all(done: Iterable[None]) -> None:
    for _ in done:
        pass


def _decide() -> tuple[int, str]:
    allowed = _affinity()
    fast = allowed & (_cpu_list("devices/cpu_core/cpus") or allowed) or allowed  # Intel's hybrids name their P-cores
    siblings = (_cpu_list(f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or {cpu} for cpu in fast)
    count = len(set(map(frozenset, siblings)))
    kind = "performance cores" if fast != allowed else "cores"
    why = f"{count} {kind} of {len(allowed)} CPUs that this process may use"
    quota = _quota()
    if quota is not None and quota < count:
        return quota, f"{why}, limited to {quota} by its control group"
    return count, why


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cpu_list(file: str) -> set[int]:
    """The CPUs of a list like "0-3,8"; none where there is no such file."""
    try:
        ranges = [part.split("-") for part in (_SYSTEM / file).read_text().strip().split(",")]
        return {cpu for part in ranges for cpu in range(int(part[0]), int(part[-1]) + 1)}
    except (OSError, ValueError):
        return set()


def _quota() -> int | None:
    """CPUs' worth of time that the control group allows, at least 1; None without a limit."""
    try:
        quota, period = (_SYSTEM / "fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return None
