from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import kstest, ttest_ind
from sklearn.linear_model import LassoCV

from txeval.data.relations import load_relations
from txeval.data.screen import open_screen
from txeval.data.simulate import CONTROL_LABEL, Truth, relations_folder, simulate_screen, truth_folder
from txeval.data.truth import run_file
from txeval.errors import InputError
from txeval.run.config import load_config
from txeval.testing import ROLES, make_adata, make_screen

SMALL = {"n_samples": 500, "n_genes": 60, "n_perturbations": 12, "unexpressed_targets": 5, "n_programs": 3}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> tuple[Truth, anndata.AnnData]:
    truth = simulate_screen(tmp_path_factory.mktemp("simulated") / "screen.h5ad", null_fraction=0.25)
    return truth, anndata.read_h5ad(truth.path)


def dense(adata: anndata.AnnData) -> np.ndarray:
    return adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)


def log_normal(adata: anndata.AnnData) -> np.ndarray:
    counts = adata.X.toarray()
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def test_dimensions_and_columns(simulated):
    truth, adata = simulated
    assert adata.shape == (4000, 300)
    assert sp.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.uint16
    assert (adata.X.data > 0).all()
    np.testing.assert_array_equal(adata.X.data, np.round(adata.X.data))
    assert adata.X.has_sorted_indices
    assert list(adata.obs.columns) == ["perturbation", "gene", "batch", "control"]
    assert adata.obs_names.is_unique
    assert truth.perturbations["kind"].value_counts().to_dict() == {"active": 30, "unexpressed": 25, "none": 10}
    assert set(truth.perturbations["perturbation"]) == set(adata.obs["perturbation"]) - {CONTROL_LABEL}
    assert set(truth.perturbations["gene"]) <= set(adata.var_names)
    control = adata.obs["control"].to_numpy()
    np.testing.assert_array_equal(control, adata.obs["perturbation"] == CONTROL_LABEL)
    np.testing.assert_array_equal(control, adata.obs["gene"] == "")
    assert control.mean() == pytest.approx(0.1, abs=0.01)
    table = pd.crosstab(adata.obs["perturbation"], adata.obs["batch"])
    assert table.shape == (66, 6)
    assert table.to_numpy().min() >= 8
    assert (table.loc[CONTROL_LABEL] >= 60).all()


def test_it_opens_as_a_screen_of_counts(simulated):
    truth, _ = simulated
    screen = open_screen(truth.path, ROLES)
    assert (screen.n, screen.n_genes, screen.scale) == (4000, 300, "counts")
    assert set(screen.obsm_keys()) == {"X_truth", "X_noisy"}
    np.testing.assert_array_equal(screen.read_obsm("X_truth"), truth.signal)


def test_targets_that_are_not_expressed(simulated):
    truth, adata = simulated
    mean = pd.Series(np.asarray(adata.X.mean(axis=0)).ravel(), index=adata.var_names)
    silent = truth.perturbations["kind"] == "unexpressed"
    assert mean[truth.perturbations.loc[silent, "gene"]].max() < 0.05
    assert mean[truth.perturbations.loc[~silent, "gene"]].min() > 0.5
    assert 4000 < np.median(np.asarray(adata.X.sum(axis=1))) < 6000


def test_counts_are_overdispersed_as_stated(tmp_path):
    """Variance mean + mean^2 / 10 in samples that differ in nothing but their own noise: solve for the 10."""
    truth = simulate_screen(
        tmp_path / "flat.h5ad", n_samples=3000, effect=0, batch_effect=0, n_batches=1, depth=50_000, seed=1
    )
    adata = anndata.read_h5ad(truth.path)
    inside = set(truth.programs["gene"])
    genes = [name not in inside for name in adata.var_names]
    share = adata.X.toarray() / np.asarray(adata.X.sum(axis=1))
    share, total = share[:, genes], np.asarray(adata.X.sum(axis=1)).ravel()
    mean = share.mean(axis=0)
    big = mean * np.median(total) > 50
    assert big.sum() > 20
    poisson = mean * (1 / total).mean()
    inverse = (share.var(axis=0) - poisson)[big] / mean[big] ** 2
    # The share of the total moves a little with the programs as well.
    assert np.median(inverse) == pytest.approx(0.1, abs=0.02)


