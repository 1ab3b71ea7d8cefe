"""Memory, workers and device of a run: what is bounded, what is refused, and that no score depends on any of them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_helpers import N, config, run, same_scores

from txeval.compute import memory
from txeval.compute.machine import Memory
from txeval.data import LogNormExpression, simulate_screen
from txeval.errors import InputError
from txeval.run import NullProgress, Outcome, build_config, execute, make_plan, resources, worker
from txeval.run.plan import Cell, CellGroup
from txeval.run.pool import Pool
from txeval.run.resources import PROCESS_BYTES, Resources, check_memory, find_resources, group_cells
from txeval.run.store import Store
from txeval.run.worker import Kept, Report, Worker
from txeval.tasks import get_task
from txeval.tasks.measured import keep_in

GIB = 2**30

LEVELS = ["batch_mixing", "linear_probe", "consistency", "knn", "relationships", "reconstruction"]

PROTOCOL = """
extends: paper
name: quick
tasks:
  linear_probe: {epochs: 6, warmup_epochs: 2, batch_size: 128}
  consistency: {draws: 50, null: permutation}
  knn: {k: 21, retrieval: true, retrieval_draws: 99}
  relationships: {draws: 50, min_genes: 10, min_relations: 1}
  reconstruction: {decoder: DECODER, epochs: 2, warmup_epochs: 1}
"""


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated screen with relationships, and a protocol."""
    folder = tmp_path_factory.mktemp("resources")
    truth = simulate_screen(
        folder / "screen.h5ad", n_samples=900, n_genes=90, n_perturbations=30, n_batches=5, effect=1.5, seed=3
    )
    (folder / "relations").mkdir()
    lines = [f"{a}\t{b}" for a, b in truth.relations.iloc[:, :2].itertuples(index=False)]
    (folder / "relations" / "modules.txt").write_text("\n".join(["entity1\tentity2", *lines]) + "\n")
    for decoder in ("ridge", "least_squares", "mlp"):
        (folder / f"{decoder}.yaml").write_text(PROTOCOL.replace("DECODER", decoder))
    return folder


def scored(screen: Path, out: Path, **changes: Any) -> Outcome:
    values: dict[str, Any] = {
        "screen": screen / "screen.h5ad",
        "roles": {
            "perturbation": "perturbation",
            "control_column": "control",
            "batch": "batch",
            "target_gene": "gene",
        },
        "embeddings": ["good=obsm:X_truth", "noisy=obsm:X_noisy"],
        "protocol": screen / "ridge.yaml",
        "relations": screen / "relations",
        "tasks": LEVELS,
        "seeds": 1,
        "min_counts": 0,
        "baselines": ["ceiling@of=obsm:X_truth"],
        "device": "cpu",
        "out": out,
    }
    made = execute(make_plan(build_config({**values, **changes})), progress=NullProgress())
    assert made.n_errors == 0
    return made


