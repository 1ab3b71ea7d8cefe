"""Runs the stub tasks in a process of its own: SCREEN OUT WORKERS; ends with the exit status of the run."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from run_helpers import config

from txeval.errors import InputError
from txeval.run import PlainProgress, execute, make_plan

if __name__ == "__main__":
    screen, out, workers = sys.argv[1:4]
    try:
        outcome = execute(make_plan(config(Path(screen), Path(out), workers=int(workers))), progress=PlainProgress())
    except InputError as why:
        print(why, file=sys.stderr)
        sys.exit(2)
    print(outcome.message)
    sys.exit(outcome.exit_status)