def test_knock_down_of_the_target(simulated):
    truth, adata = simulated
    values = pd.DataFrame(log_normal(adata), columns=adata.var_names)
    label = adata.obs["perturbation"].astype(str).to_numpy()
    control = adata.obs["control"].to_numpy()
    p = {"active": [], "none": []}
    for row in truth.perturbations.itertuples():
        if row.kind != "unexpressed":
            gene = values[row.gene].to_numpy()
            p[row.kind].append(ttest_ind(gene[label == row.perturbation], gene[control], alternative="less").pvalue)
    assert np.mean(np.array(p["active"]) < 1e-3) > 0.9
    assert kstest(p["none"], "uniform").pvalue > 1e-3


def test_effects_are_in_the_expression(simulated):
    """The shift of a program, estimated from its genes, follows the truth and is none where there is none."""
    truth, adata = simulated
    values = log_normal(adata)
    for batch in adata.obs["batch"].unique():
        rows = (adata.obs["batch"] == batch).to_numpy()
        values[rows] -= values[rows & adata.obs["control"].to_numpy()].mean(axis=0)
    label = adata.obs["perturbation"].astype(str).to_numpy()
    score = np.zeros((len(values), 8))
    for program, members in truth.programs.groupby("program"):
        members = members[~members["gene"].isin(truth.perturbations["gene"])]
        genes = adata.var_names.get_indexer(members["gene"])
        score[:, program] = values[:, genes] @ np.sign(members["loading"].to_numpy()) / len(genes)
    table = truth.perturbations.set_index("perturbation")
    active = table[table["kind"] == "active"]
    found = np.array([score[label == name, row.program].mean() for name, row in active.iterrows()])
    assert np.corrcoef(found, active["strength"])[0, 1] > 0.95
    without = table.index[table["kind"] != "active"]
    spread = np.std([score[label == name].mean(axis=0) for name in without])
    assert np.abs(found).mean() > 5 * spread


def test_truth_tables_agree(simulated):
    truth, adata = simulated
    effects = truth.effects.set_index(["perturbation", "program"])["strength"]
    table = truth.perturbations
    active = table[table["kind"] == "active"]
    assert set(truth.effects["perturbation"]) == set(active["perturbation"])
    assert (table.loc[table["kind"] != "active", "strength"] == 0).all()
    for row in active.itertuples():
        assert effects[row.perturbation, row.program] == row.strength
    size = active["strength"].abs()
    assert 0.25 <= size.min() < 0.45
    assert size.max() <= 1
    # The latent state of a perturbation's samples is its effects, plus noise of 0.2.
    mean = pd.DataFrame(truth.signal).groupby(adata.obs["perturbation"].to_numpy(), observed=True).mean()
    expected = np.zeros(mean.shape)
    for (name, program), strength in effects.items():
        expected[mean.index.get_loc(name), program] = strength
    assert np.abs(mean.to_numpy() - expected).max() < 5 * 0.21 / np.sqrt(50)
    noise = adata.obsm["X_noisy"] - adata.obsm["X_truth"]
    assert noise.std() == pytest.approx(0.8, abs=0.02)

    program = table.set_index("gene")["program"]
    pairs = truth.relations
    assert (program[pairs["entity1"]].to_numpy() == program[pairs["entity2"]].to_numpy()).all()
    assert len({frozenset(pair) for pair in pairs.itertuples(index=False, name=None)}) == len(pairs) == 8 * 10


def test_batches_shift_genes(simulated):
    _, adata = simulated
    values = log_normal(adata)
    means = np.array(
        [values[(adata.obs["batch"] == name).to_numpy()].mean(axis=0) for name in adata.obs["batch"].unique()]
    )
    expressed = values.mean(axis=0) > 2
    assert 0.1 < means[:, expressed].std(axis=0).mean() < 0.3


def test_truth_is_beside_the_file(simulated):
    truth, _ = simulated
    loaded = Truth.load(truth.path)
    np.testing.assert_array_equal(loaded.signal, truth.signal)
    for name in ("perturbations", "effects", "programs", "relations", "genes", "batches", "responses"):
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(truth, name))
    assert loaded.settings == truth.settings
    relations = load_relations(relations_folder(truth.path))
    pd.testing.assert_frame_equal(relations["simulated_programs"], truth.relations)
    again = Truth.load(truth_folder(truth.path))
    assert again.path == truth.path
    with pytest.raises(InputError, match="no truth beside it"):
        Truth.load(truth.path.with_name("other.h5ad"))


