"""Compiled kernels: the same digits whether they are compiled now or come from the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCORES = """
import numpy as np
from txeval.metrics.batch_mixing import ilisi_scores
rng = np.random.default_rng(0)
found = ilisi_scores(rng.normal(size=(400, 8)).astype(np.float32), rng.integers(0, 4, 400), perplexity=20)
print(found.scores.tobytes().hex(), found.lent.tobytes().hex())
"""


def test_the_first_process_after_an_installation_gets_the_digits_of_all_others(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def digits() -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCORES], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    first = digits()
    assert list(tmp_path.rglob("*.nbc"))
    assert first == digits()
