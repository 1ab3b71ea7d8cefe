"""What the tests of txeval.run share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import yaml

from txeval.run import NullProgress, Outcome, RunConfig, build_config, execute, make_plan

ENTRY_POINTS = """
[txeval.tasks]
stub_size = stub_plugin:SIZE
stub_noise = stub_plugin:NOISE
stub_trouble = stub_plugin:TROUBLE
stub_once = stub_plugin:ONCE

[txeval.embedders]
stub_plain = stub_plugin:PLAIN
stub_seeded = stub_plugin:SEEDED
stub_broken = stub_plugin:BROKEN
"""

N = 240


def write_screen(path: Path, seed: int = 0, n: int = N) -> Path:
    """Write counts of 240 samples, 30 genes, 6 batches, 5 perturbations and controls, with an embedding in obsm."""
    rng = np.random.default_rng(seed)
    labels = np.array(["ctrl", "G1", "G2", "G3", "G4", "G5"])[np.arange(n) % 6]
    obs = pd.DataFrame(
        {"gene": labels, "lane": np.array([f"lane{i}" for i in range(6)])[np.arange(n) // 6 % 6]},
        index=[f"cell_{i}" for i in range(n)],
    )
    counts = rng.poisson(3, (n, 30)).astype(np.float32)
    screen = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))
    screen.obsm["X_emb"] = rng.normal(size=(n, 5)).astype(np.float32)
    screen.write_h5ad(path)
    return path


def config(screen: Path, out: Path | None = None, **changes: Any) -> RunConfig:
    """A small run of stub tasks."""
    values: dict[str, Any] = {
        "screen": screen,
        "roles": {"perturbation": "gene", "control": ["ctrl"], "batch": "lane"},
        "embeddings": ["random@of=stub_plain", "mine=obsm:X_emb"],
        "tasks": ["stub_size", "stub_noise"],
        "post_processing": ["raw", "centering"],
        "seeds": 2,
        "min_counts": 0,
        "out": out,
    }
    return build_config({**values, **changes})


def run(screen: Path, out: Path, **changes: Any) -> Outcome:
    """Plan and execute."""
    return execute(make_plan(config(screen, out, **changes)), progress=NullProgress())


#: Columns that differ between two runs that compute the same.
CLOCKS = ["seconds", "peak_memory_mb"]


def same_scores(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Assert that two tables of scores are equal but for time and memory, to the last bit."""
    pd.testing.assert_frame_equal(one.drop(columns=CLOCKS), other.drop(columns=CLOCKS), check_exact=True)


def stamps(out: Path) -> dict[str, int]:
    """When each cell of a results folder was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}


@contextmanager
def running(what: RunConfig, cells: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, from the moment on that it has finished a number of cells."""
    assert what.out is not None
    path = what.out.with_name(f"{what.out.name}.yaml")
    path.with_suffix(".protocol.yaml").write_text(yaml.safe_dump(what.protocol.to_dict()))
    path.write_text(yaml.safe_dump(what.to_dict(path.with_suffix(".protocol.yaml").name)))
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("run_script.py"), path],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (what.out / "cells").is_dir() or len(stamps(what.out)) < cells:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()