@pytest.mark.parametrize("mode", ["counts", "continuous"])
@pytest.mark.parametrize(("max_elements", "threads"), [(1, 1), (3 * 128 * 60 + 5, 2), (10**9, 3)])
def test_block_size_and_threads_do_not_matter(tmp_path, mode, max_elements, threads):
    plain = simulate_screen(tmp_path / "plain.h5ad", mode=mode, **SMALL)
    other = simulate_screen(tmp_path / "other.h5ad", max_elements=max_elements, threads=threads, mode=mode, **SMALL)
    a, b = anndata.read_h5ad(plain.path), anndata.read_h5ad(other.path)
    np.testing.assert_array_equal(dense(a), dense(b))
    np.testing.assert_array_equal(a.obsm["X_noisy"], b.obsm["X_noisy"])
    np.testing.assert_array_equal(plain.signal, other.signal)
    pd.testing.assert_frame_equal(a.obs, b.obs)


def test_seed_matters(tmp_path):
    one = anndata.read_h5ad(simulate_screen(tmp_path / "a.h5ad", **SMALL).path)
    two = anndata.read_h5ad(simulate_screen(tmp_path / "b.h5ad", seed=1, **SMALL).path)
    assert (one.X != two.X).nnz > one.X.nnz / 2


def test_no_effect_at_all(tmp_path):
    truth = simulate_screen(tmp_path / "null.h5ad", effect=0, **SMALL)
    assert set(truth.perturbations["kind"]) == {"none", "unexpressed"}
    assert truth.effects.empty
    assert Truth.load(truth.path).effects.empty


def test_relations_of_an_earlier_screen_do_not_stay(tmp_path):
    simulate_screen(tmp_path / "a.h5ad", **SMALL)
    assert load_relations(relations_folder(tmp_path / "a.h5ad"))
    truth = simulate_screen(tmp_path / "a.h5ad", **(SMALL | {"n_perturbations": 3}))
    assert truth.relations.empty
    with pytest.raises(InputError, match="has no file of pairs"):
        load_relations(relations_folder(tmp_path / "a.h5ad"))


def test_cell_lines(tmp_path):
    truth = simulate_screen(tmp_path / "lines.h5ad", **SMALL | {"n_samples": 4000, "effect": 1.5}, n_cell_lines=3)
    adata = anndata.read_h5ad(truth.path)
    table = pd.crosstab(adata.obs["cell_line"], adata.obs["batch"])
    assert ((table > 0).sum(axis=0) == 1).all()
    assert set(table.index) == {"line_1", "line_2", "line_3"} == set(truth.batches["cell_line"])
    assert len(truth.responses) == 3 * len(truth.perturbations)
    # A line's response scales the state of its samples.
    factor = truth.responses.set_index(["cell_line", "perturbation"])["factor"]
    for row in truth.perturbations[truth.perturbations["kind"] == "active"].head(3).itertuples():
        for line in table.index:
            mine = ((adata.obs["perturbation"] == row.perturbation) & (adata.obs["cell_line"] == line)).to_numpy()
            mean = truth.signal[mine, row.program].mean()
            assert mean == pytest.approx(
                row.strength * factor[line, row.perturbation], abs=5 * 0.21 / mine.sum() ** 0.5
            )
    # Lines differ more than batches of one line do.
    values = log_normal(adata)
    means = {b: values[(adata.obs["batch"] == b).to_numpy()].mean(axis=0) for b in truth.batches["batch"]}
    line_of = truth.batches.set_index("batch")["cell_line"]
    gaps = {True: [], False: []}
    for one, other in itertools.combinations(means, 2):
        gaps[line_of[one] == line_of[other]].append(np.abs(means[one] - means[other]).mean())
    assert min(gaps[False]) > max(gaps[True])
    screen = open_screen(truth.path, replace(ROLES, cell_line="cell_line"))
    assert screen.samples.cell_lines is not None


