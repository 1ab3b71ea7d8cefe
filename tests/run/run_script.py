"""Runs what a YAML file describes in a process of its own; ends with the exit status of the run."""

from __future__ import annotations

import sys
from pathlib import Path

from txeval.errors import InputError
from txeval.run import PlainProgress, execute, load_config, make_plan

if __name__ == "__main__":
    try:
        outcome = execute(make_plan(load_config(Path(sys.argv[1]))), progress=PlainProgress())
    except InputError as why:
        print(why, file=sys.stderr)
        sys.exit(2)
    print(outcome.message)
    sys.exit(outcome.exit_status)
