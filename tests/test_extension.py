"""A metric and a model are one file each: shown from outside, with a distribution that txeval has never seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from txeval.cli import main
from txeval.data.simulate import simulate_screen
from txeval.run import read_scores

MODULE = """
import numpy as np
from txeval.embed.base import EmbedderInfo, Embedding
from txeval.tasks import Metric, Score


class Totals:
    info = EmbedderInfo(
        name="totals",
        summary="Total, number of detected genes and largest value of each sample.",
        options={"pseudo": (1.0, "added before the logarithm")},
    )

    def fingerprint(self, screen, options):
        return {"pseudo": float(options.get("pseudo", 1.0))}

    def embed(self, screen, options, context):
        out = np.empty((screen.n, 3), dtype=np.float32)
        for rows, block in screen.blocks():
            dense = np.asarray(block.todense() if hasattr(block, "todense") else block)
            out[rows] = np.column_stack([dense.sum(1), (dense > 0).sum(1), dense.max(1)])
        return Embedding(np.log(out + float(options.get("pseudo", 1.0))))


def spread(found):
    return Score(value=float(np.ptp(found.scores)), n_samples=len(found.scores))


EMBEDDER = Totals()
METRIC = Metric(
    name="ilisi_spread",
    task="batch_mixing",
    label="iLISI spread",
    summary="Largest minus smallest iLISI of a sample.",
    compute=spread,
    high=float("inf"),
    headline=True,
)
"""

ENTRY_POINTS = """
[txeval.embedders]
totals = mylab_plugin:EMBEDDER

[txeval.metrics]
ilisi_spread = mylab_plugin:METRIC
"""


@pytest.fixture
def plugin(tmp_path: Path) -> dict[str, str]:
    """Environment of a process in which the distribution `mylab-plugin` is installed."""
    site = tmp_path / "site"
    info = site / "mylab_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "mylab_plugin.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mylab-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return {**os.environ, "PYTHONPATH": str(site)}


DRIVER = """
import contextlib, io, json, sys
from txeval.cli import main

said = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(words)
    said.append([status, out.getvalue()])
print(json.dumps(said))
"""


def test_a_model_and_a_metric_from_outside(plugin: dict[str, str], tmp_path: Path) -> None:
    screen, out = tmp_path / "screen.h5ad", tmp_path / "out"
    simulate_screen(screen, n_samples=600, n_genes=60, n_perturbations=12, n_batches=6)
    run = ["run", str(screen), "--perturbation", "perturbation", "--control", "non-targeting", "--batch", "batch"]
    run += ["--embedding", "totals", "wide=totals@pseudo=100", "--min-counts", "0", "--seeds", "1", "--plain"]
    run += ["--tasks", "batch_mixing", "--post-processing", "raw", "--out", str(out)]
    commands = [run, ["show", str(out)], ["tasks", "batch_mixing"], ["embedders", "totals"]]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)], capture_output=True, text=True, env=plugin, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [status for status, _ in said] == [0, 0, 0, 0], done.stderr
    _, shown, tasks, embedders = (text for _, text in said)
    assert "iLISI spread" in shown
    assert "totals" in shown
    assert "ilisi_spread" in tasks
    assert "@pseudo=" in embedders

    scores = read_scores(out)
    mine = scores[(scores["metric"] == "ilisi_spread") & (scores["status"] == "ok")]
    assert set(mine["model"]) == {"totals", "wide", "random"}
    assert mine["value"].gt(0).all()
    ilisi = scores[(scores["metric"] == "ilisi") & (scores["status"] == "ok")].set_index("model")["value"]
    assert not np.isclose(ilisi["totals"], ilisi["wide"])


def test_without_the_plugin_nothing_of_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embedders", "totals"]) == 2
    assert "'totals'" in capsys.readouterr().err