@pytest.fixture(scope="module")
def expected(screen: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Scores of every level and post-processing with plenty of memory."""
    scores = scored(screen, tmp_path_factory.mktemp("plenty"), max_memory="16GiB").scores
    assert set(scores.loc[scores["status"] == "ok", "level"]) == {1, 2, 3, 4, 5, 6}
    assert set(scores["post_processing"]) == {"raw", "centering", "center_scaling", "tvn"}
    assert (scores["device"] == "cpu").all()
    return scores


@pytest.mark.parametrize(
    ("limit", "least"),
    [("2GiB", None), (PROCESS_BYTES + 40 * 2**20, 400_000), (PROCESS_BYTES + 40 * 2**20, 4_000)],
    ids=["2GiB", "blocks of 12,500 values", "blocks of 125 values"],
)
def test_scores_are_equal_for_any_memory(
    screen: Path,
    expected: pd.DataFrame,
    tmp_path: Path,
    limit: Any,
    least: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if least is not None:
        # What is left beside the process is next to nothing, so that the least that a step gets decides.
        monkeypatch.setattr(memory, "WORKING_LEAST", least)
        monkeypatch.setattr(resources, "WORKING_LEAST", 0)
        monkeypatch.setattr(memory, "WORKING_MOST", least)
    same_scores(scored(screen, tmp_path, max_memory=limit).scores, expected)
    assert not (tmp_path / "scratch").exists()


def test_scores_are_equal_alone_and_together_and_for_two_workers(
    screen: Path, expected: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_scores(scored(screen, tmp_path / "two", workers=2, max_memory="4GiB").scores, expected)
    together: list[int] = []
    original = Worker.compute_together

    def counted(self: Worker, group: CellGroup) -> Report:
        together.append(len(group.cells))
        return original(self, group)

    monkeypatch.setattr(Worker, "compute_together", counted)
    level = expected[expected["task"] == "reconstruction"].reset_index(drop=True)
    same_scores(scored(screen, tmp_path / "all", tasks=["reconstruction"]).scores, level)
    assert sorted(together) == [4, 8]
    monkeypatch.setattr(resources, "MOST_TOGETHER", 1)
    same_scores(scored(screen, tmp_path / "alone", tasks=["reconstruction"]).scores, level)
    assert sorted(together) == [4, 8]


@pytest.mark.parametrize("decoder", ["least_squares", "mlp"])
def test_other_decoders_do_not_depend_on_memory(
    screen: Path, tmp_path: Path, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "tasks": ["reconstruction"],
        "protocol": screen / f"{decoder}.yaml",
        "embeddings": ["obsm:X_truth"],
        "baselines": ["ceiling@of=obsm:X_truth"],
    }
    plenty = scored(screen, tmp_path / "plenty", **changes).scores
    monkeypatch.setattr(memory, "WORKING_LEAST", 4000)
    monkeypatch.setattr(memory, "WORKING_MOST", 4000)
    same_scores(scored(screen, tmp_path / "little", **changes).scores, plenty)


def test_what_one_of_several_lacks_does_not_take_the_others_along(
    screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: pd.DataFrame
) -> None:
    task = get_task("reconstruction")

    def fails(several: Any) -> Any:
        raise MemoryError("too much at once")

    broken = dataclasses.replace(task, together=fails)
    monkeypatch.setattr(worker, "get_task", lambda name: broken if name == "reconstruction" else get_task(name))
    found = scored(screen, tmp_path, tasks=["reconstruction"]).scores
    same_scores(found, expected[expected["task"] == "reconstruction"].reset_index(drop=True))


def test_seconds_of_a_group_are_shared_out(screen: Path, tmp_path: Path) -> None:
    outcome = scored(screen, tmp_path, tasks=["reconstruction"], embeddings=["obsm:X_truth"], baseline=False)
    times = outcome.scores.groupby("post_processing")["seconds"].first()
    assert (times > 0).all()
    assert times.sum() <= outcome.seconds
    assert times.max() < 0.6 * times.sum()


def test_a_limit_that_is_too_small_says_what_is_needed(screen_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"needs .* of memory in a worker, and a worker has 500 MiB: .*max_memory"
    ) as why:
        run(screen_file, tmp_path / "out", max_memory="500M", tasks=["knn"])
    needed = str(why.value.remedy).split()[2]
    assert run(screen_file, tmp_path / "out", max_memory=needed, tasks=["knn"]).n_computed > 0


def test_needs_grow_with_the_screen_and_bound_the_sum_over_workers(screen_file: Path, tmp_path: Path) -> None:
    plan = make_plan(config(screen_file, tmp_path, tasks=["batch_mixing"], workers=2))
    cell = plan.cells[0]
    need = resources.fixed_bytes(plan, cell, 64)
    assert need > resources.fixed_bytes(plan, cell, 2)
    enough = 2 * (PROCESS_BYTES + memory.WORKING_LEAST + need) + PROCESS_BYTES
    widths = {cell.embedding.key: 64}
    check_memory(plan, [cell], widths, Resources(Memory(enough, "test"), 2, "cpu"))
    with pytest.raises(InputError, match=r"batch_mixing of .* \(64 columns\) needs"):
        check_memory(plan, [cell], widths, Resources(Memory(enough - 2, "test"), 2, "cpu"))
    alone = Resources(Memory(enough, "test"), 1, "cpu")
    assert alone.worker_memory() == enough
    assert alone.worker_memory(2) == (enough - PROCESS_BYTES) // 2


def test_groups_are_as_large_as_memory_and_workers_let(
    screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "screen": screen / "screen.h5ad",
        "roles": {"perturbation": "perturbation", "control_column": "control", "batch": "batch"},
        "embeddings": ["obsm:X_truth", "obsm:X_noisy"],
        "protocol": screen / "ridge.yaml",
        "tasks": ["knn", "reconstruction"],
        "baseline": False,
        "min_counts": 0,
        "relations": screen / "relations",
    }
    plan = make_plan(build_config(values))
    monkeypatch.setattr(resources, "fixed_bytes", lambda plan, cell, d: GIB)

    def sizes(gib: float, workers: int) -> list[int]:
        found = Resources(Memory(int(gib * GIB) + PROCESS_BYTES * (workers + (workers > 1)), "test"), workers, "cpu")
        jobs = group_cells(plan, plan.cells, {}, found.worker_memory(workers), workers)
        cells = [cell for job in jobs for cell in ([job] if isinstance(job, Cell) else job.cells)]
        assert sorted(cell.key for cell in cells) == sorted(cell.key for cell in plan.cells)
        return [len(job.cells) if isinstance(job, CellGroup) else 1 for job in jobs if job.task == "reconstruction"]

    assert sizes(100, 1) == [8]
    assert sizes(100, 2) == [4, 4]
    assert sizes(4, 1) == [3, 3, 2]
    assert sizes(1, 1) == [1] * 8


def test_a_group_whose_worker_dies_is_tried_cell_by_cell(
    screen: Path, expected: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = Pool._give

    def deadly(self: Pool, number: int, child: Any, job: Any) -> None:
        give(self, number, child, job)
        if isinstance(job, CellGroup):
            child.process.kill()

    monkeypatch.setattr(Pool, "_give", deadly)
    one = {"embeddings": ["good=obsm:X_truth"], "baseline": False}
    found = scored(screen, tmp_path, tasks=["reconstruction"], workers=2, **one)
    assert sum("trying each alone" in text for text in found.warnings) == 2
    level = expected[(expected["task"] == "reconstruction") & (expected["model"] == "good")]
    same_scores(found.scores, level.reset_index(drop=True))


def test_workers_and_memory_by_default(screen_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "memory_limit", lambda: Memory(20 * GIB, "the machine"))
    monkeypatch.setattr(resources, "usable_cores", lambda: 64)
    plain = find_resources(config(screen_file))
    assert (plain.workers, plain.memory.bytes) == (1, 18 * GIB)
    assert find_resources(config(screen_file, workers=3)).workers == 3
    many = find_resources(config(screen_file, workers="auto"))
    assert many.workers == (18 * GIB - PROCESS_BYTES) // (PROCESS_BYTES + memory.WORKING_LEAST) < 64
    assert find_resources(config(screen_file, workers="auto", max_memory="1GiB")).workers == 1
    monkeypatch.setattr(resources, "usable_cores", lambda: 5)
    assert find_resources(config(screen_file, workers="auto")).workers == 5
    over = find_resources(config(screen_file, max_memory="21GiB"))
    assert over.memory.bytes == 21 * GIB
    assert "the machine has 20 GiB" in over.warnings[0]


def test_a_device_that_is_not_there_is_refused_before_anything_is_computed(screen_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the device cuda:99 is asked for") as why:
        run(screen_file, tmp_path / "out", device="cuda:99")
    assert "--device cpu" in str(why.value.remedy) or "cuda:0" in str(why.value.remedy)
    assert not list((tmp_path / "out").glob("cells/*"))
    with pytest.raises(InputError, match="device is 'gpu'"):
        config(screen_file, device="gpu")


@pytest.mark.parametrize(
    ("name", "value"), [("max_memory", "much"), ("max_memory", 1.5), ("workers", "all"), ("workers", 0)]
)
def test_settings_that_are_none(screen_file: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        config(screen_file, **{name: value})


def test_settings_are_written_so_that_they_can_be_read_again(screen_file: Path) -> None:
    made = config(screen_file, max_memory="3GiB", workers="auto", device="cpu").to_dict()
    assert (made["max_memory"], made["workers"], made["device"]) == (3 * GIB, "auto", "cpu")
    again = config(screen_file, **{key: made[key] for key in ("max_memory", "workers", "device")})
    assert (again.max_memory, again.workers, again.device) == (3 * GIB, "auto", "cpu")


def test_the_bound_is_kept(tmp_path: Path, screen_file: Path) -> None:
    X = np.zeros((N, 4), dtype=np.float32)
    with memory.bounded(memory.WORKING_LEAST, tmp_path):
        assert memory.held_bytes() == memory.WORKING_LEAST // 4
        assert not isinstance(memory.held_rows(X), np.memmap)


def test_what_is_kept_is_made_once_whole_and_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    assert keep_in(tmp_path, "small-a", lambda folder: None) == tmp_path / "small-a"
    monkeypatch.setattr("txeval.tasks.measured.SMALL_BYTES", 0)

    def filling(name: str) -> Any:
        def fill(folder: Path) -> None:
            made.append(name)
            (folder / "content").write_text(name)

        return fill

    for turn, name in enumerate(["a", "b", "a", "c", "d"]):
        folder = keep_in(tmp_path, f"thing-{name}", filling(name))
        assert (folder / "content").read_text() == name
        os.utime(folder, (turn, turn))
    assert made == ["a", "b", "c", "d"]
    # Used last at 2, 1, 3 and 4: the one of 1 has gone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small-a", "thing-a", "thing-c", "thing-d"]

    def breaks(folder: Path) -> None:
        (folder / "content").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        keep_in(tmp_path, "thing-e", breaks)
    assert not [path for path in tmp_path.iterdir() if "thing-e" in path.name]


def test_two_workers_read_the_expression_of_the_targets_once(
    screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []
    original = LogNormExpression.gene_means

    def counted(self: LogNormExpression, rows: Any, *, scale: str) -> Any:
        passes.append(scale)
        return original(self, rows, scale=scale)

    monkeypatch.setattr(LogNormExpression, "gene_means", counted)
    monkeypatch.setattr(Store, "clear_scratch", lambda self: None)
    (screen / "auto.yaml").write_text("extends: paper\nname: auto\ntasks:\n  consistency: {draws: 50}\n")
    common = {"tasks": ["consistency"], "protocol": screen / "auto.yaml", "embeddings": ["obsm:X_truth"]}
    one = scored(screen, tmp_path, **common, baseline=False).scores
    # Another worker of the same run finds what the first one made.
    other = scored(screen, tmp_path, **common, baseline=False, overwrite="always").scores
    assert passes == ["counts"]
    same_scores(other, one)


def test_a_full_disk_under_temporary_files_stops_the_run(
    screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("txeval.compute.correlation.allocate", full)
    with pytest.raises(InputError, match="the disk is full") as why:
        scored(screen, tmp_path, tasks=["reconstruction"])
    assert "free some space" in str(why.value.remedy)


def test_opened_things_are_let_go_by_their_size() -> None:
    kept = Kept(4, 10, len)
    for name, size in (("a", 4), ("b", 5), ("c", 3)):
        kept.get(name, lambda size=size: "x" * size)
    assert list(kept._things) == ["b", "c"]
    assert kept.get("d", lambda: "x" * 50) == "x" * 50
    assert list(kept._things) == ["d"]
