"""Which scale is found, and what contradicts a declared one."""

from __future__ import annotations

from pathlib import Path

import made
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from txeval.data import open_screen, require_scale
from txeval.data.scale import SCALES, Evidence, check_declared, determine, first_fault
from txeval.errors import InputError


def normalized(x: np.ndarray, total: float = 1e4) -> np.ndarray:
    return (x / x.sum(1, keepdims=True) * total).astype(np.float32)


COUNTS = made.counts(200, 30)
RNG = np.random.default_rng(0)
MATRICES = {
    "counts": COUNTS,
    "large counts": RNG.negative_binomial(1, 1e-4, (50, 9)).astype(np.float64),
    "normalized": normalized(COUNTS),
    "normalized to the median": normalized(COUNTS, float(np.median(COUNTS.sum(1)))),
    "normalized, some genes only": normalized(COUNTS)[:, 5:17],
    "continuous: halves of whole numbers": COUNTS * 2 + 1.5,
    "log1p": np.log1p(normalized(COUNTS)),
    "log1p, some genes only": np.log1p(normalized(COUNTS))[:, 5:17],
    "log1p, no zeros, totals as bulk": np.log1p(normalized(COUNTS + 1)),
    "log1p, nothing but zeros and range": np.abs(RNG.normal(2, 1, (99, 9))) * (RNG.random((99, 9)) < 0.6),
    "continuous: z-scores": RNG.normal(size=(40, 9)),
    "continuous: log2 intensities": RNG.uniform(2.8, 14.2, (300, 20)),
    "continuous: distances": RNG.gamma(2, 30.0, (50, 50)) * (1 - np.eye(50)),
    "continuous: whole z-scores": RNG.integers(-3, 4, (40, 9)).astype(np.float32),
}


def look(x: np.ndarray, form=np.asarray) -> Evidence:
    evidence = Evidence()
    for start in range(0, len(x), 16):
        evidence.add(form(x[start : start + 16]), row=start)
    return evidence


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("name", MATRICES)
def test_scale_of_matrices_made_that_way(name: str, form) -> None:
    expected = "counts" if "counts" in name else name.split(",")[0].split(":")[0].split(" ")[0]
    found, why = determine(look(MATRICES[name], form))
    assert found == expected, why
    assert why


@pytest.mark.parametrize(
    ("file", "layer", "expected"),
    [
        ("papalexi2021_thp1_ecciteseq_299genes", None, "counts"),
        ("schraivogel2020_k562_tapseq_72genes", None, "counts"),
        ("kang2018_pbmc_ifnb_9015genes", None, "counts"),
        ("datlinger2021_jurkat_scifi_cropseq_2000hvg", None, "counts"),
        ("zhao2021_gbm_panobinostat_300genes", None, "counts"),
        ("norman2019_k562_crispra_500hvg", None, "log1p"),
        ("norman2019_k562_crispra_500hvg", "counts", "counts"),
        ("mcfaline2023_gbm_crispri_500hvg", None, "log1p"),
        ("tggates_human_hepatocyte_196genes", None, "continuous"),
        ("l1000_shrna_kd_litmus_plate_976genes", None, "continuous"),
        ("ipsc_ec_perturbseq_298targets_x_120programs", None, "continuous"),
        ("edistance_map_TianKampmann2021_CRISPRa", None, "continuous"),
    ],
)
def test_scale_of_real_files(data_dir: Path, file: str, layer: str | None, expected: str) -> None:
    column = "condition" if file.startswith(("kang", "zhao")) else "perturbation"
    roles = made.Roles(column, control_column="control")
    with open_screen(data_dir / f"{file}.h5ad", roles, layer=layer) as screen:
        assert screen.scale == expected, screen.scale_note
        assert not screen.scale_declared
        assert "samples" in screen.scale_note and screen.report["scale_note"] == screen.scale_note
        # The user may say what the data do not contradict, with the same result.
        with open_screen(screen.path, roles, layer=layer, scale=expected) as declared:
            assert declared.scale == expected and declared.scale_declared


@settings(max_examples=100, deadline=None)
@given(x=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 10**6)))
def test_whole_numbers_from_zero_are_counts(x: np.ndarray) -> None:
    assert determine(look(x))[0] == "counts"
    assert check_declared("counts", look(x)) == (None, "")


@settings(max_examples=100, deadline=None)
@given(
    x=hnp.arrays(np.float64, (7, 5), elements=st.floats(-1e6, 1e6, allow_subnormal=False)),
    form=st.sampled_from([np.asarray, sp.csr_matrix]),
)
def test_the_place_of_a_fault_is_a_fault(x: np.ndarray, form) -> None:
    for scale in SCALES:
        fault = first_fault(form(x), scale)
        wrong = np.zeros(x.shape, bool) if scale == "continuous" else x < 0
        if scale == "counts":
            wrong |= x != np.floor(x)
        assert (fault is None) == (not wrong.any())
        if fault is not None:
            row, column, value, _ = fault
            assert wrong[row, column] and x[row, column] == value


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_have_a_place(value: float, form) -> None:
    x = COUNTS.copy()
    x[41, 7] = value
    place = look(x, form).nonfinite
    assert place is not None and (place.row, place.column) == (41, 7)
    for scale in (None, *SCALES):
        assert first_fault(form(x), scale)[:2] == (41, 7)


