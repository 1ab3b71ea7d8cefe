"""A part of a screen keeps its composition, its matrices and its labels, and says what it is."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import made
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.cli import main
from txeval.data import Roles, open_screen
from txeval.data.subset import _shares, subset_screen
from txeval.errors import InputError


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=30), data=st.data())
def test_shares(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    n = data.draw(st.integers(1, total))
    share = _shares(np.array(sizes), n, [0.0] * len(sizes))
    assert share.sum() == n
    assert (share >= 0).all() and (share <= sizes).all()
    if n >= len(sizes):
        assert (share >= 1).all()
        exact = 1 + (n - len(sizes)) * (np.array(sizes) - 1) / max(1, total - len(sizes))
    else:
        exact = n * np.array(sizes) / total
    assert (np.abs(share - exact) < 1).all()


def screen(folder: Path, *, order: np.ndarray | None = None, name: str = "screen.h5ad") -> Path:
    a = made.adata(n=300, g=9)
    a.layers["doubled"] = a.X * 2
    a.obs["note"] = pd.Categorical([f"n{i}" for i in range(a.n_obs)])
    if order is not None:
        a = a[order].copy()
    return made.write(a, folder / name)


def test_a_part_is_rows_of_the_whole(tmp_path: Path) -> None:
    path = screen(tmp_path)
    part = subset_screen(path, tmp_path / "part.h5ad", made.ROLES, n=77, seed=3)
    whole, small = ad.read_h5ad(path), ad.read_h5ad(tmp_path / "part.h5ad")
    expected = whole[part.rows]
    assert small.obs_names.tolist() == expected.obs_names.tolist()
    assert (small.X != expected.X).nnz == 0
    np.testing.assert_array_equal(small.layers["doubled"], expected.layers["doubled"])
    np.testing.assert_array_equal(small.obsm["X_pca"], expected.obsm["X_pca"])
    assert small.obs.astype(str).equals(expected.obs.astype(str))
    assert len(small.obs["note"].cat.categories) == 77
    assert small.uns["txeval"]["subset"]["samples"] == 77 and small.uns["txeval"]["subset"]["seed"] == 3
    counts = pd.crosstab(small.obs["perturbation"], small.obs["batch"])
    assert counts.to_numpy().min() >= 5 and counts.to_numpy().max() <= 6  # 15 equal strata
    open_screen(tmp_path / "part.h5ad", made.ROLES)


def test_the_draw_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(300)
    one, two = screen(tmp_path), screen(tmp_path, order=order, name="moved.h5ad")

    def names(path: Path, seed: int) -> set[str]:
        part = subset_screen(path, tmp_path / "part.h5ad", made.ROLES, n=50, seed=seed, overwrite=True)
        return set(ad.read_h5ad(part.path).obs_names)

    assert names(one, 0) == names(two, 0)
    assert names(one, 0) != names(one, 1)


def test_all_samples_where_there_are_no_more(tmp_path: Path) -> None:
    roles = Roles(perturbation="perturbation", control="control", batch="batch", exclude=("G3",))
    part = subset_screen(screen(tmp_path), tmp_path / "part.h5ad", roles, n=1000)
    assert part.record["samples"] == 300 and part.record["left_out"] == {}
    assert open_screen(part.path, roles).n == 240  # the same roles fit the part
    a = ad.read_h5ad(tmp_path / "screen.h5ad")
    a.obs["perturbation"] = a.obs["perturbation"].astype(str).replace("G3", "nan")
    a.write_h5ad(tmp_path / "missing.h5ad")
    part = subset_screen(tmp_path / "missing.h5ad", tmp_path / "other.h5ad", made.ROLES, n=1000)
    assert part.record["samples"] == 240 and list(part.record["left_out"].values()) == [60]


def test_what_cannot_be_done(tmp_path: Path) -> None:
    path = screen(tmp_path)
    before = path.read_bytes()
    for out, n, problem in (
        (path, 10, "there already"),
        (tmp_path / "part.zarr", 10, "written as .h5ad"),
        (tmp_path / "part.h5ad", 0, "0 samples"),
    ):
        with pytest.raises(InputError, match=problem):
            subset_screen(path, out, made.ROLES, n=n)
    with pytest.raises(InputError, match="the screen itself"):
        subset_screen(path, path, made.ROLES, n=10, overwrite=True)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["screen.h5ad"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = screen(tmp_path)
    assert main(["data", "describe", str(path), "--out", str(tmp_path / "run.yaml")]) == 0
    words = ["data", "subset", str(tmp_path / "run.yaml"), "-n", "60", "--out", str(tmp_path / "small.h5ad")]
    capsys.readouterr()
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "60 of 300 samples (seed 0), drawn within each perturbation and batch" in out
    assert "5 of 5 labels, 3 of 3 batches" in out
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    flags = ["--perturbation", "perturbation", "--control", "control", "--out", str(tmp_path / "other.h5ad")]
    assert main(["data", "subset", str(path), "-n", "60", *flags]) == 0
    assert ad.read_h5ad(tmp_path / "other.h5ad").n_obs == 60
