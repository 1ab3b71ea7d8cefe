"""Do the cheaper probes rank embeddings as the paper's recipe does? Kendall's tau on real and simulated screens.

    python benchmarks/probe_solvers.py DATA [--work FOLDER] [--screens "TAP-seq 2020" ...]

Twelve embeddings of different quality, with each of two post-processings, through every solver of level 2. The rank
that a probe gives to the true class of every test cell is kept in FOLDER, so that a run can be stopped and gone on
with, and the tables are made of the ranks alone (--tables: nothing else).
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, t
from screens import SCREENS, cut

from txeval.compute.random import stream
from txeval.data import Roles, open_screen
from txeval.data.simulate import simulate_screen
from txeval.embed import parse_spec
from txeval.embed.base import EmbeddingContext
from txeval.embed.registry import make_embedding
from txeval.errors import NotComputable
from txeval.metrics.convergent_probe import convergent_probe
from txeval.metrics.linear_probe import linear_probe
from txeval.postprocess import PostProcessed, fit
from txeval.protocol import load_protocol
from txeval.run.config import post_params
from txeval.run.plan import split_screen
from txeval.tasks.base import TaskInputs
from txeval.tasks.registry import get_task, task_params

#: Shift of the strongest program: rising difficulty.
SIMULATED = {"simulated, strong": 1.0, "simulated, middle": 0.5, "simulated, weak": 0.3}
SIMULATION = {
    "n_samples": 16_000,
    "n_genes": 500,
    "n_perturbations": 120,
    "unexpressed_targets": 0,
    "n_batches": 12,
    "n_programs": 24,
    "program_noise": 0.35,
    "depth": 2_000.0,
    "seed": 5,
}
#: Label -> source, or (label of another, noise in units of its mean spread).
EMBEDDINGS: dict[str, str | tuple[str, float]] = {
    "PCA 16": "pca@components=16",
    "PCA 64": "pca@components=64",
    "PCA 256": "pca@components=256",
    "PCA 16 log": "pca@components=16,input=lognorm",
    "PCA 64 log": "pca@components=64,input=lognorm",
    "PCA 256 log": "pca@components=256,input=lognorm",
    "random projection 32": "random_projection@components=32",
    "random projection 256": "random_projection@components=256",
    "scVI nb, 10 epochs": "scvi@likelihood=nb,max_epochs=10,kl_warmup=10,hidden=128,latent=64,genes=0",
    "PCA 64 log, noise 1": ("PCA 64 log", 1.0),
    "PCA 64 log, noise 3": ("PCA 64 log", 3.0),
    "random": "random",
}
POST_PROCESSINGS = ("raw", "tvn")
RECIPE = "adamw"
#: Solver -> seeds.
SOLVERS = {RECIPE: (0, 1), "softmax-short": (0, 1), "lda": (0,), "convergent": (0,)}
TOPS = (1, 5)
DRAWS = 1000


@dataclass(frozen=True)
class Ranks:
    """Rank of the true class of every test cell, and CPU seconds of training and scoring."""

    rank: np.ndarray
    perturbation: np.ndarray
    seconds: float
    note: str


def opened(name: str, data: Path, work: Path) -> tuple[Any, str]:
    """A screen, and a line on it."""
    if name in SCREENS:
        part = cut(name, data, work / "screens", 0)
        given = part.config
        screen = open_screen(given["screen"], Roles(**_tuples(given["roles"])), layer=given.get("layer"), min_counts=0)
        return screen, part.note
    path = work / "screens" / f"{name.replace(', ', '-')}.h5ad"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        simulate_screen(path, effect=SIMULATED[name], **SIMULATION)
    roles = Roles("perturbation", control_column="control", batch="batch")
    note = (
        f"{SIMULATION['n_samples']:,} cells x {SIMULATION['n_genes']} genes, {SIMULATION['n_perturbations']} "
        f"perturbations in {SIMULATION['n_batches']} batches, effect {SIMULATED[name]}"
    )
    return open_screen(path, roles, min_counts=0), note


def _tuples(roles: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in roles.items()}


def embedded(label: str, screen: Any, train: np.ndarray, folder: Path) -> np.ndarray:
    """One embedding, kept in a file."""
    path = folder / f"{label}.npy"
    if not path.exists():
        source = EMBEDDINGS[label]
        if isinstance(source, str):
            context = EmbeddingContext(folder=folder / "of" / label, train_rows=train)
            context.folder.mkdir(parents=True, exist_ok=True)
            made = make_embedding(parse_spec(f"{label}={source}"), screen, context)
            values = np.asarray(made.values[:], dtype=np.float32)
        else:
            of, noise = source
            values = embedded(of, screen, train, folder)
            size = noise * np.sqrt(values.var(axis=0).mean())
            drawn = stream(0, "probe_solvers", label).standard_normal(values.shape)
            values = (values + size * drawn).astype(np.float32)
        np.save(path, values)
    return np.load(path)


def computed(name: str, data: Path, work: Path) -> None:
    """Ranks under every solver, as far as they are not there."""
    screen, note = opened(name, data, work)
    folder = work / name.replace(", ", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    protocol = load_protocol("paper")
    splits = split_screen(screen, protocol)
    samples, task = screen.samples, get_task("linear_probe")
    sizes = {part: int((~samples.is_control[splits[part]]).sum()) for part in ("train", "test")}
    classes = len(np.unique(samples.perturbation[splits["test"]][~samples.is_control[splits["test"]]]))
    about = {"note": f"{note}; {sizes['train']:,} train and {sizes['test']:,} test cells of {classes} perturbations"}
    (folder / "about.json").write_text(json.dumps(about))
    _warm_up()
    for label in EMBEDDINGS:
        values = embedded(label, screen, splits["train"], folder)
        for post in POST_PROCESSINGS:
            fitted = None
            for solver, seeds in SOLVERS.items():
                for seed in seeds:
                    path = folder / f"{label} {post} {solver} {seed}.npz"
                    if path.exists():
                        continue
                    if fitted is None:
                        given = post_params(post, protocol.post_processing)
                        fitted = fit(post, values, samples.is_control, samples.batch, len(samples.batches), **given)
                    inputs = TaskInputs(
                        embedding=PostProcessed(values, fitted, samples.batch),
                        samples=samples,
                        splits=splits,
                        params=task_params(task, {"solver": solver}),
                        seed=seed,
                    )
                    start = time.process_time()
                    try:
                        found = task.prepare(inputs)
                    except NotComputable as why:
                        raise SystemExit(f"{name}, {label}, {post}, {solver}: {why}") from None
                    seconds = time.process_time() - start
                    np.savez(
                        path,
                        rank=found.rank.astype(np.int16),
                        perturbation=found.truth.astype(np.int16),
                        seconds=seconds,
                        note=found.notes[0],
                    )
                    print(
                        f"{name} {label} {post} {solver} {seed}: {np.mean(found.rank < 1):.4f} {seconds:.1f} s",
                        flush=True,
                    )


def _warm_up() -> None:
    """Compile what is compiled on first use, so that no solver's seconds hold it."""
    x, y = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32), np.tile([0, 1], 20)
    for solver in ("adamw", "softmax-short", "lda"):
        linear_probe(x, y, x, y, solver=solver, epochs=1, warmup_epochs=0)
    convergent_probe(x, y, x, y, batch=np.arange(40) // 10)


def read(folder: Path, post: str) -> dict[tuple[str, int], dict[str, Ranks]]:
    """(solver, seed) -> embedding -> ranks."""
    made: dict[tuple[str, int], dict[str, Ranks]] = {}
    for solver, seeds in SOLVERS.items():
        for seed in seeds:
            for label in EMBEDDINGS:
                with np.load(folder / f"{label} {post} {solver} {seed}.npz") as file:
                    made.setdefault((solver, seed), {})[label] = Ranks(
                        file["rank"], file["perturbation"], float(file["seconds"]), str(file["note"])
                    )
    return made


def accuracies(ranks: dict[str, Ranks], top: int, weights: np.ndarray) -> np.ndarray:
    """(draws, embeddings) accuracy where each perturbation's cells count with its weight; weights (draws, classes)."""
    first = next(iter(ranks.values())).perturbation
    size = np.bincount(first, minlength=weights.shape[1])
    hits = np.stack(
        [np.bincount(r.perturbation, weights=r.rank < top, minlength=weights.shape[1]) for r in ranks.values()], axis=1
    )
    return (weights @ hits) / (weights @ size)[:, None]


def tau(one: np.ndarray, other: np.ndarray, pick: np.ndarray | None = None) -> np.ndarray:
    """Kendall's tau b of each row of two (draws, embeddings) tables of accuracies.

    Parameters
    ----------
    pick
        (draws, embeddings) embeddings to take instead; pairs of an embedding with itself do not count.
    """
    first, second = np.triu_indices(one.shape[1], 1)
    if pick is not None:
        one, other = (np.take_along_axis(np.broadcast_to(v, pick.shape), pick, axis=1) for v in (one, other))
    x, y = (np.sign(v[:, first] - v[:, second]) for v in (one, other))
    if pick is not None:
        apart = pick[:, first] != pick[:, second]
        x, y = x * apart, y * apart
    size = np.sqrt((x != 0).sum(axis=1) * (y != 0).sum(axis=1))
    return np.divide((x * y).sum(axis=1), size, out=np.full(len(x), np.nan), where=size > 0)


def compared(folder: Path, post: str, top: int) -> list[dict[str, Any]]:
    """Each solver (and the recipe's second seed) against the recipe's first seed."""
    found = read(folder, post)
    codes = next(iter(found[RECIPE, 0].values())).perturbation
    n = int(codes.max()) + 1
    present = np.flatnonzero(np.bincount(codes, minlength=n))
    rng = stream(0, "probe_solvers", folder.name, post)
    drawn = rng.multinomial(len(present), np.full(len(present), 1 / len(present)), size=DRAWS)
    weights = np.zeros((DRAWS, n))
    weights[:, present] = drawn
    labels = len(EMBEDDINGS)
    chosen = rng.integers(0, labels, size=(DRAWS, labels))
    whole = np.zeros((1, n))
    whole[:, present] = 1
    base, base_drawn = (accuracies(found[RECIPE, 0], top, w) for w in (whole, weights))
    rows = []
    for (solver, seed), ranks in found.items():
        mine, mine_drawn = (accuracies(ranks, top, w) for w in (whole, weights))
        row: dict[str, Any] = {
            "solver": solver,
            "seed": seed,
            "top": top,
            "accuracy": dict(zip(EMBEDDINGS, mine[0].tolist(), strict=True)),
            "seconds": sum(r.seconds for r in ranks.values()),
            "mean_difference": float((mine - base).mean()),
        }
        if (solver, seed) != (RECIPE, 0):
            over_cells, over_embeddings = tau(base_drawn, mine_drawn), tau(base, mine, chosen)
            row |= {
                "tau": float(kendalltau(base[0], mine[0]).statistic),
                "tau_perturbations": [float(q) for q in np.nanquantile(over_cells, (0.025, 0.975))],
                "tau_embeddings": [float(q) for q in np.nanquantile(over_embeddings, (0.025, 0.975))],
                **_pairs(base, base_drawn, mine, mine_drawn),
            }
        rows.append(row)
    return rows


def _pairs(base: np.ndarray, base_drawn: np.ndarray, mine: np.ndarray, mine_drawn: np.ndarray) -> dict[str, int]:
    """Pairs of embeddings that the recipe tells apart, and what the other solver says of them."""
    told = {"told_apart": 0, "same": 0, "silent": 0, "reversed": 0, "told_by_solver": 0}
    for i, j in itertools.combinations(range(base.shape[1]), 2):
        verdict = []
        for drawn in (base_drawn, mine_drawn):
            low, high = np.quantile(drawn[:, i] - drawn[:, j], (0.025, 0.975))
            verdict.append(int(low > 0) - int(high < 0))
        told["told_by_solver"] += verdict[1] != 0
        if verdict[0]:
            told["told_apart"] += 1
            told["same" if verdict[1] == verdict[0] else "silent" if verdict[1] == 0 else "reversed"] += 1
    return told


def pooled(records: dict[str, Any], post: str, top: int, solver: str, seed: int) -> dict[str, float]:
    """Mean tau over screens with its t interval, pairs of all screens, CPU seconds against the recipe's."""
    every = [row for record in records.values() for row in record["scores"]]
    every = [row for row in every if (row["post_processing"], row["top"]) == (post, top)]
    rows = [row for row in every if (row["solver"], row["seed"]) == (solver, seed)]
    recipe = [row for row in every if (row["solver"], row["seed"]) == (RECIPE, 0)]
    taus = np.asarray([row["tau"] for row in rows])
    half = t.ppf(0.975, len(taus) - 1) * taus.std(ddof=1) / np.sqrt(len(taus)) if len(taus) > 1 else np.nan
    return {
        "tau": float(taus.mean()),
        "low": float(max(-1.0, taus.mean() - half)),
        "high": float(min(1.0, taus.mean() + half)),
        "cpu": sum(row["seconds"] for row in rows) / sum(row["seconds"] for row in recipe),
        **{key: int(sum(row[key] for row in rows)) for key in ("told_apart", "same", "silent", "reversed")},
    }


def tables(work: Path, out: Path) -> None:
    """Write the Markdown and JSON files of the screens that are complete."""
    records: dict[str, Any] = {}
    for name in (*SCREENS, *SIMULATED):
        folder = work / name.replace(", ", "-").replace(" ", "-")
        try:
            scores = [
                {"post_processing": post, **row}
                for post in POST_PROCESSINGS
                for top in TOPS
                for row in compared(folder, post, top)
            ]
        except FileNotFoundError as why:
            print(f"{name}: left out, {why.filename} is not there")
            continue
        records[name] = {**json.loads((folder / "about.json").read_text()), "scores": scores}
    out.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n")
    out.write_text("\n".join(markdown(records)) + "\n")


HEAD = """# Do the cheaper probes rank embeddings as the recipe does?

`python benchmarks/probe_solvers.py DATA`: {n} embeddings, level 2 with each solver, `raw` and `tvn`. Kendall's tau (b)
of the ranking by a solver with the ranking by the recipe (AdamW, 250 epochs, seed 0). The row `adamw, seed 1` is the
ceiling: the recipe against itself. Intervals (95 %): `perturbations` draws the perturbations of the test cells again,
the same for all embeddings and solvers; `embeddings` draws the embeddings again. Drawing adds noise to close pairs, so
that both intervals reach low. `pairs`: of the pairs of embeddings that the recipe tells apart (paired interval over
perturbations without 0), those that the solver tells apart likewise / leaves open / turns round. `CPU`: CPU seconds of
all embeddings, as a share of the recipe's in the same run.
"""


def markdown(records: dict[str, Any]) -> Iterator[str]:
    yield HEAD.format(n=len(EMBEDDINGS))
    others = [(s, seed) for s, seeds in SOLVERS.items() for seed in seeds if (s, seed) != (RECIPE, 0)]
    yield f"## All {len(records)} screens: mean tau [95 % t interval over screens], pairs"
    yield ""
    columns = [f"{post}, top {top}" for post in POST_PROCESSINGS for top in TOPS]
    yield "| solver | " + " | ".join([*columns, "CPU, raw and tvn"]) + " |"
    yield "| --- |" + " --- |" * (len(columns) + 1)
    for solver, seed in others:
        cells = []
        for post in POST_PROCESSINGS:
            for top in TOPS:
                p = pooled(records, post, top, solver, seed)
                cells.append(
                    f"{p['tau']:.2f} [{p['low']:.2f}, {p['high']:.2f}]; "
                    f"{p['same']} / {p['silent']} / {p['reversed']} of {p['told_apart']}"
                )
        cpu = (pooled(records, post, TOPS[0], solver, seed)["cpu"] for post in POST_PROCESSINGS)
        yield f"| {_name(solver, seed)} | " + " | ".join([*cells, ", ".join(f"{ratio:.2g}" for ratio in cpu)]) + " |"
    yield ""
    for name, record in records.items():
        yield f"## {name}"
        yield ""
        yield record["note"]
        yield ""
        yield "| post-processing | top | solver | tau | perturbations | embeddings | pairs | mean difference | CPU |"
        yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        for post in POST_PROCESSINGS:
            for top in TOPS:
                rows = [r for r in record["scores"] if r["post_processing"] == post and r["top"] == top]
                recipe = next(r for r in rows if "tau" not in r)
                for row in rows:
                    if row is recipe:
                        continue
                    yield (
                        f"| {post} | {top} | {_name(row['solver'], row['seed'])} | {row['tau']:.2f} | "
                        f"{_range(row['tau_perturbations'])} | {_range(row['tau_embeddings'])} | "
                        f"{row['same']} / {row['silent']} / {row['reversed']} of {row['told_apart']} | "
                        f"{row['mean_difference']:+.3f} | {row['seconds'] / recipe['seconds']:.2g} |"
                    )
        yield ""
        for post in POST_PROCESSINGS:
            yield f"Top 1, {post}:"
            yield ""
            rows = [r for r in record["scores"] if r["post_processing"] == post and r["top"] == 1]
            yield "| embedding | " + " | ".join(_name(r["solver"], r["seed"]) for r in rows) + " |"
            yield "| --- |" + " --- |" * len(rows)
            for label in EMBEDDINGS:
                yield f"| {label} | " + " | ".join(f"{r['accuracy'][label]:.3f}" for r in rows) + " |"
            yield ""


def _name(solver: str, seed: int) -> str:
    return f"{solver}, seed {seed}" if len(SOLVERS[solver]) > 1 else solver


def _range(ends: list[float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probe_solvers.md")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--screens", nargs="*", default=[*SCREENS, *SIMULATED])
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    if not given.tables:
        for name in given.screens:
            computed(name, given.data, work)
    tables(work, given.out)


if __name__ == "__main__":
    main()
