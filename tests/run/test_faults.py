"""Disks, clocks, formats and data that change under a run: nothing is lost or wrong, and the message says what."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pytest
from run_helpers import config, run, running, same_scores, stamps, write_screen

from txeval.errors import InputError
from txeval.run import execute, make_plan, read_scores

CELLS = 14


@pytest.fixture(scope="module")
def undisturbed(screen_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(screen_file, out)
    return out


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A results folder whose cells are on a file system of their own, of 1 MB."""
    place = tmp_path / "out" / "cells"
    place.mkdir(parents=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_system_that_turns_read_only(screen_file: Path, undisturbed: Path, disk: Path, workers: int) -> None:
    """As Linux does it when a disk has errors."""
    out = disk.parent
    with running(config(screen_file, out, workers=workers), 3, STUB_SLEEP="0.4") as process:
        # Files that are open for writing forbid it for a moment.
        deadline = time.monotonic() + 20
        while subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "cannot be written: Read-only file system" in stderr
    assert "Traceback" not in stderr
    kept = stamps(out)
    assert len(kept) >= 3
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    outcome = run(screen_file, out)
    assert {name: stamp for name, stamp in stamps(out).items() if name in kept} == kept
    assert outcome.n_reused == len(kept)
    same_scores(outcome.scores, read_scores(undisturbed))


def test_a_small_disk_that_is_full(screen_file: Path, undisturbed: Path, disk: Path) -> None:
    out = disk.parent
    run(screen_file, out, tasks=["stub_noise"])
    kept = stamps(out)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as handle, pytest.raises(OSError, match="No space left"):
        while True:
            handle.write(bytes(4096))
    with pytest.raises(InputError, match=r"cells/.* the disk is full or a limit is reached") as why:
        run(screen_file, out)
    assert "finished scores are kept" in why.value.remedy
    assert {name: stamp for name, stamp in stamps(out).items() if name in kept} == kept
    filler.unlink()
    same_scores(run(screen_file, out).scores, read_scores(undisturbed))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_the_disk(
    screen_file: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whatever the system says of one write: what was whole before is whole, and nothing half counts."""
    out = tmp_path / "out"
    real = getattr(os, call)

    def failing(*arguments: object, **options: object) -> object:
        if len(stamps(out)) >= 4 and (call == "fsync" or "cells" in str(arguments[0])):
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(InputError, match="cannot be written: Input/output error") as why:
            run(screen_file, out)
    assert "finished scores are kept" in why.value.remedy
    kept = stamps(out)
    assert len(kept) == 4
    assert not list(out.rglob("*.tmp"))
    outcome = run(screen_file, out)
    assert outcome.n_reused == 4
    assert {name: stamp for name, stamp in stamps(out).items() if name in kept} == kept
    same_scores(outcome.scores, read_scores(undisturbed))


def test_a_clock_that_jumps(
    screen_file: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards and backwards by days between any two looks at it, and files of the year 2100 or of 1971."""
    out = tmp_path / "out"
    real, jumps = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: real() + jumps.uniform(-10, 10) * 86400)
    first = run(screen_file, out)
    same_scores(first.scores, read_scores(undisturbed))
    assert (first.scores["seconds"].dropna() >= 0).all()
    assert first.seconds >= 0
    for path in out.rglob("*"):
        # Of an embedding that stays outside, the time is part of what tells that it has changed: none is here.
        os.utime(path, (4.1e9, 4.1e9) if jumps.random() < 0.5 else (4e7, 4e7))
    second = run(screen_file, out)
    assert (second.n_computed, second.n_reused) == (0, CELLS)
    same_scores(second.scores, first.scores)
    third = run(screen_file, out, embeddings=["mine=obsm:X_emb", "stub_seeded"], baseline=False)
    assert set(third.scores["model"]) == {"random", "mine", "stub_seeded"}


def test_a_folder_of_another_format(
    screen_file: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "out"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr("txeval.run.store.FORMAT", 3)
    with pytest.raises(InputError, match=r"was written by txeval .* in format 2; txeval .* writes format 3") as why:
        run(screen_file, out)
    assert "another folder" in why.value.remedy
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_screen_that_changes_between_two_runs(tmp_path: Path) -> None:
    """In place, in one value: it is another screen, and its scores do not stand beside the old ones."""
    path = write_screen(tmp_path / "screen.h5ad")
    out = tmp_path / "out"
    run(path, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file() and file.name != ".lock"}
    screen = anndata.read_h5ad(path)
    screen.X.data[7] += 1
    screen.write_h5ad(path)
    with pytest.raises(InputError, match="holds scores of another screen: the values in the file have changed") as why:
        run(path, out)
    assert "another folder" in why.value.remedy
    assert {file: file.read_bytes() for file in before} == before


def test_an_embedding_that_changes_between_two_runs(tmp_path: Path) -> None:
    """Its scores are computed anew, all of them, and those of the others stay."""
    path = write_screen(tmp_path / "screen.h5ad")
    out = tmp_path / "out"
    first = run(path, out)
    screen = anndata.read_h5ad(path)
    screen.obsm["X_emb"] = np.asarray(screen.obsm["X_emb"]) * np.float32(2)
    screen.write_h5ad(path)
    second = run(path, out)
    mine = second.scores["model"] == "mine"
    assert (
        second.n_computed == (first.scores.loc[first.scores["model"] == "mine", "cell_key"]).replace("", None).nunique()
    )
    keys = ["model", "post_processing", "metric", "subset", "seed"]
    sizes = [
        one.scores.query("model == 'mine' and metric == 'size'").set_index(keys)["value"] for one in (first, second)
    ]
    np.testing.assert_allclose(sizes[1], 2 * sizes[0], rtol=1e-6)
    assert any("mine is another embedding than before" in text for text in second.warnings)
    unchanged = first.scores["model"] != "mine"
    same_scores(
        second.scores[~mine & ~second.scores["derived"]].reset_index(drop=True),
        first.scores[unchanged & ~first.scores["derived"]].reset_index(drop=True),
    )


def test_relations_that_a_worker_sees_otherwise(tmp_path: Path) -> None:
    """On another machine, or changed since the plan: a row with its reason, and no score of other relations."""
    path = write_screen(tmp_path / "screen.h5ad")
    folder = tmp_path / "relations"
    folder.mkdir()
    (folder / "known.txt").write_text("entity1,entity2\nG1,G2\nG2,G3\n")
    out = tmp_path / "out"
    plan = make_plan(config(path, out, tasks=["relationships"], relations=folder, post_processing=["raw"]))
    (folder / "known.txt").write_text("entity1,entity2\nG1,G3\n")
    outcome = execute(plan)
    rows = outcome.scores[~outcome.scores["derived"]]
    assert rows["reason"].str.contains("are not those that the run was planned with").all()
    assert outcome.n_errors == len(stamps(out))
    assert outcome.exit_status == 1
