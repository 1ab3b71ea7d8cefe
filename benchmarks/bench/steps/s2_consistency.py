"""Consistency, magnitude and their nulls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from benchmarks.bench.measure import Case, Check, Repeated, Step, Way
from sklearn.metrics.pairwise import cosine_similarity

from txeval.compute.energy import Reference, group_energies
from txeval.metrics.consistency import choose_controls, consistency_permutation_p, group_consistency

GROUPS, CELLS, FULL = 9_866, 1_904_672, 1_980_000


def effects(groups: int, size: int, controls: int, d: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Samples of weak effects in random order, controls last: x, codes (-1 for controls)."""
    rng = np.random.default_rng(0)
    n = groups * size
    codes = np.r_[rng.permutation(np.arange(n) % groups), np.full(controls, -1)]
    x = rng.standard_normal((len(codes), d), dtype=np.float32)
    x[:n] += 0.1 * rng.standard_normal((groups, d), dtype=np.float32)[codes[:n]]
    return x, codes


def cosines(quick: bool) -> Case:
    """Mean cosine of every perturbation."""
    d, groups, n = (64, 200, 20_000) if quick else (256, GROUPS, FULL)
    few = min(groups, 100)
    values, _ = effects(200, 500, 0, d)
    x = Repeated(values, n)
    rng = np.random.default_rng(1)
    codes = rng.permutation(np.arange(n) % groups)
    rows = [np.flatnonzero(codes == g) for g in range(few)]

    def pairwise() -> np.ndarray:
        out = np.empty(few)
        for g, mine in enumerate(rows):
            similarity = cosine_similarity(x[mine])
            size = len(similarity)
            out[g] = (similarity.sum(dtype=np.float64) - size) / (size * (size - 1))
        return out

    def check(ours: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        # The pairwise way has a vector's float32 cosine with itself in its sum, which is not exactly 1.
        exact = np.empty(few)
        for g, mine in enumerate(rows):
            similarity = cosine_similarity(x[mine].astype(np.float64))
            exact[g] = (similarity.sum() - np.trace(similarity)) / (len(mine) * (len(mine) - 1))
        return [Check("largest difference", float(abs(ours[0][1][:few] - exact).max()), 1e-6)]

    return Case(
        size=(
            f"{n:,} x {d}, {groups:,} groups (rows of {len(values):,} samples over and over); pairwise on {few} of the "
            "groups"
        ),
        ours=Way.of(lambda: group_consistency(x, codes, groups)),
        others={"sklearn cosine_similarity": Way.of(pairwise, groups / few)},
        check=check,
        warm=lambda: group_consistency(values[:100], np.arange(100) % 3, 3),
    )


def energy(quick: bool) -> Case:
    """Energy distance of perturbations to 1,000 controls."""
    from geomloss import SamplesLoss

    groups, few, d = (20, 4, 64) if quick else (400, 20, 256)
    x, codes = effects(groups, 193, 1_000, d)
    controls = choose_controls(x, codes < 0)
    reference = Reference.of_rows(x, controls)
    y = torch.from_numpy(x[controls])
    parts = [torch.from_numpy(x[codes == g]) for g in range(few)]

    loss = SamplesLoss("energy")

    def geomloss() -> np.ndarray:
        return np.array([2 * float(loss(part, y)) for part in parts])

    def exact() -> np.ndarray:
        from scipy.spatial.distance import cdist

        wide = y.numpy().astype(np.float64)
        own = cdist(wide, wide).mean()
        out = []
        for part in parts:
            p = part.numpy().astype(np.float64)
            out.append(2 * cdist(p, wide).mean() - cdist(p, p).mean() - own)
        return np.array(out)

    def check(ours: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        found = ours[0][1][:few]
        return [
            Check("largest relative difference from scipy's cdist", float(abs(found / exact() - 1).max()), 1e-4),
            Check("and from geomloss (float32)", float(abs(found / others["geomloss"][0] - 1).max()), 2e-2),
        ]

    return Case(
        size=(
            f"{GROUPS:,} groups of 193, 1,000 controls, d {d}, from {groups} of the groups; geomloss from {few} of them"
        ),
        ours=Way.of(lambda: group_energies(x, codes, groups, reference), GROUPS / groups),
        others={"geomloss": Way.of(geomloss, GROUPS / few)},
        check=check,
        warm=lambda: (
            group_energies(x[:400], codes[:400] % 4, 4, reference),
            loss(parts[0], y),
        ),
        flops=2.0 * d * GROUPS * (193 * 1000 + 193 * 193 / 2),
        inner=d,
    )


def null(quick: bool) -> Case:
    """Random sets with the batches of every perturbation."""
    groups, draws, few = (20, 20, 5) if quick else (200, 50, 10)
    x, codes = effects(groups, 193, 0)
    rng = np.random.default_rng(2)
    batch = rng.integers(0, 50, len(x))
    labels = np.arange(groups).astype(str)
    avg = group_consistency(x, codes, groups)[1]
    chosen = np.arange(groups)

    def set_by_set() -> np.ndarray:
        rng = np.random.default_rng(0)
        units = x / np.linalg.norm(x, axis=1, keepdims=True)
        rows = [np.flatnonzero(batch == b) for b in range(50)]
        out = np.empty((few, 5))
        for g in range(few):
            counts = np.bincount(batch[codes == g], minlength=50)
            size = counts.sum()
            for t in range(5):
                drawn = np.concatenate(
                    [rng.choice(r, c, replace=False) for r, c in zip(rows, counts, strict=True) if c]
                )
                out[g, t] = ((units[drawn].sum(axis=0) ** 2).sum() - size) / (size * (size - 1))
        return out

    def check(ours: list[Any], others: Mapping[str, list[Any]]) -> list[Check]:
        # Effects are strong here: no random set is as consistent.
        return [Check("largest p", float(ours[0].max()), 1 / (draws + 1) + 1e-12)]

    return Case(
        size=f"{groups} groups of 193, 50 batches, {draws} draws; set by set on {few} groups and 5 draws",
        ours=Way.of(lambda: consistency_permutation_p(x, codes, batch, labels, chosen, avg, draws=draws)),
        others={"set by set": Way.of(set_by_set, groups * draws / few / 5)},
        check=check,
        warm=lambda: consistency_permutation_p(x, codes, batch, labels, chosen[:3], avg, draws=1),
    )


STEPS = (
    Step("consistency", "Consistency", cosines, {"sklearn cosine_similarity": 20}),
    Step("energy", "Magnitude (energy distance)", energy),
    Step("null", "Null of the consistency", null),
)
