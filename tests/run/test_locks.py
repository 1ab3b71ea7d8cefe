"""The lock on a results folder: between processes and machines, with and without the help of the file system."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from txeval.errors import InputError
from txeval.run import files
from txeval.run.files import folder_lock

SCRIPT = Path(__file__).with_name("lock_script.py")


def holder(
    folder: Path, host: str = "", system: str = "", rounds: int = 1, seconds: float = 60
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, folder, host, system, str(rounds), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BEAT_EVERY", 0.2)
    monkeypatch.setattr(files, "SILENT_AFTER", 2.0)


@pytest.mark.parametrize("system", ["none", "own"])
def test_another_machine(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    """Its lock counts while it shows that it is alive, and falls when it has been silent, even in mid-run."""
    if system == "none":

        def no_locks(*_: object) -> None:
            raise OSError(37, "no locks")

        monkeypatch.setattr("fcntl.flock", no_locks)
    process = holder(tmp_path, "elsewhere", system)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        # Neither a clock of the file server in another year nor one of the other machine changes that.
        os.utime(tmp_path / ".lock", (1, 1))
        with (
            pytest.raises(InputError, match=f"in use by process {process.pid} on elsewhere, since"),
            folder_lock(tmp_path),
        ):
            pass
        os.utime(tmp_path / ".lock", (4e9, 4e9))
        process.kill()
        process.wait()
        begin = time.monotonic()
        with folder_lock(tmp_path):
            assert time.monotonic() - begin >= 2.0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("system", ["", "none"])
def test_many_at_once(tmp_path: Path, system: str) -> None:
    """Only one is inside at a time, although every second one removes the file of the lock when it leaves."""
    rounds, seconds = (40, 0.002) if system == "" else (2, 0.1)
    processes = [holder(tmp_path, "", system, rounds, seconds) for _ in range(4)]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert not (tmp_path / "inside").exists()


def test_files_of_locks_that_nobody_holds_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".old.lock").touch()
    (tmp_path / ".half.tmp").touch()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from txeval.run.files import folder_lock\n"
            "with folder_lock(Path(sys.argv[1]), name='.key.lock'): print('held', flush=True); time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        files.remove_temporary(tmp_path, locks=True)
        assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]
    finally:
        process.kill()
        process.communicate()
    files.remove_temporary(tmp_path, locks=True)
    assert not list(tmp_path.iterdir())
