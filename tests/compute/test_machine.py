"""Cores, memory and device that a process may use, on made-up trees of control groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from txeval.compute import memory
from txeval.compute.machine import (
    as_size,
    memory_limit,
    own_memory,
    parse_size,
    reserve,
    resolve_device,
    usable_cores,
)
from txeval.errors import InputError

GIB = 2**30


def tree(root: Path, group: str, files: dict[str, str], *, lines: str = "") -> Path:
    """A root folder whose process is in a group (version 2), with these files below sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines or f"0::{group}\n")
    (root / "proc/meminfo").write_text("MemTotal:       33554432 kB\nMemFree:  1 kB\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "expected", "source"),
    [
        ({}, 32 * GIB, "the machine"),
        ({"a/b/memory.max": "max", "a/memory.max": "max"}, 32 * GIB, "the machine"),
        ({"a/b/memory.max": str(8 * GIB)}, 8 * GIB, "control group, memory.max"),
        ({"a/b/memory.max": str(8 * GIB), "a/memory.max": str(4 * GIB)}, 4 * GIB, "control group, memory.max"),
        ({"a/b/memory.max": str(8 * GIB), "memory.max": str(2 * GIB)}, 2 * GIB, "control group, memory.max"),
        ({"a/b/memory.max": str(8 * GIB), "a/b/memory.high": str(3 * GIB)}, 3 * GIB, "control group, memory.high"),
        ({"a/b/memory.max": str(64 * GIB)}, 32 * GIB, "the machine"),
        ({"a/b/memory.max": "nonsense", "c/memory.max": "1"}, 32 * GIB, "the machine"),
    ],
)
def test_memory_is_the_least_up_the_hierarchy(
    tmp_path: Path, files: dict[str, str], expected: int, source: str
) -> None:
    found = memory_limit(tree(tmp_path, "/a/b", files))
    assert (found.bytes, found.source) == (expected, source)


def test_memory_of_version_1_and_of_a_container_that_does_not_see_its_group(tmp_path: Path) -> None:
    lines = "9:memory:/docker/abc\n3:cpuset:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n"
    files = {
        "memory/memory.limit_in_bytes": str(5 * GIB),
        "cpu,cpuacct/cpu.cfs_quota_us": "250000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "cpuset/cpuset.effective_cpus": "0-5,8",
    }
    root = tree(tmp_path, "", files, lines=lines)
    assert memory_limit(root).bytes == 5 * GIB
    assert usable_cores(root, affinity=16) == 2
    (root / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(root, affinity=16) == 7
    (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit(root).bytes == 32 * GIB


@pytest.mark.parametrize(
    ("files", "affinity", "expected"),
    [
        ({}, 6, 6),
        ({"a/b/cpu.max": "max 100000"}, 6, 6),
        ({"a/b/cpu.max": "350000 100000"}, 6, 3),
        ({"a/b/cpu.max": "50000 100000"}, 6, 1),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 6, 2),
        ({"a/b/cpuset.cpus.effective": "0-3"}, 6, 4),
        ({"a/b/cpuset.cpus.effective": "0-3", "a/b/cpu.max": "100000 100000"}, 6, 1),
    ],
)
def test_cores_are_the_least_of_affinity_cpusets_and_quotas(
    tmp_path: Path, files: dict[str, str], affinity: int, expected: int
) -> None:
    assert usable_cores(tree(tmp_path, "/a/b", files), affinity=affinity) == expected


def test_a_system_without_control_groups_has_what_the_machine_has(tmp_path: Path) -> None:
    assert memory_limit(tmp_path).bytes == psutil.virtual_memory().total
    assert usable_cores(tmp_path, affinity=3) == 3
    assert 1 <= usable_cores() <= (psutil.cpu_count() or 1)
    assert 0 < memory_limit().bytes <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2 * GIB),
        ("2 gib", 2 * GIB),
        ("2G", 2 * GIB),
        ("16GB", 16 * 10**9),
        ("500M", 500 * 2**20),
        ("1.5G", 3 * 2**29),
        ("1024", 1024),
        (4096, 4096),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "2 XB", "-1G", "0", "1e9", "2GiB4", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="is not a size of memory"):
        parse_size(text)


@pytest.mark.parametrize("count", [1, 10**6, 2**20, 5 * 2**27, 3 * GIB + 1, 40 * GIB])
def test_a_size_for_people_is_never_too_small(count: int) -> None:
    assert count <= parse_size(as_size(count)) <= max(1.11 * count, count + 2**20)


def test_reserve() -> None:
    assert reserve(GIB) == GIB // 2
    assert reserve(20 * GIB) == 2 * GIB
    assert reserve(100 * GIB) == 4 * GIB


def test_own_memory_does_not_count_pages_of_mapped_files(tmp_path: Path) -> None:
    path = tmp_path / "values.npy"
    np.save(path, np.ones(8_000_000))
    before = own_memory()
    mapped = np.load(path, mmap_mode="r")
    assert mapped.sum() == 8_000_000
    assert own_memory() - before < 30e6
    held = np.ones(8_000_000)
    assert own_memory() - before > 60e6
    del held


def test_own_memory_where_kinds_are_not_told_apart(tmp_path: Path) -> None:
    assert own_memory(tmp_path / "none") > 10e6


@pytest.mark.parametrize(
    ("asked", "count", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_devices(asked: str, count: int, expected: str) -> None:
    assert resolve_device(asked, lambda: count) == expected


@pytest.mark.parametrize(
    ("asked", "count", "problem"),
    [
        ("cuda", 0, "torch finds no CUDA device"),
        ("cuda:0", 0, "torch finds no CUDA device"),
        ("cuda:2", 2, r"torch finds 2 CUDA device\(s\)"),
        ("gpu", 1, "the device is 'gpu'"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(asked: str, count: int, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        resolve_device(asked, lambda: count)


@pytest.mark.parametrize("size", [0, 64 * 2**20, 10 * GIB])
def test_rows_are_the_same_in_memory_and_in_a_file(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(0).normal(size=(500, 7)).astype(np.float32)
    rows = np.random.default_rng(1).permutation(500)[:300]
    monkeypatch.setattr(memory, "WORKING_LEAST", 4000)
    with memory.bounded(size, tmp_path):
        found = memory.held_rows(X, rows)
        assert isinstance(found, np.memmap) == (memory.held_bytes() < 4 * 300 * 7)
        np.testing.assert_array_equal(found, X[rows])
        assert not list(tmp_path.iterdir())
    assert memory.working() == memory.WORKING_MOST


def test_pages_of_a_mapped_file_are_given_back_and_keep_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "values"
    memory.allocate(path, 8_000_000)
    assert path.stat().st_size == 8_000_000
    values = np.memmap(path, dtype=np.float64, mode="r+", shape=(1000, 1000))
    values[:] = np.arange(1e6).reshape(1000, 1000)
    before = psutil.Process().memory_info().rss
    memory.release(values[3:].T)
    assert psutil.Process().memory_info().rss < before - 7_000_000
    assert values.sum() == 499999500000.0
    memory.release(np.ones(3))


def test_a_file_that_does_not_fit_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left|File too large"):
        memory.allocate(tmp_path / "values", 2**60)
