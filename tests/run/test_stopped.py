"""Runs that are killed, stopped, or meet a full disk: what was finished is kept, and nothing is computed twice."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from run_helpers import config, run, running, same_scores, stamps

from txeval.errors import InputError
from txeval.run import read_scores

CELLS = 14


@pytest.fixture(scope="module")
def undisturbed(screen_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(screen_file, out)
    return out


def gone(children: list[psutil.Process]) -> bool:
    """Whether all these processes end within a minute: loaded machines take their time."""
    _, alive = psutil.wait_procs(children, timeout=60)
    return not alive


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_minus_9(screen_file: Path, undisturbed: Path, tmp_path: Path, log: Path, workers: int) -> None:
    out = tmp_path / "out"
    with running(config(screen_file, out, workers=workers), 3, STUB_SLEEP="0.4") as process:
        with pytest.raises(InputError, match=f"in use by process {process.pid} on "):
            run(screen_file, out)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert gone(children)
    kept = stamps(out)
    assert 3 <= len(kept) < CELLS
    with pytest.raises(InputError, match="no scores yet"):
        read_scores(out)
    # The lock went with the process.
    outcome = run(screen_file, out)
    assert outcome.n_reused == len(kept)
    assert outcome.n_computed == CELLS - len(kept)
    assert {name: stamp for name, stamp in stamps(out).items() if name in kept} == kept
    same_scores(outcome.scores, read_scores(undisturbed))
    # Nothing was begun twice but what was cut.
    begun = [line for line in log.read_text().splitlines() if line != "stub_plain"]
    assert len(begun) <= CELLS + workers
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_stopped_by_hand(
    screen_file: Path, undisturbed: Path, tmp_path: Path, workers: int, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    with running(config(screen_file, out, workers=workers), 2, STUB_SLEEP="1.5") as process:
        children = psutil.Process(process.pid).children(recursive=True)
        begin = time.monotonic()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
        assert time.monotonic() - begin < 10
        assert process.returncode == 130, stderr
        assert "cells are left; the same command goes on" in stdout
        assert "Traceback" not in stderr
        assert gone(children)
    scores = read_scores(out)
    waiting = scores[scores["reason"].str.startswith("not computed yet")]
    assert len(waiting)
    assert set(waiting["status"]) == {"failed"}
    kept = stamps(out)
    outcome = run(screen_file, out)
    assert outcome.n_reused == len(kept)
    same_scores(outcome.scores, read_scores(undisturbed))


def test_a_lock_without_the_help_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks, the content of the lock file decides."""
    import errno
    import fcntl
    import json
    import platform

    from txeval.run.files import folder_lock

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    with folder_lock(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} on"), folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    stale = {"pid": finished.pid, "host": platform.node(), "started": "then", "flock": False}
    (tmp_path / ".lock").write_text(json.dumps(stale))
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize(("limit", "big", "where"), [(30_000, "1", "cells/"), (16_000, "", "units.parquet")])
def test_a_disk_that_is_full(
    screen_file: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    big: str,
    where: str,
) -> None:
    """A limit on the size of files stands for the disk: the system answers in the same way."""
    out = tmp_path / "out"
    run(screen_file, out, tasks=["stub_noise"])
    kept = stamps(out)
    monkeypatch.setenv("STUB_BIG", big)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(InputError, match=f"{where}.* the disk is full or a limit is reached") as why:
            run(screen_file, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "finished scores are kept" in why.value.remedy
    assert {name: stamp for name, stamp in stamps(out).items() if name in kept} == kept
    assert not list(out.rglob("*.tmp"))
    monkeypatch.setenv("STUB_BIG", "")
    same_scores(run(screen_file, out).scores, read_scores(undisturbed))


def test_a_folder_that_cannot_be_written_to(screen_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write /proc/nowhere"):
        run(screen_file, Path("/proc/nowhere"))


def test_nothing_is_left_over(screen_file: Path, undisturbed: Path) -> None:
    kinds = Counter(path.suffix for path in undisturbed.rglob(".*") if path.is_file())
    assert set(kinds) <= {""}
    assert [path.name for path in undisturbed.rglob(".*")] == [".lock"]
