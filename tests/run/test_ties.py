"""A run of a file whose samples are in another order: the same scores, also where embeddings repeat rows."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
from run_helpers import run, write_screen


def test_scores_of_equal_rows_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    screen = anndata.read_h5ad(write_screen(tmp_path / "one.h5ad", n=420))
    spread = draw.normal(size=(420, 4)).astype(np.float32)
    screen.obsm["X_constant"] = np.full((420, 3), 0.3, np.float32)
    screen.obsm["X_clusters"] = np.eye(2, dtype=np.float32)[draw.integers(0, 2, 420)]
    screen.obsm["X_empty"] = np.where(draw.random(420)[:, None] < 0.4, 0, spread).astype(np.float32)
    screen = screen[np.argsort(screen.obs["lane"], kind="stable")]
    screen.write_h5ad(tmp_path / "one.h5ad")
    screen[draw.permutation(420)].write_h5ad(tmp_path / "other.h5ad")
    columns = ["model", "post_processing", "task", "metric"]
    tables = []
    for name in ("one", "other"):
        made = run(
            tmp_path / f"{name}.h5ad",
            tmp_path / name,
            embeddings=[f"{key}=obsm:X_{key}" for key in ("constant", "clusters", "empty")],
            tasks=["batch_mixing", "knn"],
            post_processing=["raw", "tvn"],
            protocol="corrected",
            seeds=1,
        )
        tables.append(made.scores.set_index(columns)["value"].sort_index())
    assert tables[0].notna().sum() > 30
    np.testing.assert_allclose(tables[1], tables[0].reindex(tables[1].index), rtol=1e-5, atol=1e-7)
