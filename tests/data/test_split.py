from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.data.split import split
from txeval.errors import InputError

SPLITS = ("train", "test", "heldout")


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    with np.load(golden_dir / "norman.npz") as stored:
        return {name: stored[name] for name in stored.files if name.startswith(("split", "pert", "batch", "is_"))}


def test_reference_scheme_reproduces_the_published_code(golden):
    rows = split(golden["perturbation"], golden["batch"], golden["is_control"], seed=42, scheme="reference")
    for name in SPLITS:
        assert rows[name].dtype == np.int64
        np.testing.assert_array_equal(rows[name], golden[f"split_{name}"])


@pytest.mark.parametrize("as_type", [pd.Categorical, pd.Series, pd.Index, list, lambda a: a.astype(object)])
@pytest.mark.parametrize("scheme", ["paper", "reference"])
def test_container_of_the_labels_does_not_matter(golden, as_type, scheme):
    plain = split(golden["perturbation"], golden["batch"], golden["is_control"], seed=42, scheme=scheme)
    other = split(
        as_type(golden["perturbation"]), as_type(golden["batch"]), golden["is_control"], seed=42, scheme=scheme
    )
    for name in SPLITS:
        np.testing.assert_array_equal(plain[name], other[name])


def test_reference_draw_is_one_legacy_stream():
    """The rule on its own, on labels whose text order differs from their order of appearance."""
    n_batch, n_label = 9, 14
    batch = np.repeat(np.arange(n_batch)[::-1], n_label)
    label = np.tile(np.arange(100, 100 + n_label)[::-1], n_batch)
    control = np.zeros(len(batch), dtype=bool)
    rows = split(label, batch, control, seed=7, scheme="reference")
    legacy = np.random.RandomState(7)
    batches = legacy.choice(np.arange(n_batch)[::-1], 6, replace=False)
    labels = legacy.choice(np.arange(100, 100 + n_label)[::-1], 9, replace=False)
    train = np.isin(batch, batches) & np.isin(label, labels)
    np.testing.assert_array_equal(rows["train"], np.flatnonzero(train))
    np.testing.assert_array_equal(rows["test"], np.flatnonzero(~np.isin(batch, batches) & np.isin(label, labels)))


