"""Runs on a real Dask cluster on loopback: equal scores, lost workers and schedulers, killed clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster_helpers import Cluster, cluster
from run_helpers import config, run, running, same_scores, stamps

from txeval.errors import InputError
from txeval.run import read_details, read_scores

pytest.importorskip("distributed")

MODELS = ["random@of=stub_plain", "mine=obsm:X_emb", "stub_seeded"]


@pytest.fixture(scope="module")
def serial(screen_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run in this process."""
    out = tmp_path_factory.mktemp("serial") / "out"
    run(screen_file, out, embeddings=MODELS)
    return out


@pytest.fixture(scope="module")
def three(plugin: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler with three worker processes."""
    folder = tmp_path_factory.mktemp("three")
    with cluster(folder, 3, STUB_LOG=str(folder / "stub.log"), STUB_MARK=str(folder / "mark")) as made:
        yield made


def processes(out: Path) -> Counter[int]:
    return Counter(json.loads(path.read_text())["process"] for path in (out / "cells").glob("*.json"))


def test_three_workers_give_the_scores_of_one_process(
    three: Cluster, serial: Path, screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Relative paths start where the client is, not where the workers are.
    monkeypatch.chdir(screen_file.parent)
    out = Path(os.path.relpath(tmp_path / "out"))
    outcome = run(Path(screen_file.name), out, embeddings=MODELS, executor="dask", scheduler=three.address)
    same_scores(outcome.scores, read_scores(serial))
    for table in ("units", "batches"):
        one, other = (read_details(folder, "stub_size", table) for folder in (serial, out))
        assert one.equals(other)
    assert len(processes(out)) == 3
    assert os.getpid() not in processes(out)
    # An embedding is made once, and nothing is left of the run but its results.
    made = Counter((three.folder / "stub.log").read_text().splitlines())
    assert made["stub_plain"] == 1
    assert made["stub_seeded 0"] == made["stub_seeded 1"] == 1
    assert [path.name for path in out.rglob(".*")] == [".lock"]
    again = run(Path(screen_file.name), out, embeddings=MODELS, scheduler=three.address)
    assert (again.n_computed, again.n_reused) == (0, len(stamps(out)))


def test_one_worker_and_two_that_join_late(plugin: None, serial: Path, screen_file: Path, tmp_path: Path) -> None:
    with cluster(tmp_path / "cluster", 1, STUB_SLEEP="0.3") as made:
        alone = run(screen_file, tmp_path / "alone", embeddings=MODELS, tasks=["stub_noise"], scheduler=made.address)
        noise = read_scores(serial).query("task == 'stub_noise'").reset_index(drop=True)
        same_scores(alone.scores, noise)
        assert len(processes(tmp_path / "alone")) == 1
        out = tmp_path / "out"
        with running(config(screen_file, out, embeddings=MODELS, scheduler=made.address), 2) as process:
            for name in ("second", "third"):
                made.start_worker(name, "--no-nanny", wait=False)
            _stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 1, stderr
        same_scores(read_scores(out), read_scores(serial))
        assert len(processes(out)) == 3, stderr


def test_a_worker_that_is_killed_in_the_middle_of_a_cell(
    plugin: None, serial: Path, screen_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    log = tmp_path / "stub.log"
    with cluster(tmp_path / "cluster", 2, STUB_SLEEP="0.5", STUB_LOG=str(log)) as made:
        with running(config(screen_file, out, embeddings=MODELS, scheduler=made.address), 3) as process:
            time.sleep(0.2)
            made.processes["worker0"].send_signal(signal.SIGKILL)
            _stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 1, stderr
        assert "is lost (killed, out of memory, or its time was up); trying again" in stderr
    same_scores(read_scores(out), read_scores(serial))


def test_a_cell_that_kills_its_worker_every_time(plugin: None, screen_file: Path, tmp_path: Path) -> None:
    log = tmp_path / "stub.log"
    environment = {"STUB_TROUBLE": "die", "STUB_MARK": str(tmp_path / "mark"), "STUB_LOG": str(log)}
    with cluster(tmp_path / "cluster", 1, nanny=True, **environment) as made:
        outcome = run(
            screen_file,
            tmp_path / "out",
            tasks=["stub_trouble", "stub_size", "stub_once"],
            embeddings=["stub_plain"],
            baseline=False,
            post_processing=["raw"],
            scheduler=made.address,
        )
    rows = outcome.scores.set_index(["metric", "subset"]).sort_index()
    assert log.read_text().split().count("stub_trouble") == 3
    assert rows.loc[("fine", ""), "reason"].startswith("lost 3 times, the last time: worker tcp://127.0.0.1:")
    # What killed its worker once is computed the second time, and what only waited behind it has lost nothing.
    assert rows.loc[("again", ""), "value"] == 1.0
    assert rows.loc[("size", ""), "status"] == "ok"
    assert (outcome.n_errors, outcome.exit_status) == (1, 1)


def test_the_scheduler_is_killed(plugin: None, serial: Path, screen_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with cluster(tmp_path / "cluster", 1, STUB_SLEEP="0.4") as made:
        with running(config(screen_file, out, embeddings=MODELS, scheduler=made.address), 3) as process:
            made.processes["scheduler"].kill()
            begin = time.monotonic()
            _stdout, stderr = process.communicate(timeout=120)
        assert time.monotonic() - begin < 20
        assert process.returncode == 2
        assert f"the scheduler {made.address} has gone; finished scores are kept" in stderr
        assert "Traceback" not in stderr
        kept = stamps(out)
        assert len(kept) >= 3
        # Another one, elsewhere; meanwhile the first worker may still be at its last cell.
        made.start_scheduler()
        made.start_worker("another", "--no-nanny")
        outcome = run(screen_file, out, embeddings=MODELS, scheduler=made.address)
    assert outcome.n_reused >= len(kept)
    assert {name: stamp for name, stamp in stamps(out).items() if name in kept} == kept
    same_scores(outcome.scores, read_scores(serial))


def test_the_client_is_killed(plugin: None, serial: Path, screen_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with cluster(tmp_path / "cluster", 2, STUB_SLEEP="0.5") as made:
        with running(config(screen_file, out, embeddings=MODELS, scheduler=made.address), 3) as process:
            with pytest.raises(InputError, match=f"in use by process {process.pid} on "):
                run(screen_file, out, embeddings=MODELS, scheduler=made.address)
            process.send_signal(signal.SIGKILL)
            process.wait()
        # At once, while the workers are still at cells of the dead client.
        outcome = run(screen_file, out, embeddings=MODELS, scheduler=made.address)
        assert outcome.n_reused >= 3
        same_scores(outcome.scores, read_scores(serial))
        assert outcome.n_errors == 0
        assert not list(out.rglob("*.tmp"))


def test_ctrl_c(plugin: None, serial: Path, screen_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with cluster(tmp_path / "cluster", 1, STUB_SLEEP="1") as made:
        with running(config(screen_file, out, embeddings=MODELS, scheduler=made.address), 2) as process:
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=120)
            assert time.monotonic() - begin < 15
        assert process.returncode == 130, stderr
        assert "cells are left; the same command goes on from there" in stdout
        assert "Traceback" not in stderr
        kept = len(stamps(out))
        time.sleep(2.5)
        # Nobody goes on with what was asked for: at most the cell that was at work is finished.
        assert len(stamps(out)) <= kept + 1
        assert psutil.Process(made.processes["worker0"].pid).is_running()


def test_no_scheduler(screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txeval.run.cluster.CONNECT_WITHIN", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(InputError, match=f"the scheduler {address} does not answer within 1 seconds") as why:
            run(screen_file, tmp_path / "out", scheduler=address)
    assert "dask scheduler" in why.value.remedy
    with pytest.raises(InputError, match=r"scheduler file .*here\.json cannot be read within 1 seconds"):
        run(screen_file, tmp_path / "out", scheduler=str(tmp_path / "here.json"))
