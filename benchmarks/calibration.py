"""Type I error: p-values under their nulls on simulated screens, and power where there is an effect.

    python benchmarks/calibration.py --parts build/calibration --part "tests: plain" [--first 0] [--screens 400]
    python benchmarks/calibration.py --parts build/calibration --out benchmarks/results

Tests of perturbations (consistency, magnitude, retrieval): screens without effects, one perturbation of each, so that
the p-values are independent. Comparison: two embeddings of equal quality, the state of the cells with independent
noise. One call makes the p-values of one part and keeps them in a file; without `--part` the table is made of all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats
from simulated import Population, centred, draw

from txeval.compute.paired import difference
from txeval.errors import NotComputable
from txeval.tasks import get_task, run_task, task_params
from txeval.tasks.registry import metrics_of

NULL = Population("null", batches=10, perturbations=24, cells=1.0, controls=10, effect=0.0, silent=1.0)

DESIGNS = {
    "plain": NULL,
    "unequal groups": replace(NULL, name="unequal groups", abundance_sd=1.2, cells=1.5),
    "few controls": replace(NULL, name="few controls", controls=1),
    "strong batch effects": replace(NULL, name="strong batch effects", batch_sd=3.0),
}

EFFECT = {
    "12 test batches": Population("effect", batches=40, perturbations=48, cells=0.6, controls=6),
    "5 test batches": Population("effect of few batches", batches=16, perturbations=48, cells=1.0, controls=10),
}

#: Comparisons of equal embeddings also under unequal groups, few controls and strong batch effects, with effects.
EFFECT |= {
    "unequal groups": replace(EFFECT["12 test batches"], name="effect, unequal groups", abundance_sd=1.2, cells=0.9),
    "few controls": replace(EFFECT["12 test batches"], name="effect, few controls", controls=1),
    "strong batch effects": replace(EFFECT["12 test batches"], name="effect, strong batch effects", batch_sd=3.0),
}

#: Part -> (kind, design, noise of one embedding, noise of the other); tests have no embeddings to compare.
PARTS = {f"tests: {name}": ("tests", design, 0.0, 0.0) for name, design in DESIGNS.items()}
PARTS |= {f"{name}, noise 1 / 1": ("null", design, 1.0, 1.0) for name, design in EFFECT.items()}
PARTS |= {f"no effects: {name}, noise 1 / 1": ("null", design, 1.0, 1.0) for name, design in DESIGNS.items()}
#: Without effects too, with batches as many as in the designs with effects: the designs above leave three for the test.
PARTS |= {
    f"no effects: {name}, noise 1 / 1": (
        "null",
        replace(design, name=f"no {design.name}", effect=0.0, silent=1.0),
        1.0,
        1.0,
    )
    for name, design in EFFECT.items()
    if name == "12 test batches"
}
PARTS |= {
    f"12 test batches, noise 0.5 / {other:g}": ("power", EFFECT["12 test batches"], 0.5, other) for other in (1.0, 2.0)
}

#: Score -> (task, parameters).
COMPARED = {
    "top1_balanced": ("linear_probe", {"solver": "lda"}),
    "top1_perturbed_balanced": ("knn", {"k": 31}),
    "map": ("knn", {"k": 31, "retrieval": True, "retrieval_draws": 20}),
    "consistent": ("consistency", {"null": "permutation", "draws": 200}),
    "recall": ("relationships", {"min_genes": 10, "min_relations": 5, "draws": 20}),
    "ilisi_perfect": ("batch_mixing", {"perplexity": 20, "mixing_draws": 2}),
    "pearson_delta": ("reconstruction", {"decoder": "least_squares"}),
    "structural_integrity_rescaled": ("reconstruction", {"decoder": "least_squares"}),
}


def tests_of(design: Population, number: int, draws: int) -> dict[str, float]:
    """p-value of one perturbation for each test."""
    screen = draw(design, number)
    rng = np.random.default_rng(number)
    found = {}
    for name, task, params, table, column in (
        ("consistency", "consistency", {}, "perturbations", "p_value"),
        ("consistency across batches", "consistency", {"across_batches": True}, "perturbations", "p_value"),
        ("magnitude", "consistency", {}, "perturbations", "magnitude_p_value"),
        ("retrieval", "knn", {"retrieval": True, "retrieval_draws": draws}, "retrieval", "p_value"),
    ):
        if task == "consistency":
            params = {**params, "null": "permutation", "draws": draws}
        else:
            params = {**params, "k": 31}
        result = details(screen, task, params)[table][column].dropna().to_numpy()
        if len(result):
            found[name] = float(rng.choice(result))
    return found


def details(screen, task: str, params: dict) -> dict:
    """Tables of a task."""
    made = get_task(task)
    inputs = replace(screen, params=task_params(made, params))
    return run_task(made, inputs, metrics_of(made)).details


def scores(screen, embedding: np.ndarray) -> dict:
    """Units of every compared score of an embedding."""
    found = {}
    for metric, (name, params) in COMPARED.items():
        task = get_task(name)
        inputs = replace(screen, embedding=embedding, params=task_params(task, params))
        for made, score in run_task(task, inputs, [m for m in metrics_of(task) if m.name == metric]).scores:
            if score.units is not None and score.value is not None:
                found[made.name] = score.units
    return found


def noisy(base: np.ndarray, amount: float, seed: int) -> np.ndarray:
    """Embedding with independent noise."""
    return (base + amount * np.random.default_rng(seed).standard_normal(base.shape)).astype(np.float32)


def compared(design: Population, number: int, one: float, other: float) -> dict[str, float]:
    """p-values of the differences of two noisy embeddings of one screen.

    Shares of hits also have a randomised one, uniform if and only if McNemar's test is exact.
    """
    screen = draw(design, number)
    base = centred(screen)
    first, second = scores(screen, noisy(base, one, 2 * number)), scores(screen, noisy(base, other, 2 * number + 1))
    found = {}
    for name in [name for name in COMPARED if name in first and name in second]:
        try:
            found[name] = difference([first[name]], [second[name]]).p_value
        except NotComputable:
            continue
        if name == "consistent":
            apart = first[name].numerator - second[name].numerator
            chance = np.random.default_rng(number).random()
            found[f"{name}, randomised"] = randomised(int((apart > 0).sum()), int((apart < 0).sum()), chance)
    return found


def randomised(won: int, lost: int, chance: float) -> float:
    """p-value of McNemar's test that counts `chance` of the outcome itself, where mid-P counts half of it."""
    most, units = max(won, lost), won + lost
    sides = 1 if 2 * most == units else 2
    beyond = 2 * stats.binom.sf(most, units, 0.5)
    return float(beyond + chance * sides * stats.binom.pmf(most, units, 0.5))


