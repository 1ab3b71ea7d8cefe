"""Post-processing of a whole embedding, applied block by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.linalg
from benchmarks.bench.measure import Case, Check, Repeated, Step, Way
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from txeval.compute.arrays import BLOCK_ELEMENTS, row_blocks
from txeval.postprocess import Fitted, PostProcessed, fit

FULL, CONTROLS, BATCHES = 1_980_000, 75_328, 267


def screen(quick: bool, d: int) -> tuple[Repeated, np.ndarray, np.ndarray]:
    """All controls, and some perturbed samples over and over: embedding, control flags, batch codes."""
    n, controls, others = (20_000, 4_000, 1_000) if quick else (FULL, CONTROLS, 40_000)
    rng = np.random.default_rng(0)
    batches = 20 if quick else BATCHES
    codes = np.r_[np.arange(controls) % batches, rng.integers(0, batches, n - controls)]
    values = rng.standard_normal((controls + others, d), dtype=np.float32) * np.exp(-np.arange(d) / (d / 4)).astype(
        np.float32
    )
    values[:controls] += rng.standard_normal((batches, d), dtype=np.float32)[codes[:controls]]
    return Repeated(values, n, once=controls), np.arange(n) < controls, codes


def through(x: Any, fitted: Fitted, codes: np.ndarray) -> None:
    """Read every block once."""
    lazy = PostProcessed(x, fitted, codes)
    for rows in row_blocks(*x.shape):
        lazy[rows]


def tvn(quick: bool) -> Case:
    """TVN with CORAL against matrix powers batch by batch, as the published code has it."""
    d = 64 if quick else 512
    x, is_control, codes = screen(quick, d)
    controls = x.values[: x.once]
    batches = int(codes.max()) + 1
    few = min(20, batches)
    sample = x.values[: x.once + min(10_000, len(x.values) - x.once)]
    kept: dict[str, Any] = {}

    def fit_controls() -> None:
        first = StandardScaler().fit(controls)
        z = first.transform(controls)
        rotation = PCA().fit(z)
        z = rotation.transform(z)
        kept.update(first=first, rotation=rotation, second=StandardScaler().fit(z))
        kept["white"] = kept["second"].transform(z)

    def powers() -> None:
        kept["powers"] = [
            np.real(
                scipy.linalg.fractional_matrix_power(
                    np.cov(kept["white"][codes[: x.once] == b], rowvar=False, ddof=1) + 0.5 * np.eye(d), -0.5
                )
            )
            for b in range(few)
        ]

    def transform() -> np.ndarray:
        z = kept["second"].transform(kept["rotation"].transform(kept["first"].transform(sample)))
        for b in range(batches):
            mine = codes[: len(z)] == b
            z[mine] = z[mine] @ kept["powers"][b % few]
        return z

    def ours() -> Fitted:
        fitted = fit("tvn", x, is_control, codes, batches)
        through(x, fitted, codes)
        return fitted

    def check(found: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        rows = np.flatnonzero(codes[: x.once] < few)[:1000]
        mine = PostProcessed(x, found[0], codes)[rows].astype(np.float64)
        theirs = others["fractional_matrix_power"][2][rows].astype(np.float64)
        # Axes differ in sign, which the last step mixes: scalar products do not.
        a, b = mine @ mine.T, theirs @ theirs.T
        return [
            Check(
                "largest difference of scalar products, relative to the largest",
                float(abs(a - b).max() / abs(b).max()),
                1e-4,
            )
        ]

    return Case(
        size=(
            f"{x.n:,} x {d} (rows of {len(x.values):,} samples over and over), {x.once:,} controls, {batches} batches; "
            f"the alternative: {few} of the powers, {len(sample):,} of the rows"
        ),
        ours=Way.of(ours),
        others={
            "fractional_matrix_power": Way(
                ((fit_controls, 1.0), (powers, batches / few), (transform, x.n / len(sample)))
            )
        },
        check=check,
        warm=lambda: through(
            x.values[:600], fit("tvn", x.values[:600], np.ones(600, bool), np.arange(600) % 2, 2), np.arange(600) % 2
        ),
        flops=2.0 * x.n * d * d,
        inner=d,
    )


def scaling(quick: bool) -> Case:
    """Centering and scaling by the controls of every batch."""
    x, is_control, codes = screen(quick, 64 if quick else 256)
    batches = int(codes.max()) + 1
    m = x.once + min(20_000, len(x.values) - x.once)
    values, flags, own = x.values[:m], is_control[:m], codes[:m]

    def other() -> np.ndarray:
        out = values.copy()
        for b in range(batches):
            mine = own == b
            out[mine] = StandardScaler().fit(out[mine & flags]).transform(out[mine])
        return out

    def ours() -> Fitted:
        fitted = fit("center_scaling", x, is_control, codes, batches)
        through(x, fitted, codes)
        return fitted

    def check(found: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        mine = PostProcessed(x, found[0], codes)[np.arange(m - 2000, m)]
        return [
            Check("largest difference", float(abs(mine - others["sklearn StandardScaler"][0][m - 2000 :]).max()), 1e-3)
        ]

    return Case(
        size=f"{x.n:,} x {x.shape[1]}, {batches} batches; StandardScaler per batch on {m:,} of the rows",
        ours=Way.of(ours),
        others={"sklearn StandardScaler": Way.of(other, x.n / m)},
        check=check,
        warm=lambda: through(
            x.values[:600],
            fit("center_scaling", x.values[:600], np.ones(600, bool), np.arange(600) % 2, 2),
            np.arange(600) % 2,
        ),
    )


STEPS = (
    # The rows of a block, before and after, and less than another one beside them.
    Step("tvn", "TVN", tvn, {"fractional_matrix_power": 10}, at_most_mib=3 * 4 * BLOCK_ELEMENTS / 2**20),
    Step("center_scaling", "Center scaling", scaling),
)
