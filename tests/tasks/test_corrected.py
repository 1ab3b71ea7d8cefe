"""The protocol `corrected`: chance where nothing is, order where truth is, and cell lines as blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from txeval.data import LogNormExpression, Roles, open_screen, simulate_screen, split
from txeval.protocol import load_protocol
from txeval.run.rows import score_frame
from txeval.tasks import Score, TaskInputs, get_task, run_task, task_params
from txeval.tasks.blocks import RowSubset, cell_lines, crossed_batches, subset
from txeval.tasks.registry import metrics_of

CHEAP: dict[str, dict[str, Any]] = {
    "knn": {"k": 51, "retrieval_draws": 299},
    "consistency": {"draws": 299},
    "relationships": {"min_genes": 20, "draws": 100},
    "linear_probe": {"weight_decays": [0.1, 0.01], "max_iterations": 60},
}


@dataclass
class World:
    """A simulated screen, opened, with a good, a noisy, a shuffled and a collapsed embedding."""

    inputs: TaskInputs
    embeddings: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    path = tmp_path_factory.mktemp("corrected") / "screen.h5ad"
    truth = simulate_screen(path, n_samples=3000, n_genes=120, n_perturbations=50, n_batches=6, effect=1.5, seed=8)
    screen = open_screen(path, Roles("perturbation", control_column="control", batch="batch", target_gene="gene"))
    samples = screen.samples
    splits = split(
        samples.perturbations[samples.perturbation], samples.batches[samples.batch], samples.is_control, seed=1
    )
    good = screen.read_obsm("X_truth")
    rng = np.random.default_rng(0)
    inputs = TaskInputs(
        embedding=good,
        samples=samples,
        splits=splits,
        params=None,
        expression=LogNormExpression(screen),
        relations={"modules": truth.relations},
    )
    return World(
        inputs,
        {
            "good": good,
            "noisy": screen.read_obsm("X_noisy"),
            "random": good[rng.permutation(len(good))],
            "collapsed": (0.5 + 1e-5 * rng.normal(size=good.shape)).astype(np.float32),
        },
    )


def scores_of(inputs: TaskInputs, name: str, protocol: str = "corrected", **params: Any) -> dict[str, Score]:
    task = get_task(name)
    chosen = {**load_protocol(protocol).tasks.get(name, {}), **CHEAP.get(name, {}), **params}
    ready = replace(inputs, params=task_params(task, chosen))
    return {metric.name: score for metric, score in run_task(task, ready, metrics_of(task)).scores}


@pytest.fixture(scope="module")
def scored(world: World) -> dict[str, dict[str, dict[str, Score]]]:
    tasks = ("batch_mixing", "linear_probe", "consistency", "knn", "relationships", "reconstruction")
    return {
        name: {task: scores_of(replace(world.inputs, embedding=values), task) for task in tasks}
        for name, values in world.embeddings.items()
    }


@pytest.mark.parametrize(
    ("task", "metric", "margin"),
    [
        ("linear_probe", "top1_balanced", 0.03),
        ("consistency", "consistent", 0.12),
        ("consistency", "consistent_adjusted", 0.03),
        ("consistency", "magnitude", 0.12),
        ("consistency", "magnitude_adjusted", 0.05),
        ("knn", "top1_perturbed_balanced", 0.03),
        ("knn", "map", 0.01),
        ("knn", "map_significant", 0.05),
        ("relationships", "recall", 0.08),
        ("relationships", "recall_perturbed_mean", 0.08),
        ("relationships", "recall_positive", 0.06),
        ("relationships", "recall_negative", 0.06),
        ("relationships", "auroc", 0.06),
        ("reconstruction", "pearson_delta", 0.25),
        ("reconstruction", "structural_integrity_rescaled", 0.1),
    ],
)
def test_good_and_noisy_are_above_random_and_random_is_at_chance(
    scored: dict[str, dict[str, dict[str, Score]]], task: str, metric: str, margin: float
) -> None:
    found = {name: scored[name][task][metric] for name in ("good", "noisy", "random")}
    values = {}
    for name, score in found.items():
        assert score.value is not None, score.reason
        values[name] = score.value
    # Without noise, perturbations without effect are one point away from the mean of all: they fill the tail.
    if metric != "recall_perturbed_mean":
        assert values["good"] >= values["noisy"] - (0.06 if task == "relationships" else 0), values
    if metric != "recall_negative":
        assert values["noisy"] > values["random"] + (0 if "magnitude" in metric else 1e-3), values
    chance = found["random"].chance
    assert chance is not None and abs(values["random"] - chance) < margin, (values, chance)


def test_a_collapsed_embedding_mixes_perfectly_and_has_no_biology(
    scored: dict[str, dict[str, dict[str, Score]]],
) -> None:
    rows = []
    for name, tasks in scored.items():
        for task, metric in (("batch_mixing", "ilisi_perfect"), ("knn", "map")):
            score = tasks[task][metric]
            rows.append(
                {
                    "screen_fingerprint": "s",
                    "protocol_fingerprint": "p",
                    "model": name,
                    "post_processing": "raw",
                    "task": task,
                    "metric": metric,
                    "value": score.value,
                    "low": None,
                    "high": None,
                    "chance": score.chance,
                    "status": "ok",
                }
            )
    frame = score_frame(rows)
    derive = next(m for m in get_task("batch_mixing").metrics if m.name == "mixing_and_biology").derive
    assert derive is not None
    found = derive(frame).set_index("model")
    mixing = frame[frame["metric"] == "ilisi_perfect"].set_index("model")["value"]
    assert mixing["collapsed"] == pytest.approx(1, abs=0.06)
    assert found.loc["collapsed", "value"] < 0.1
    assert found.loc["random", "value"] < 0.1
    assert found.loc["good", "value"] > 0.3
    assert "knn/map" in found.loc["good", "notes"]
    alone = derive(frame[frame["metric"] != "map"])
    assert alone["value"].isna().all() and alone["reason"].str.contains("knn/map").all()
    for task, metric in (("linear_probe", "top1_balanced"), ("knn", "map"), ("consistency", "consistent_adjusted")):
        value, chance = scored["collapsed"][task][metric].value, scored["collapsed"][task][metric].chance
        assert value is not None and chance is not None and abs(value - chance) < 0.05


def test_units_give_the_score_back(scored: dict[str, dict[str, dict[str, Score]]]) -> None:
    for tasks in scored["good"].values():
        for name, score in tasks.items():
            assert score.units is not None, name
            assert score.units.value == pytest.approx(score.value, rel=1e-6, abs=1e-9), name


@pytest.fixture(scope="module")
def two_lines(world: World) -> TaskInputs:
    """The same screen in two cell lines, that lie far apart."""
    samples = world.inputs.samples
    line = np.random.default_rng(4).integers(2, size=samples.n)
    shift = 40 * np.random.default_rng(5).normal(size=(2, world.embeddings["good"].shape[1]))[line]
    return replace(
        world.inputs,
        samples=replace(samples, cell_line=line, cell_lines=np.array(["A", "B"])),
        embedding=(world.embeddings["good"] + shift).astype(np.float32),
    )


def test_without_cell_lines_the_blocks_change_nothing(world: World) -> None:
    for task in ("knn", "consistency", "relationships", "batch_mixing"):
        plain, blocked = scores_of(world.inputs, task, blocks="none"), scores_of(world.inputs, task)
        assert {name: score.value for name, score in plain.items()} == {n: s.value for n, s in blocked.items()}


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("knn", "top1_perturbed"),
        ("knn", "map"),
        ("consistency", "consistent_adjusted"),
        ("relationships", "recall"),
        ("relationships", "auroc"),
        ("linear_probe", "top1_balanced"),
        ("batch_mixing", "ilisi_perfect"),
    ],
)
def test_a_score_over_cell_lines_is_made_of_those_within_them(two_lines: TaskInputs, task: str, metric: str) -> None:
    params = {"min_genes": 10} if task == "relationships" else {}
    both = scores_of(two_lines, task, **params)[metric]
    assert both.value is not None and both.units is not None
    assert both.units.value == pytest.approx(both.value, rel=1e-9)
    alone = []
    for block in cell_lines(two_lines.samples, "cell_line"):
        place = np.full(two_lines.samples.n, -1)
        place[block.rows] = np.arange(len(block.rows))
        inside = replace(
            two_lines,
            samples=subset(two_lines.samples, block.rows),
            embedding=RowSubset(two_lines.embedding, block.rows),
            splits={name: place[block.within(rows)] for name, rows in two_lines.splits.items()},
        )
        found = scores_of(inside, task, **params)[metric]
        assert found.value is not None
        alone.append(found.value)
    assert min(alone) - 0.02 <= both.value <= max(alone) + 0.02


def test_blocks_keep_controls_and_batches_of_cell_lines_apart(two_lines: TaskInputs) -> None:
    codes, labels = crossed_batches(two_lines.samples, "cell_line")
    assert len(labels) == 2 * len(two_lines.samples.batches) and labels[0].endswith(", A")
    assert len({*zip(codes.tolist(), two_lines.samples.cell_line.tolist(), strict=True)}) == len(labels)
    assert crossed_batches(two_lines.samples, "none")[0] is two_lines.samples.batch
    table = run_task(
        get_task("consistency"),
        replace(two_lines, params=task_params(get_task("consistency"), {"draws": 50, "blocks": "cell_line"})),
        metrics_of(get_task("consistency")),
    ).details["perturbations"]
    assert set(table["cell_line"]) == {"A", "B"}
    # The lines lie far apart: against all controls every perturbation would be strong.
    pooled = scores_of(two_lines, "consistency", blocks="none", across_batches=False)
    assert pooled["magnitude"].value is not None


def test_against_the_perturbed_mean_a_shift_per_batch_is_nothing(world: World) -> None:
    samples = world.inputs.samples
    shift = np.random.default_rng(3).normal(size=(len(samples.batches), 8))[samples.batch]
    moved = replace(world.inputs, embedding=world.embeddings["noisy"] + shift)
    plain = replace(world.inputs, embedding=world.embeddings["noisy"].astype(float))
    one, two = (scores_of(x, "relationships")["recall_perturbed_mean"].value for x in (plain, moved))
    assert one == pytest.approx(two)
    switched = scores_of(plain, "relationships", reference_mean="perturbed")
    assert switched["recall"].value == pytest.approx(one)
    assert "recall_perturbed_mean" not in switched


def test_a_perturbation_in_one_batch_has_no_pair_across_batches(world: World) -> None:
    samples = world.inputs.samples
    codes = samples.perturbation[~samples.is_control]
    alone = int(np.bincount(codes).argmax())
    batch = np.where((samples.perturbation == alone) & ~samples.is_control, 0, samples.batch)
    found = scores_of(replace(world.inputs, samples=replace(samples, batch=batch)), "consistency")
    assert found["consistent"].left_out["perturbations in one batch"] == 1
    assert "perturbations in one batch" not in found["magnitude"].left_out
    one = scores_of(replace(world.inputs, samples=replace(samples, batch=np.zeros_like(batch))), "consistency")
    assert one["consistent"].value is None and "two batches" in one["consistent"].reason


def test_no_controls_is_a_reason(world: World) -> None:
    samples = world.inputs.samples
    bare = replace(world.inputs, samples=replace(samples, is_control=np.zeros(samples.n, dtype=bool)))
    assert "control" in scores_of(bare, "reconstruction")["pearson_delta"].reason
    assert "control" in scores_of(bare, "consistency")["magnitude"].reason
    assert scores_of(bare, "knn")["map"].value is not None


def test_the_tails_add_up_to_the_recall(scored: dict[str, dict[str, dict[str, Score]]]) -> None:
    found = scored["good"]["relationships"]
    parts = [found[name].value for name in ("recall_positive", "recall_negative")]
    assert sum(value or 0 for value in parts) == pytest.approx(found["recall"].value)
    integrity = scored["good"]["reconstruction"]
    assert integrity["structural_integrity_rescaled"].value == pytest.approx(
        2 * (integrity["structural_integrity"].value or 0) - 1
    )


def test_every_headline_metric_of_a_protocol_exists() -> None:
    for name in ("paper", "corrected"):
        for task, metrics in load_protocol(name).headline.items():
            known = {metric.name for metric in metrics_of(get_task(task))}
            assert set(metrics) <= known


def test_details_are_tables(world: World) -> None:
    params = task_params(get_task("knn"), {**load_protocol("corrected").tasks["knn"], **CHEAP["knn"]})
    found = run_task(get_task("knn"), replace(world.inputs, params=params), metrics_of(get_task("knn")))
    table = found.details["retrieval"]
    assert isinstance(table, pd.DataFrame) and {"perturbation", "map", "p_adjusted"} <= set(table)


@pytest.mark.parametrize("solver", ["adamw", "convergent", "lda", "softmax-short"])
def test_every_score_of_the_probe_names_its_solver(world: World, solver: str) -> None:
    epochs = {"epochs": 5, "warmup_epochs": 1}
    scores = scores_of(world.inputs, "linear_probe", "paper", solver=solver, **epochs)
    assert len(scores) == 3
    for score in scores.values():
        assert any(f"solver: {solver}," in note for note in score.notes)