def summary(p: np.ndarray) -> dict:
    """Kolmogorov-Smirnov against the uniform distribution, and the share below the usual limits.

    `ks_valid` is the p-value of the one-sided test: small where p-values are too small. `equal` is the share of
    p-values of 1: two embeddings of the same score.
    """
    test = stats.kstest(p, "uniform")
    return {
        "n": len(p),
        "ks": float(test.statistic),
        "ks_p": float(test.pvalue),
        "ks_valid": float(stats.kstest(p, "uniform", alternative="greater").pvalue),
        **{f"below_{limit}": float((p <= limit).mean()) for limit in (0.01, 0.05, 0.1)},
        "equal": float((p >= 1).mean()),
    }


def measure(part: str, first: int, screens: int) -> dict[str, list[float]]:
    """p-values by name."""
    kind, design, one, other = PARTS[part]
    found: dict[str, list[float]] = {}
    for number in range(first, first + screens):
        made = tests_of(design, number, 199) if kind == "tests" else compared(design, number, one, other)
        for name, p in made.items():
            found.setdefault(name, []).append(p)
    return found


def collected(folder: Path) -> list[dict]:
    """Rows of all files in a folder."""
    rows = []
    for part, (kind, _, _, _) in PARTS.items():
        found: dict[str, list[float]] = {}
        for path in sorted(folder.glob("*.json")):
            made = json.loads(path.read_text())
            if made["part"] == part:
                for name, p in made["p"].items():
                    found.setdefault(name, []).extend(p)
        for name, p in found.items():
            test = name if kind == "tests" else f"difference of {name}"
            rows.append({"kind": kind, "test": test, "design": part.removeprefix("tests: "), **summary(np.asarray(p))})
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Calibration of the tests",
        "",
        "`python benchmarks/calibration.py`. Kolmogorov-Smirnov test of p-values against the uniform distribution, and",
        "the share of p-values up to 0.01, 0.05 and 0.1. Tests by permutation are discrete (199 draws here) and valid.",
        "One-sided: p of the test against p-values that are too small. Differences of shares are discrete too: the",
        "last column is the share of pairs of embeddings of the same share, whose p-value is 1. Their randomised",
        "p-value (a random part of the outcome itself counted, where mid-P counts half) is uniform if the test is",
        "exact.",
    ]
    for kind, title in (
        ("tests", "Tests of perturbations without effects"),
        ("null", "Differences of embeddings of equal quality"),
        ("power", "Power: differences of embeddings of different quality"),
    ):
        mine = [row for row in rows if row["kind"] == kind]
        if not mine:
            continue
        lines += [
            "",
            f"{title}:",
            "",
            "| test | design | n | KS | KS p | one-sided | <= 0.01 | <= 0.05 | <= 0.1 | equal |",
        ]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
        lines += [
            f"| {row['test']} | {row['design']} | {row['n']} | {row['ks']:.3f} | {row['ks_p']:.2g} | "
            f"{row['ks_valid']:.2g} | "
            f"{row['below_0.01']:.3f} | {row['below_0.05']:.3f} | {row['below_0.1']:.3f} | {row['equal']:.2f} |"
            for row in mine
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the p-values of one part, or the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=Path, required=True, help="folder of the parts")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--screens", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.part is not None:
        found = measure(given.part, given.first, given.screens)
        given.parts.mkdir(parents=True, exist_ok=True)
        name = "".join(c if c.isalnum() else "_" for c in given.part) + f"_{given.first}.json"
        (given.parts / name).write_text(json.dumps({"part": given.part, "p": found}))
        for test, p in found.items():
            print(given.part, test, summary(np.asarray(p)), flush=True)
        return
    rows = collected(given.parts)
    text = table(rows)
    print(text)
    if given.out is not None:
        (given.out / "calibration.md").write_text(text)
        (given.out / "calibration.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