def test_continuous_values(tmp_path):
    truth = simulate_screen(
        tmp_path / "bulk.h5ad",
        mode="continuous",
        n_samples=800,
        n_genes=1100,
        n_perturbations=30,
        unexpressed_targets=25,
        effect=2.0,
        batch_effect=0.0,
        program_noise=0.0,
        null_fraction=0.0,
    )
    adata = anndata.read_h5ad(truth.path)
    assert isinstance(adata.X, np.ndarray) and adata.X.dtype == np.float32
    assert open_screen(truth.path, ROLES).scale in ("continuous", "log1p")
    assert adata.var["landmark"].sum() == 978
    np.testing.assert_array_equal(adata.var["landmark"], truth.genes["measured"])
    # The silent targets would pass the threshold of level 3 for expressed genes if they had a mean above 0.43.
    mean = pd.Series(adata.X.mean(axis=0), index=adata.var_names)
    silent = truth.perturbations.loc[truth.perturbations["kind"] == "unexpressed", "gene"]
    measured = set(truth.genes.loc[truth.genes["measured"], "gene"])
    assert mean[[gene for gene in silent if gene in measured]].max() < 0.43
    # Planted shifts of measured genes, in units of log2.
    values = pd.DataFrame(adata.X, columns=adata.var_names)
    control = adata.obs["control"].to_numpy()
    effects = truth.effects.set_index(["perturbation", "program"])["strength"]
    planted, found = [], []
    members = truth.programs[truth.programs["gene"].isin(measured)]
    for row in truth.perturbations[truth.perturbations["kind"] == "active"].itertuples():
        mine = (adata.obs["perturbation"] == row.perturbation).to_numpy()
        shift = values[mine].mean() - values[control].mean()
        rest = members[members["gene"] != row.gene]
        strength = effects.loc[row.perturbation].reindex(rest["program"]).to_numpy()
        planted.append(strength * rest["loading"].to_numpy() / np.log(2))
        found.append(shift[rest["gene"]].to_numpy())
        if row.gene in measured:
            own = members.set_index("gene").loc[row.gene]
            expected = np.log2(0.25) + effects[row.perturbation, own["program"]] * own["loading"] / np.log(2)
            assert shift[row.gene] == pytest.approx(expected, abs=0.6)
    planted, found = np.concatenate(planted), np.concatenate(found)
    assert np.polyfit(planted, found, 1)[0] == pytest.approx(1.0, abs=0.03)
    assert np.corrcoef(planted, found)[0, 1] > 0.95
    # An inferred gene is a mixture of measured ones.
    inferred = values.loc[:, ~adata.var["landmark"].to_numpy()].to_numpy()[:, 0]
    known = values.loc[:, adata.var["landmark"].to_numpy()].to_numpy().astype(float)
    half = slice(0, None, 2)
    fitted = LassoCV(cv=3).fit(known[half], inferred[half])
    assert fitted.score(known[1::2], inferred[1::2]) > 0.6


def test_zarr(tmp_path):
    one = simulate_screen(tmp_path / "a.h5ad", **SMALL)
    other = simulate_screen(tmp_path / "b.zarr", **SMALL)
    np.testing.assert_array_equal(dense(anndata.read_h5ad(one.path)), dense(anndata.read_zarr(other.path)))
    np.testing.assert_array_equal(Truth.load(other.path).signal, one.signal)


def test_targets_are_knocked_down_by_the_asked_factor(tmp_path):
    truth = simulate_screen(
        tmp_path / "up.h5ad",
        **SMALL | {"n_samples": 3000},
        effect=0.05,
        knock_down=4.0,
        batch_effect=0.0,
        depth=20_000.0,
    )
    adata = anndata.read_h5ad(truth.path)
    share = adata.X.toarray() / np.asarray(adata.X.sum(axis=1))
    control = adata.obs["control"].to_numpy()
    ratios = []
    for row in truth.perturbations[truth.perturbations["kind"] == "active"].itertuples():
        gene = adata.var_names.get_loc(row.gene)
        mine = share[(adata.obs["perturbation"] == row.perturbation).to_numpy(), gene].mean()
        base = share[control, gene].mean()
        # Odds: a gene that grows fourfold also dilutes the others.
        ratios.append(mine / (1 - mine) / (base / (1 - base)))
    assert np.median(ratios) == pytest.approx(4.0, rel=0.1)


def test_a_run_file_is_beside_it(tmp_path):
    truth = simulate_screen(tmp_path / "a.h5ad", **SMALL)
    config = load_config(run_file(truth.path))
    assert config.screen == truth.path
    assert config.relations == relations_folder(truth.path)
    assert [spec.label for spec in config.embeddings] == ["pca", "truth", "noisy truth"]
    assert config.roles.control_column == "control"


