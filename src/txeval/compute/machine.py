"""What this process may use of the machine: cores, memory and accelerators, within the limits of its control groups."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from txeval.errors import InputError

__all__ = [
    "Memory",
    "as_size",
    "memory_limit",
    "own_memory",
    "parse_size",
    "reserve",
    "resolve_device",
    "usable_cores",
]

GIB = 2**30

#: What is left to the system and to other programs by default: a tenth, within these bounds.
RESERVE_LEAST, RESERVE_MOST = GIB // 2, 4 * GIB

#: Limits of control groups at or above this are none: version 1 writes the largest number of pages.
_UNLIMITED = 2**60

#: Where the controllers of version 1 are mounted, by the file that is wanted.
_V1 = {
    "memory.limit_in_bytes": ("memory",),
    "cpu.cfs_quota_us": ("cpu", "cpu,cpuacct"),
    "cpu.cfs_period_us": ("cpu", "cpu,cpuacct"),
    "cpuset.effective_cpus": ("cpuset",),
    "cpuset.cpus": ("cpuset",),
}

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1024**_power, f"{_letter}ib": 1024**_power, f"{_letter}b": 1000**_power}


@dataclass(frozen=True)
class Memory:
    """A bound on memory.

    Attributes
    ----------
    bytes
        How much.
    source
        What sets it, for messages.
    """

    bytes: int
    source: str


def parse_size(text: str | int) -> int:
    """Bytes of a size such as "2GiB", "16GB", "500M" or "1.5 G".

    K, M, G, T and KiB, MiB, GiB, TiB count in powers of 1024, KB, MB, GB, TB in powers of 1000; case does not matter.

    Raises
    ------
    InputError
        For anything else, and for less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = match.group(2).lower() if match else "?"
    if match is None or unit not in _UNITS or float(match.group(1)) * _UNITS[unit] < 1:
        raise InputError(f"{text!r} is not a size of memory", remedy="write 2GiB, 16GB or 500M")
    return int(float(match.group(1)) * _UNITS[unit])


def as_size(count: int) -> str:
    """A number of bytes for people, rounded up: 1.5 GiB."""
    unit, name = (GIB, "GiB") if count >= GIB else (2**20, "MiB")
    value = math.ceil(10 * count / unit) / 10 if unit == GIB else math.ceil(count / unit)
    return f"{value:g} {name}"


def usable_cores(root: Path = Path("/"), *, affinity: int | None = None) -> int:
    """Cores that this process may use: the least of its affinity, its cpusets and its quotas, at least 1.

    Parameters
    ----------
    root
        Folder that holds `proc` and `sys`.
    affinity
        Cores that the scheduler gives the process; None: asked of the system.
    """
    if affinity is None:
        try:
            affinity = len(os.sched_getaffinity(0))
        except AttributeError:  # not on this system
            affinity = os.cpu_count() or 1
    found = [affinity]
    for text in _values(root, "cpu.max"):
        quota, _, period = text.partition(" ")
        with suppress(ValueError):
            found.append(int(float(quota) / float(period or 100_000)))
    for quota, period in zip(_values(root, "cpu.cfs_quota_us"), _values(root, "cpu.cfs_period_us"), strict=False):
        with suppress(ValueError, ZeroDivisionError):
            if int(quota) > 0:
                found.append(int(quota) // int(period))
    for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
        found += [count for count in map(_listed, _values(root, name)) if count]
    return max(1, min(found))


def memory_limit(root: Path = Path("/")) -> Memory:
    """Memory that this process may use: the least of the machine's and of what its control groups allow.

    `memory.max` and `memory.high` (version 2) and `memory.limit_in_bytes` (version 1) of the group of the process and
    of all groups above it count.

    Parameters
    ----------
    root
        Folder that holds `proc` and `sys`.
    """
    least = Memory(_total(root), "the machine")
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        for text in _values(root, name):
            with suppress(ValueError):
                if 0 < int(text) < min(least.bytes, _UNLIMITED):
                    least = Memory(int(text), f"control group, {name}")
    return least


def reserve(limit: int) -> int:
    """What is left to others by default: a tenth, but 0.5 to 4 GiB, and never more than half."""
    return min(max(limit // 10, RESERVE_LEAST), RESERVE_MOST, limit // 2)


def own_memory(status: Path = Path("/proc/self/status")) -> int:
    """Bytes of memory that this process keeps others from using.

    Anonymous and shared memory (`RssAnon` + `RssShmem`). Pages of mapped files do not count: the system takes them back
    when it needs them. Where these are not told apart: the whole resident set.
    """
    with suppress(OSError, ValueError, IndexError):
        lines = (line.split() for line in status.read_text(encoding="ascii").splitlines())
        parts = {line[0]: int(line[1]) * 1024 for line in lines if line and line[0] in ("RssAnon:", "RssShmem:")}
        if "RssAnon:" in parts:
            return sum(parts.values())
    return int(psutil.Process().memory_info().rss)


def resolve_device(asked: str, available: Callable[[], int] | None = None) -> str:
    """Device of torch for "auto", "cpu", "cuda" or "cuda:N": "auto" is "cuda" where there is one, else "cpu".

    Parameters
    ----------
    available
        Gives the number of CUDA devices; None: asked of torch.

    Raises
    ------
    InputError
        For another name, and for a CUDA device that is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", asked):
        raise InputError(f"the device is {asked!r}", remedy="use auto, cpu, cuda or cuda:0 (or another number)")
    if asked == "cpu":
        return asked
    count = (available or _cuda_devices)()
    if asked == "auto":
        return "cuda" if count else "cpu"
    if not count:
        raise InputError(
            f"the device {asked} is asked for, and torch finds no CUDA device",
            remedy="use --device cpu, or install a build of torch for CUDA on a machine that has one",
        )
    if ":" in asked and int(asked.partition(":")[2]) >= count:
        raise InputError(
            f"the device {asked} is asked for, and torch finds {count} CUDA device(s)",
            remedy=f"use cuda:0 to cuda:{count - 1}",
        )
    return asked


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _total(root: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return int(psutil.virtual_memory().total)


def _values(root: Path, name: str) -> Iterator[str]:
    """First lines of the files of this name, from the group of the process up to the root of the hierarchy."""
    for base, group in _groups(root, name):
        folder = base / group.lstrip("/")
        # In a container the group may be named as the host sees it: then only the root is there.
        while True:
            with suppress(OSError, UnicodeDecodeError):
                text = (folder / name).read_text(encoding="ascii").strip()
                if text:
                    yield text.splitlines()[0]
            if folder in (base, folder.parent) or base not in folder.parents:
                break
            folder = folder.parent


def _groups(root: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Mounted hierarchies that may hold a file, and the group of the process within each."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if name in _V1:
            for mount in _V1[name]:
                if set(mount.split(",")) & set(controllers.split(",")) and (top / mount).is_dir():
                    yield top / mount, group
        elif number == "0" and not controllers:
            yield (top / "unified" if (top / "unified").is_dir() else top), group


def _listed(text: str) -> int:
    """Number of cores of a list such as 0-3,7."""
    count = 0
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        try:
            count += int(last or first) - int(first) + 1
        except ValueError:
            return 0
    return count
