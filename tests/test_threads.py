"""How many threads: physical performance cores, as the system describes them."""

import pytest

from lutra.runtime import threads


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of eight CPUs that the process may all use; the test writes what /sys says."""
    monkeypatch.setattr(threads, "_SYSTEM", tmp_path)
    monkeypatch.setattr(threads, "_affinity", lambda: set(range(8)))

    def write(file, text):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text + "\n")

    return write


def siblings(system, pairs):
    for cpu in range(8):
        pair = next(p for p in pairs if cpu in p)
        system(f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", ",".join(map(str, pair)))


def test_nothing_known(system):
    assert threads.default() == 8


def test_hyperthreads_count_once(system):
    siblings(system, [(0, 4), (1, 5), (2, 6), (3, 7)])
    assert threads.default() == 4


def test_only_performance_cores_of_a_hybrid(system):
    siblings(system, [(0, 1), (2, 3), (4,), (5,), (6,), (7,)])
    system("devices/cpu_core/cpus", "0-3")
    assert threads.default() == 2
    assert "performance cores" in threads.reason()


def test_affinity_to_efficiency_cores_alone(system, monkeypatch):
    monkeypatch.setattr(threads, "_affinity", lambda: {6, 7})
    system("devices/cpu_core/cpus", "0-3")
    assert threads.default() == 2


@pytest.mark.parametrize(("limit", "count"), [("max 100000", 8), ("300000 100000", 3), ("50000 100000", 1)])
def test_quota(system, limit, count):
    system("fs/cgroup/cpu.max", limit)
    assert threads.default() == count


@pytest.mark.parametrize("text", ["", "x", "1-", "3-1-2"])
def test_unreadable_lists_count_for_nothing(system, text):
    system("devices/cpu_core/cpus", text)
    assert threads.default() >= 1