def test_progress(tmp_path):
    seen = []
    simulate_screen(
        tmp_path / "a.h5ad", max_elements=300_000, progress=lambda done, total, text: seen.append((done, total))
    )
    assert seen[-1] == (4000, 4000)
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_samples": 0}, "n_samples is 0"),
        ({"n_samples": 20}, "20 samples are too few"),
        ({"n_genes": 17}, "17 genes are too few for 17 target genes"),
        ({"n_batches": 2.5}, "n_batches is 2.5"),
        ({"n_programs": True}, "n_programs is True"),
        ({"effect": float("nan")}, "effect is nan"),
        ({"null_fraction": -0.1}, "null_fraction is -0.1"),
        ({"depth": 0}, "depth is 0"),
        ({"mode": "count"}, "no mode called 'count'"),
        ({"n_cell_lines": 7}, "7 cell lines in 6 batches"),
        ({"seed": -1}, "seed is -1"),
        ({"knock_down": -0.5}, "knock_down is -0.5"),
        ({"dispersion": float("inf")}, "dispersion is inf"),
    ],
)
def test_bad_settings(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        simulate_screen(tmp_path / "a.h5ad", **(SMALL | change))
    assert list(tmp_path.iterdir()) == []


def test_interrupted_simulation_leaves_no_file(tmp_path):
    def stop(done, total, text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_screen(tmp_path / "a.h5ad", progress=stop, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        simulate_screen(tmp_path / "file" / "a.h5ad", **SMALL)


@pytest.mark.parametrize("storage", ["csr", "csc", "dense"])
@pytest.mark.parametrize("scale", ["counts", "normalized", "log1p", "continuous"])
def test_small_screens_for_tests(tmp_path: Path, storage, scale):
    path = make_screen(tmp_path / "tiny.h5ad", storage=storage, scale=scale, obsm={"X_a": 7})
    screen = open_screen(path, ROLES, scale=scale)
    assert (screen.n, screen.n_genes, screen.scale) == (120, 30, scale)
    assert screen.read_obsm("X_a").shape == (120, 7)
    adata = make_adata()
    assert pd.crosstab(adata.obs["perturbation"], adata.obs["batch"]).to_numpy().min() >= 6


def test_small_screen_as_zarr(tmp_path):
    screen = open_screen(make_screen(tmp_path / "tiny.zarr"), ROLES)
    assert (screen.n, screen.scale) == (120, "counts")


def test_targets_that_are_not_measured_act_on_programs_and_leave_the_rest_as_it_is(tmp_path):
    truth = simulate_screen(
        tmp_path / "more.h5ad", n_samples=6000, n_genes=40, n_perturbations=9, unexpressed_targets=4,
        unmeasured_targets=60, n_programs=3, null_fraction=0.25, seed=5,
    )  # fmt: skip
    adata = anndata.read_h5ad(truth.path)
    assert adata.obs["perturbation"].nunique() == 1 + 9 + 4 + 60 > adata.n_vars
    table = truth.perturbations.set_index("perturbation")
    unseen = table.index[~table["gene"].isin(adata.var_names)]
    assert len(unseen) == 60
    assert table.loc[unseen, "kind"].value_counts().to_dict() == {"active": 45, "none": 15}
    means = pd.DataFrame(truth.signal).groupby(adata.obs["perturbation"].to_numpy(), observed=True).mean()
    own = means.to_numpy()[means.index.get_indexer(unseen), table.loc[unseen, "program"]]
    assert np.corrcoef(own, table.loc[unseen, "strength"])[0, 1] > 0.99
    pairs = set(map(frozenset, truth.relations.itertuples(index=False)))
    for a, b in itertools.combinations(unseen[:8], 2):
        assert (frozenset((a, b)) in pairs) == (table.loc[a, "program"] == table.loc[b, "program"])
    without = simulate_screen(
        tmp_path / "same.h5ad", n_samples=6000, n_genes=40, n_perturbations=9, unexpressed_targets=4, n_programs=3,
        null_fraction=0.25, seed=5,
    )  # fmt: skip
    pd.testing.assert_frame_equal(without.genes.drop(columns="planted"), truth.genes.drop(columns="planted"))
    both = without.effects.merge(truth.effects, on=["perturbation", "program"])
    assert len(both) == len(without.effects)
    np.testing.assert_array_equal(both["strength_x"], both["strength_y"])
