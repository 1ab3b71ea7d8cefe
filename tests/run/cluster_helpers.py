"""A real Dask cluster on the loopback interface: a scheduler and workers as processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil


def _wait_for(path: Path, pattern: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 120
    while True:
        found = re.search(pattern, path.read_text(errors="replace"))
        if found:
            return found.group(1)
        assert process.poll() is None, path.read_text(errors="replace")
        assert time.monotonic() < deadline, path.read_text(errors="replace")
        time.sleep(0.05)


@dataclass
class Cluster:
    """Processes of `dask scheduler` and `dask worker`, with their logs."""

    folder: Path
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    address: str = ""
    protocol: str = "tcp"

    def _run(
        self, name: str, arguments: Sequence[str], before: Sequence[str] = (), **environment: str
    ) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / f"{name}.log"
        with log.open("wb") as handle:
            process = subprocess.Popen(
                [
                    *before,
                    sys.executable,
                    "-m",
                    "distributed.cli.dask_scheduler" if name.startswith("sched") else "distributed.cli.dask_worker",
                    *arguments,
                ],
                stdout=handle,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, **self.environment, **environment},
            )
        self.processes[name] = process
        return process, log

    def start_scheduler(self, port: int = 0) -> str:
        """Start the scheduler and give its address."""
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        process, log = self._run(
            "scheduler",
            [
                "--protocol",
                self.protocol,
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--no-dashboard",
                "--no-show",
                "--scheduler-file",
                str(file),
            ],
        )
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError, ValueError):
                self.address = json.loads(file.read_text())["address"]
                return self.address
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def start_worker(
        self,
        name: str,
        *arguments: str,
        threads: int = 1,
        wait: bool = True,
        before: Sequence[str] = (),
        **environment: str,
    ) -> str:
        """Start a worker and give its address; `before`: the command that starts its command."""
        process, log = self._run(
            name,
            [
                self.address,
                "--protocol",
                self.protocol,
                "--host",
                "127.0.0.1",
                "--nthreads",
                str(threads),
                "--no-dashboard",
                "--memory-limit",
                "0",
                "--name",
                name,
                "--death-timeout",
                "20",
                "--local-directory",
                str(self.folder),
                *arguments,
            ],
            before=before,
            **environment,
        )
        return _wait_for(log, r"Start worker at:\s+(\w+://\S+)[\s\S]*Registered to:", process) if wait else ""

    def hide(self, folder: Path) -> list[str] | None:
        """What to start a worker with, so that it sees an empty folder in place of this one; None: not permitted."""
        command = f"mount -t tmpfs none '{folder}' && exec \"$@\""
        before = ["unshare", "--mount", "sh", "-c", command, "sh"]
        with suppress(OSError):
            return before if subprocess.run([*before, "true"], capture_output=True).returncode == 0 else None
        return None

    def end(self, name: str) -> None:
        """End a worker, and wait until the scheduler knows."""
        process = self.processes.pop(name)
        process.terminate()
        process.wait(60)

    def stop(self) -> None:
        """End all of them."""
        every = []
        for process in self.processes.values():
            with suppress(psutil.Error):
                every += psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
        for child in every:
            with suppress(psutil.Error):
                child.kill()


@contextmanager
def cluster(
    folder: Path, workers: int = 0, *, nanny: bool = False, protocol: str = "tcp", **environment: str
) -> Iterator[Cluster]:
    """A scheduler and some workers."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "info", **environment}
    made = Cluster(folder, variables, protocol=protocol)
    try:
        made.start_scheduler()
        for number in range(workers):
            made.start_worker(f"worker{number}", "--nanny" if nanny else "--no-nanny")
        yield made
    finally:
        made.stop()
