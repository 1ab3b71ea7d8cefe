"""The circumstances of the shared folder, each a script with an exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
SCRIPTS = sorted(CASES.glob("[0-9]*.py"))

if not SCRIPTS:
    if os.environ.get("CI"):
        raise FileNotFoundError(f"{CASES} has no cases")
    pytest.skip(f"{CASES} is not there", allow_module_level=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_case(script: Path, tmp_path: Path) -> None:
    # The scripts make their folders where TMPDIR says and leave them.
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TXEVAL": str(Path(sys.executable).with_name("txeval"))}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
