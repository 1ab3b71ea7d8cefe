"""From nothing but a file to scores: levels that describe says have what they need have scores, the others reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from txeval.data.describe import describe
from txeval.data.proposal import render
from txeval.data.subset import subset_screen
from txeval.run import NullProgress, execute, load_config, make_plan

#: Levels that train nothing; the others take minutes on every screen (benchmarks/every_screen.py runs them).
QUICK = {1: "batch_mixing", 3: "consistency", 4: "knn", 5: "relationships"}


@pytest.mark.parametrize(
    "name",
    [
        "ipsc_ec_perturbseq_298targets_x_120programs",
        "edistance_map_TianKampmann2021_CRISPRi",
        "l1000_shrna_kd_litmus_plate_976genes",
        "hill2018_mcf10a_dox_cropseq_pca20",
        "norman2019_k562_crispra_500hvg",
    ],
)
def test_from_a_file_to_scores(name: str, data_dir: Path, tmp_path: Path) -> None:
    about = describe(data_dir / f"{name}.h5ad")
    path = tmp_path / "run.yaml"
    path.write_text(render(about))
    config = load_config(path)
    change: dict[str, Any] = {
        "embeddings": [
            f"pca@components=10,input={spec.options.get('input', 'counts')}" if spec.source == "pca" else spec
            for spec in config.embeddings
        ],
        "tasks": list(QUICK.values()),
        "post_processing": ["raw"],
        "seeds": 1,
        "relations": data_dir / "relationships",
        "out": tmp_path / "out",
    }
    if about.shape[0] > 1500:
        small = subset_screen(config.screen, tmp_path / "small.h5ad", config.roles, n=1500, layer=config.layer)
        change["screen"] = small.path
    outcome = execute(make_plan(load_config(path, change)), progress=NullProgress())
    assert outcome.n_errors == 0
    scores = outcome.scores
    assert (scores["value"].notna() | (scores["reason"].str.len() > 10)).all()
    reached = set(scores.loc[scores["value"].notna(), "level"])
    said = {i for i, lacks in enumerate(about.levels.values(), start=1) if not lacks}
    # Whether there are known relationships among the genes is not in the file.
    few = scores.loc[scores["level"] == 5, "reason"].str.contains("known relationships").any()
    assert (said & set(QUICK)) - ({5} if few else set()) <= reached
    assert 5 not in reached - said
    assert 1 not in reached - said
