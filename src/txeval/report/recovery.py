"""How well each level of a run finds what a simulated screen was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from txeval.compute.arrays import F64, Bools
from txeval.data.truth import Truth
from txeval.errors import InputError
from txeval.report.layout import Cell, Column, Grid, Row, number
from txeval.run.store import Store, read_details

__all__ = ["MEASURES", "find_truth", "recovery", "recovery_grid"]

#: What is said of each level; name -> meaning.
MEASURES: dict[str, str] = {
    "order": "rank correlation of what the level finds with what was planted; without information 0",
    "told apart": "how often something planted scores above something without effect (AUROC); without information 0.5",
    "strongest": "the level's score on the quarter with the strongest effect",
    "none": "the same score on what has no effect: this is chance",
}

_KEYS = ["model", "post_processing"]
_COLUMNS = ["level", "task", *_KEYS, "measure", "value", "chance", "n", "about"]
#: Fewer than this are no basis for a rank correlation.
_FEWEST = 8


def find_truth(results: Path | str) -> Path:
    """The simulated screen that a results folder is about.

    Raises
    ------
    InputError
        It is about several screens, or about none that was simulated.
    """
    folder = Path(results)
    paths = sorted({str(screen["path"]) for screen in Store(folder).manifest().get("screens", [])})
    if len(paths) != 1:
        raise InputError(
            f"{folder} is about {len(paths)} screens", remedy="name the simulated one: --truth SCREEN.h5ad"
        )
    return Path(paths[0])


def recovery(results: Path | str, truth: Truth) -> pd.DataFrame:
    """Hold the details of a run against the truth.

    Parameters
    ----------
    results
        Folder of `txeval run` on the simulated screen.

    Returns
    -------
    One row per level, task, model, post-processing and measure (`MEASURES`): `value` (missing where there are too few),
    `chance` (missing where it is not a fixed number), `n` (perturbations, pairs, genes or batches), `about` (what is
    held against what). Seeds are averaged.

    Raises
    ------
    InputError
        The folder holds no results, or they are of another screen.
    """
    folder = Path(results)
    Store(folder).check(needed=True)
    rows: list[dict[str, Any]] = []
    for task, table, judge in _JUDGES:
        try:
            details = read_details(folder, task, table)
        except InputError:
            continue
        for names, part in details.groupby(_KEYS, sort=True, dropna=False):
            which = dict(zip(_KEYS, names, strict=True))
            rows.extend({**which, **found} for found in judge(part, truth))
    if not rows:
        raise InputError(
            f"{folder} has no details of a level that the truth says something of", remedy="run txeval with this screen"
        )
    return pd.DataFrame(rows, columns=_COLUMNS).sort_values(["level", "task", *_KEYS], kind="stable", ignore_index=True)


def recovery_grid(found: pd.DataFrame, post_processing: str) -> Grid:
    """One post-processing as a table for people: measures down, models across."""
    mine = found[found["post_processing"] == post_processing]
    models = sorted(mine["model"].unique(), key=lambda name: (name != "random", name))
    mine = mine.assign(name=[f"{row.level} {str(row.task).replace('_', ' ')}" for row in mine.itertuples()])
    rows = []
    for name, part in mine.groupby("name", sort=True):
        for measure in MEASURES:
            here = part[part["measure"] == measure]
            if here.empty:
                continue
            values = dict(zip(here["model"], here["value"].to_numpy(), strict=True))
            numbers = [float(values.get(model, np.nan)) for model in models]
            chance = float(here["chance"].iloc[0])
            texts = ["" if np.isnan(chance) else number(chance)]
            texts += ["-" if np.isnan(value) else number(value) for value in numbers]
            rows.append(Row((str(name), measure), tuple(Cell(text) for text in texts), section=str(name)))
    about = {f"{row.name}: {row.about}." for row in mine.itertuples(index=False)}
    return Grid(
        title=f"What the levels find of what was planted, post-processing {post_processing}",
        index=("level", "measure"),
        columns=(Column("chance", "chance"), *(Column(model, "models") for model in models)),
        rows=tuple(rows),
        notes=(*(f"{name}: {text}." for name, text in MEASURES.items()), *sorted(about)),
    )


def _planted(truth: Truth) -> pd.Series[float]:
    """Size of what was planted for each perturbation: length of the vector of its shifts; 0 without effect."""
    size = truth.effects.assign(square=truth.effects["strength"] ** 2).groupby("perturbation")["square"].sum() ** 0.5
    return size.reindex(truth.perturbations["perturbation"]).fillna(0.0)


def _judged(
    level: int, task: str, score: F64, size: F64, about: str, *, shown: F64 | None = None, chance: float = np.nan
) -> Iterator[dict[str, Any]]:
    """All measures for things with a score and a planted size; `shown` is averaged in place of the score."""
    shown = score if shown is None else shown
    row = {"level": level, "task": task, "about": about}
    active = size > 0
    top = active & (size >= np.quantile(size[active], 0.75)) if active.any() else active
    yield {**row, "measure": "order", "value": rank_correlation(score, size), "chance": 0.0, "n": len(size)}
    yield {**row, "measure": "told apart", "value": auroc(score, active), "chance": 0.5, "n": len(size)}
    for name, kept in (("strongest", top), ("none", ~active)):
        value = float(shown[kept].mean()) if kept.any() else np.nan
        yield {**row, "measure": name, "value": value, "chance": chance, "n": int(kept.sum())}


def _with_size(part: pd.DataFrame, truth: Truth) -> pd.DataFrame:
    size = _planted(truth)
    known = part["perturbation"].isin(size.index)
    others = set(part.loc[~known, "perturbation"])
    if not known.any() or len(others) > 1:  # the control label may be there
        some = ", ".join(sorted(map(str, others))[:3])
        raise InputError(
            f"the results name perturbations that {truth.path.name} does not have: {some}",
            remedy="give the results of a run on this simulated screen",
        )
    part = part[known]
    return part.assign(planted=size[part["perturbation"]].to_numpy())


def _mean_over_seeds(part: pd.DataFrame, key: str | list[str]) -> pd.DataFrame:
    return part.groupby(key, sort=True, as_index=False).mean(numeric_only=True)


def _accuracy(level: int, task: str, column: str) -> Callable[[pd.DataFrame, Truth], Iterator[dict[str, Any]]]:
    def judge(part: pd.DataFrame, truth: Truth) -> Iterator[dict[str, Any]]:
        if column not in part:
            return
        found = _mean_over_seeds(_with_size(part, truth), "perturbation")
        yield from _judged(
            level,
            task,
            found[column].to_numpy(),
            found["planted"].to_numpy(),
            "accuracy (top 5) of each perturbation against the size of its effect",
            chance=min(1.0, 5 / len(found)),
        )

    return judge


def _consistency(part: pd.DataFrame, truth: Truth) -> Iterator[dict[str, Any]]:
    found = _mean_over_seeds(_with_size(part, truth), "perturbation")
    for task, column, p_column, what in (
        ("consistency", "avg_cosine", "p_value", "mean cosine similarity"),
        ("magnitude", "energy_distance", "magnitude_p_value", "energy distance to the controls"),
    ):
        mine = found[found[column].notna() & found[p_column].notna()]
        if len(mine):
            yield from _judged(
                3,
                task,
                mine[column].to_numpy(),
                mine["planted"].to_numpy(),
                f"{what} of each perturbation against the size of its effect; shown: share with p < 0.05",
                shown=np.asarray(mine[p_column] < 0.05, dtype=np.float64),
                chance=0.05,
            )


def _relationships(part: pd.DataFrame, truth: Truth) -> Iterator[dict[str, Any]]:
    part = part[part["database"] == "simulated_programs"]
    if part.empty:
        return
    target = truth.perturbations.set_index("gene")["strength"].abs()
    found = part.groupby(["gene_a", "gene_b"], sort=True).agg(
        rank=("rank", "mean"), linked=("link_5", lambda links: float((links != "").mean()))
    )
    genes = found.index.to_frame()
    size = np.minimum(target[genes["gene_a"]].to_numpy(), target[genes["gene_b"]].to_numpy())
    # Two genes of one program are alike or opposite; without an effect a gene can be neither.
    yield from _judged(
        5,
        "relationships",
        np.abs(found["rank"].to_numpy() - 0.5),
        size,
        "extremity of the cosine of each pair of one program against the weaker effect of the two; shown: recall",
        shown=found["linked"].to_numpy(),
        chance=0.1,
    )


def _reconstruction(part: pd.DataFrame, truth: Truth) -> Iterator[dict[str, Any]]:
    genes = truth.genes.set_index("gene")
    part = part[part["spearman"].notna() & part["gene"].isin(genes.index)]
    if part.empty:
        return
    found = _mean_over_seeds(part, "gene")
    about = genes.loc[found["gene"]]
    if truth.settings["mode"] == "counts":
        noise = np.sqrt(1 / about["mean"].to_numpy() + about["spread"].to_numpy())
    else:
        noise = np.maximum(about["spread"].to_numpy(), 1e-9)
    yield from _judged(
        6,
        "reconstruction",
        found["spearman"].to_numpy(),
        about["planted"].to_numpy() / noise,
        "rank correlation of each gene with its prediction against what programs add to it, relative to its noise",
        chance=0.0,
    )


def _batch_mixing(part: pd.DataFrame, truth: Truth) -> Iterator[dict[str, Any]]:
    shift = truth.batches.set_index("batch")["shift"]
    part = part[part["batch"].isin(shift.index)]
    found = _mean_over_seeds(part, "batch")
    if found.empty:
        return
    size = shift[found["batch"]].to_numpy()
    value = rank_correlation(-found["ilisi"].to_numpy(), size)
    yield {
        "level": 1,
        "task": "batch_mixing",
        "measure": "order",
        "value": value,
        "chance": 0.0,
        "n": len(found),
        "about": "lack of mixing of each test batch against the shift of its genes; 0 is the aim of a representation",
    }


_JUDGES: tuple[tuple[str, str, Callable[[pd.DataFrame, Truth], Iterator[dict[str, Any]]]], ...] = (
    ("batch_mixing", "batches", _batch_mixing),
    ("linear_probe", "perturbations", _accuracy(2, "linear_probe", "top5")),
    ("consistency", "perturbations", _consistency),
    ("knn", "perturbations", _accuracy(4, "knn", "top5_perturbed")),
    ("relationships", "relations", _relationships),
    ("reconstruction", "genes", _reconstruction),
)


def rank_correlation(a: F64, b: F64) -> float:
    """Spearman's correlation; NaN for fewer than eight values, or where one of them is constant."""
    if len(a) < _FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def auroc(score: F64, positive: Bools) -> float:
    """Probability that a positive scores above a negative, ties half; NaN without one of the two."""
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return float("nan")
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * m))
