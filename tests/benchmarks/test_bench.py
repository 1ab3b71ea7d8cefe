"""`make bench` end to end, at sizes that say nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("recall", "integrity")


def bench(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.bench", "--quick", "--folder", str(folder), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    done = bench(folder, "--steps", *STEPS)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_table_names_versions_processor_ratios_and_checks(folder):
    content = json.loads((folder / "quick.json").read_text())
    assert content["versions"]["txeval"] and content["versions"]["torch"] and content["cores"] >= 1
    assert [row["step"] for row in content["steps"]] == list(STEPS)
    for row in content["steps"]:
        assert row["cpu_s"] > 0 and row["peak_mib"] > 50 and row["added_mib"] >= 0 and row["quick"]
        assert row["checks"] and all(check["fine"] for check in row["checks"])
        assert all(other["ratio"] > 0 for other in row["others"].values())
    recall = content["steps"][0]
    assert recall["others"]["sort and look up"]["at_least"] == 8 and recall["gemm_gflops"] > 1
    text = (folder / "quick.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) >= 2 + len(STEPS) and len({line.count("|") for line in table[: 2 + len(STEPS)]}) == 1
    assert "Quick run" in text


def test_a_second_run_measures_nothing_again(folder):
    before = (folder / "steps.jsonl").read_text()
    done = bench(folder, "--steps", *STEPS)
    assert done.returncode == 0, done.stderr
    assert (folder / "steps.jsonl").read_text() == before


def test_every_step_is_listed_once(folder):
    names = [line.split()[0] for line in bench(folder, "--list").stdout.splitlines()]
    assert len(names) == len(set(names)) and set(STEPS) < set(names)
