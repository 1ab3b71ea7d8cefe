"""Takes the lock of a folder in a process of its own, as another machine or one without locks would."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import sys
import time
from pathlib import Path

from txeval.errors import InputError
from txeval.run import files

folder, host, system, rounds, seconds = (
    Path(sys.argv[1]),
    sys.argv[2],
    sys.argv[3],
    int(sys.argv[4]),
    float(sys.argv[5]),
)

files.BEAT_EVERY, files.SILENT_AFTER = 0.2, 2.0
if host:
    platform.node = lambda: host
if system == "none":

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    fcntl.flock = no_locks
elif system == "own":
    # Locks that no other machine sees: each has a file of its own.
    real = fcntl.flock
    mine = os.open(folder / f"{host}.locks", os.O_RDWR | os.O_CREAT)
    fcntl.flock = lambda descriptor, how: real(mine, how)

for number in range(rounds):
    try:
        with files.folder_lock(folder, wait=rounds > 1):
            if rounds > 1:
                # Two at once cannot both make this file.
                os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            else:
                print("held", flush=True)
            time.sleep(seconds)
            if rounds > 1:
                (folder / "inside").unlink()
                if number % 2:
                    (folder / ".lock").unlink(missing_ok=True)
    except InputError as why:
        print(why, file=sys.stderr)
        sys.exit(2)