@st.composite
def screens(draw):
    n = draw(st.integers(1, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = rng.integers(0, draw(st.integers(1, 12)), n)
    batch = rng.integers(0, draw(st.integers(1, 8)), n)
    control = rng.random(n) < draw(st.sampled_from([0.0, 0.2, 0.6]))
    control[rng.integers(n)] = False
    return np.array([f"g{i}" for i in label]), np.array([f"b{i}" for i in batch]), control


@settings(max_examples=150, deadline=None)
@given(screens(), st.integers(0, 1000), st.sampled_from(["paper", "reference"]))
def test_invariants_of_every_split(screen, seed, scheme):
    label, batch, control = screen
    rows = split(label, batch, control, seed=seed, scheme=scheme)
    assert tuple(rows) == SPLITS
    perturbed = {name: r[~control[r]] for name, r in rows.items()}
    assert all((np.diff(r) > 0).all() for r in rows.values())
    together = np.concatenate(list(perturbed.values()))
    assert len(np.unique(together)) == len(together)

    batches = {name: set(batch[r]) for name, r in perturbed.items()}
    labels = {name: set(label[r]) for name, r in perturbed.items()}
    assert not batches["train"] & (batches["test"] | batches["heldout"])
    assert not labels["heldout"] & (labels["train"] | labels["test"])
    assert labels["test"] <= labels["train"]
    for name, r in rows.items():
        expected = np.flatnonzero(control & np.isin(batch, list(batches[name])))
        np.testing.assert_array_equal(r[control[r]], expected)

    # Nothing is left out but what the rules leave out.
    out = np.setdiff1d(np.flatnonzero(~control), together)
    for i in out:
        unseen_in_train_batch = batch[i] not in batches["test"] | batches["heldout"] and label[i] not in labels["train"]
        seen_but_not_in_train = label[i] not in labels["heldout"] | labels["train"]
        assert unseen_in_train_batch or seen_but_not_in_train


@settings(max_examples=80, deadline=None)
@given(screens(), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_paper_scheme_does_not_depend_on_row_order(screen, seed, random):
    label, batch, control = screen
    order = np.array(random.sample(range(len(label)), len(label)))
    plain = split(label, batch, control, seed=seed)
    shuffled = split(label[order], batch[order], control[order], seed=seed)
    for name in SPLITS:
        np.testing.assert_array_equal(plain[name], np.sort(order[shuffled[name]]))


def full_grid(n_batch: int, n_label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every perturbation once in every batch, after one control."""
    label = np.tile(np.arange(-1, n_label), n_batch)
    return label, np.repeat(np.arange(n_batch), n_label + 1), label < 0


@pytest.mark.parametrize("scheme", ["paper", "reference"])
@pytest.mark.parametrize(
    ("n", "train", "rest"),
    [(1188, 831, 357), (267, 186, 81), (9865, 6905, 2960), (8, 5, 3), (33, 23, 10)],
)
def test_sizes_are_those_of_the_paper(scheme, n, train, rest):
    """L1000 and Replogle batches, Replogle perturbations: 356 of the 357 L1000 test batches kept samples."""
    label, batch, control = full_grid(n, 2)
    rows = split(label, batch, control, seed=42, scheme=scheme)
    assert len(np.unique(batch[rows["train"]])) == train
    assert len(np.unique(batch[rows["test"]])) == rest
    label, batch, control = full_grid(2, n)
    rows = split(label, batch, control, seed=42, scheme=scheme)
    assert len(np.unique(label[rows["train"]])) - 1 == train
    assert len(np.unique(label[rows["heldout"]])) - 1 == rest


@pytest.mark.parametrize(("n_batch", "n_label"), [(2, 2), (2, 3), (3, 2), (5, 1)])
def test_paper_scheme_keeps_both_sides_of_few_labels(n_batch, n_label):
    label, batch, control = full_grid(n_batch, n_label)
    for seed in range(20):
        rows = split(label, batch, control, seed=seed)
        assert len(rows["train"])
        assert len(rows["test"])
        assert bool(len(rows["heldout"])) == (n_label > 1)


def test_one_batch_gives_train_only():
    label, batch, control = full_grid(1, 5)
    rows = split(label, batch, control, seed=0)
    assert len(rows["train"]) == 4  # 3 of 5 perturbations and the control
    assert len(rows["test"]) == len(rows["heldout"]) == 0
    assert rows["test"].dtype == np.int64


def test_batches_of_controls_alone_are_nowhere_and_not_drawn():
    label, batch, control = full_grid(4, 6)
    plain = split(label, batch, control, seed=3)
    more = split(
        np.append(label, [-1] * 5), np.append(batch, [90, 91, 92, 93, 94]), np.append(control, [True] * 5), seed=3
    )
    for name in SPLITS:
        np.testing.assert_array_equal(plain[name], more[name])


def test_seed_and_fraction_matter():
    label, batch, control = full_grid(20, 30)
    draws = {tuple(split(label, batch, control, seed=seed)["train"]) for seed in range(10)}
    assert len(draws) == 10
    assert len(np.unique(batch[split(label, batch, control, seed=0, train_fraction=0.5)["train"]])) == 10


def test_draws_are_unbiased():
    label, batch, control = full_grid(10, 10)
    hits = np.zeros(10)
    for seed in range(400):
        hits[np.unique(batch[split(label, batch, control, seed=seed)["train"]])] += 1
    # 400 draws of probability 0.7: five standard deviations are 46.
    assert np.abs(hits - 280).max() < 46


def test_labels_of_controls_may_be_missing():
    label = np.array(["a", None, "b", "c", "a", "b"], dtype=object)
    batch = np.array([1, 1, 1, 2, 2, 2])
    control = np.array([False, True, False, False, False, False])
    assert len(split(label, batch, control, seed=0)["train"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbation": ["a"]}, "perturbation has shape"),
        ({"batch": [[1, 2], [3, 4]]}, "batch has shape"),
        ({"is_control": []}, "at least one sample"),
        ({"is_control": [True] * 4}, "all 4 samples are controls"),
        ({"is_control": ["no", "no", "no", "yes"]}, "neither true nor false"),
        ({"is_control": [0, 1, 2, 0]}, "neither true nor false"),
        ({"perturbation": ["a", None, "b", "c"]}, "1 of 4 samples have no perturbation label, the first is row 1"),
        ({"batch": [1.0, 2.0, np.nan, 1.0]}, "have no batch label"),
        ({"scheme": "papper"}, "did you mean 'paper'"),
        ({"train_fraction": 1.0}, "train_fraction is 1.0"),
        ({"train_fraction": float("nan")}, "train_fraction is nan"),
        ({"seed": -1, "scheme": "reference"}, "seed is -1"),
    ],
)
def test_bad_input_is_refused(change, message):
    given_ = {
        "perturbation": ["a", "b", "a", "b"],
        "batch": [1, 1, 2, 2],
        "is_control": [False, False, False, True],
        "seed": 0,
    }
    with pytest.raises(InputError, match=message):
        split(**(given_ | change))