@pytest.mark.parametrize(
    ("declared", "name", "wrong"),
    [
        ("counts", "log1p", "not a whole number"),
        ("counts", "normalized", "not a whole number"),
        ("counts", "continuous: z-scores", "negative"),
        ("counts", "continuous: whole z-scores", "negative"),
        ("normalized", "continuous: z-scores", "negative"),
        ("normalized", "log1p", "look like log1p"),
        ("log1p", "continuous: z-scores", "negative"),
        ("log1p", "normalized", "too large for a logarithm"),
        ("log1p", "counts", "whole number"),
    ],
)
def test_declared_scales_that_the_values_contradict(tmp_path: Path, declared: str, name: str, wrong: str) -> None:
    x = MATRICES[name].astype(np.float32)
    a = made.adata(x=x)
    path = made.write(a, tmp_path / "x.h5ad", layout="dense")
    with pytest.raises(InputError, match=wrong) as caught:
        open_screen(path, made.ROLES, scale=declared)
    place, _ = check_declared(declared, look(x))
    assert place is not None and x[place.row, place.column] == np.float32(place.value)
    for part in (str(path), "X holds", f"'cell{place.row}'", f"'G{place.column}'", f"{place.value:g}"):
        assert part in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("declared", "name"),
    [(s, n) for n in MATRICES for s in SCALES if s == n.split(",")[0].split(":")[0] or s == "continuous"],
)
def test_declared_scales_that_fit(declared: str, name: str) -> None:
    assert check_declared(declared, look(MATRICES[name])) == (None, "")


def test_the_remedy_names_a_layer_of_counts(tmp_path: Path) -> None:
    a = made.adata(x=np.log1p(normalized(COUNTS)))
    a.layers["spliced"] = COUNTS
    a.layers["scaled"] = RNG.normal(size=COUNTS.shape)
    path = made.write(a, tmp_path / "x.h5ad")
    with pytest.raises(InputError) as caught:
        open_screen(path, made.ROLES, scale="counts")
    assert "--layer spliced" in caught.value.remedy
    with open_screen(path, made.ROLES) as screen:
        assert screen.layers_of_counts() == ["spliced"]
        assert any("--layer spliced" in text for text in screen.report["warnings"])
        with pytest.raises(InputError, match=r"pca on counts needs counts values, but X of .*log1p") as caught:
            require_scale(screen, {"counts"}, step="pca on counts")
        assert "--layer spliced" in caught.value.remedy
        require_scale(screen, {"counts", "log1p"}, step="pca")


def test_what_a_sample_of_the_values_cannot_show_is_found_while_reading(tmp_path: Path) -> None:
    """A fraction or a missing value somewhere in a large file is found in the pass over it, with its place."""
    for value, wrong in [(0.5, "not a whole number"), (np.nan, "not a finite number"), (-1.0, "negative")]:
        x = made.counts(20_000, 3)
        x[[777, 15_001], 2] = value
        a = made.adata(x=x)
        for layout in ("csr", "dense"):
            path = made.write(a, tmp_path / f"{layout}{value}.h5ad", layout=layout)
            with open_screen(path, made.ROLES) as screen:
                assert screen.scale == "counts" and "2,048 of 20,000 samples" in screen.scale_note
                with pytest.raises(InputError, match=wrong) as caught:
                    list(screen.blocks())
                assert "'cell777'" in caught.value.problem and "'G2'" in caught.value.problem
            with pytest.raises(InputError, match=wrong):
                open_screen(path, made.ROLES, min_counts=1)


def test_a_matrix_by_columns_is_looked_at_by_columns(tmp_path: Path) -> None:
    n, g = 60_000, 100
    for made_of, expected in [("counts", "counts"), ("z", "continuous"), ("normalized", "normalized")]:
        x = sp.random(n, g, 0.05, random_state=0, format="csr", dtype=np.float32)
        x.data = np.ceil(x.data * 9) - (5.5 if made_of == "z" else 0)
        if made_of == "normalized":
            x = (sp.diags(1e4 / np.maximum(np.asarray(x.sum(1)).ravel(), 1)) @ x).astype(np.float32)
        path = made.write(made.adata(x=x), tmp_path / f"{made_of}.h5ad", layout="csc")
        with open_screen(path, made.ROLES) as screen:
            assert screen.scale == expected
            assert ("genes" in screen.scale_note) == (made_of != "normalized")
            assert any("stored by columns" in text for text in screen.report["warnings"])
