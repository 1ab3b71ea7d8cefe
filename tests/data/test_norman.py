from __future__ import annotations

import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.data import locate
from txeval.data.norman import demo_screen, prepare_norman, recover_counts
from txeval.data.relations import load_relations
from txeval.data.screen import open_screen
from txeval.errors import InputError
from txeval.testing import make_screen


@pytest.fixture
def alone(tmp_path: Path, monkeypatch) -> Path:
    """No data folder, an empty cache, no downloads."""
    monkeypatch.setenv("TXEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TXEVAL_OFFLINE", "1")
    monkeypatch.delenv("TXEVAL_DATA", raising=False)
    monkeypatch.setattr(locate, "__file__", str(tmp_path / "site-packages" / "txeval" / "data" / "locate.py"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def test_prepared_screen_equals_the_one_prepared_by_hand(data_dir, tmp_path):
    out = prepare_norman(data_dir / "sources" / "perturbench_devel.h5ad", tmp_path / "new" / "norman.h5ad")
    ours = anndata.read_h5ad(out)
    theirs = anndata.read_h5ad(data_dir / "norman2019_k562_crispra_500hvg.h5ad")
    assert ours.obs_names.equals(theirs.obs_names)
    assert ours.var_names.equals(theirs.var_names)
    assert set(theirs.obs.columns) <= set(ours.obs.columns)
    for name in ("perturbation", "condition", "control", "gem_group", "n_perturbed_genes", "ncounts"):
        assert ours.obs[name].astype(str).tolist() == theirs.obs[name].astype(str).tolist(), name
    assert ours.obs["control"].dtype == bool
    np.testing.assert_array_equal(dense(ours.X), dense(theirs.X))
    np.testing.assert_array_equal(dense(ours.layers["counts"]), dense(theirs.layers["counts"]))
    assert ours.X.dtype == np.float32
    assert [path.name for path in out.parent.iterdir()] == ["norman.h5ad"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "cannot be read as h5ad"), (b"\x89HDF\r\n\x1a\n" + b"x" * 100, "cannot be read")],
)
def test_broken_source(tmp_path, content, message):
    source = tmp_path / "devel.h5ad"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(InputError, match=message):
        prepare_norman(source, tmp_path / "out.h5ad")
    assert not (tmp_path / "out.h5ad").exists()


def test_truncated_source(data_dir, tmp_path):
    whole = (data_dir / "sources" / "perturbench_devel.h5ad").read_bytes()
    (tmp_path / "devel.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read as h5ad"):
        prepare_norman(tmp_path / "devel.h5ad", tmp_path / "out.h5ad")


def test_another_screen_is_refused(tmp_path):
    make_screen(tmp_path / "other.h5ad")
    with pytest.raises(InputError, match="has no obs column dataset, condition"):
        prepare_norman(tmp_path / "other.h5ad", tmp_path / "out.h5ad")


def test_unwritable_target(data_dir, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        prepare_norman(data_dir / "sources" / "perturbench_devel.h5ad", tmp_path / "file" / "out.h5ad")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 3.0, 5.0]))
def test_counts_come_back(seed, smallest):
    """With a sample whose smallest count is above one, so that its unit is a fraction of its smallest value."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(2.0, (20, 30)).astype(float)
    counts[0] = rng.choice([0.0, smallest, smallest + 1], 30)
    counts[0, :2] = smallest, smallest + 1
    counts[1] = 0
    counts[2:, 0] = 1
    depth = rng.uniform(0.3, 30, (20, 1))
    np.testing.assert_array_equal(recover_counts(np.log1p(counts * depth)).toarray(), counts)


def test_what_is_not_counts_is_refused():
    with pytest.raises(InputError, match="4 samples are no depth-normalised counts, the first is row 1"):
        recover_counts(np.vstack([np.log1p([1.0] * 40), np.random.default_rng(0).normal(5, 0.5, (4, 40))]))
    with pytest.raises(InputError, match="negative or not finite"):
        recover_counts(np.array([[-1.0, 2.0]]))
    with pytest.raises(InputError, match="negative or not finite"):
        recover_counts(np.array([[np.nan, 2.0]]))


def test_demo_screen_found(data_dir, alone, monkeypatch):
    monkeypatch.setenv("TXEVAL_DATA", str(data_dir))
    demo = demo_screen(alone / "work")
    assert (demo.how, demo.path) == ("found", data_dir / "norman2019_k562_crispra_500hvg.h5ad")
    assert not (alone / "work").exists()
    screen = open_screen(demo.path, demo.roles, layer=demo.layer, min_counts=demo.min_counts)
    assert (screen.n, len(screen.samples.perturbations), len(screen.samples.batches)) == (3375, 34, 8)
    assert screen.scale == "counts"


def test_demo_screen_prepared(data_dir, alone, monkeypatch):
    source = alone / "mine" / "sources" / "perturbench_devel.h5ad"
    source.parent.mkdir(parents=True)
    shutil.copyfile(data_dir / "sources" / "perturbench_devel.h5ad", source)
    monkeypatch.setenv("TXEVAL_DATA", str(alone / "mine"))
    demo = demo_screen(alone / "work")
    assert demo.how == "prepared"
    assert demo.path.parent == alone / "work"
    assert str(source) in demo.note
    assert open_screen(demo.path, demo.roles, layer=demo.layer, min_counts=demo.min_counts).n == 3375


def test_demo_screen_simulated(alone):
    demo = demo_screen(alone / "work")
    assert demo.how == "simulated"
    assert demo.note.startswith("SIMULATED")
    assert "TXEVAL_OFFLINE" in demo.note
    screen = open_screen(demo.path, demo.roles, layer=demo.layer, min_counts=demo.min_counts)
    assert (screen.n, screen.scale) == (4000, "counts")
    targets = set(screen.samples.target_genes)
    for frame in load_relations(demo.relations).values():
        assert set(frame["entity1"]) | set(frame["entity2"]) <= targets
