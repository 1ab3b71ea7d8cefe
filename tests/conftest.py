"""Where tests find real data: the folder named by TXEVAL_DATA, else ../shared beside the checkout."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# How long an example takes says something of the machine, not of the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# A shell that starts the tests in the background has its children ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


def _folder(path: Path, what: str) -> Path:
    if path.is_dir():
        return path
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing: {path}")
    pytest.skip(f"{what} is not here: {path}")
    raise AssertionError  # pytest.skip does not return


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the small real screens."""
    return _folder(Path(os.environ.get("TXEVAL_DATA") or ROOT.parent / "shared" / "data"), "the real data")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the golden values."""
    return _folder(ROOT.parent / "shared" / "golden", "the golden values")
