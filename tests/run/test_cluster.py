"""Runs on a real Dask cluster on loopback: equal scores, lost workers and schedulers, killed clients.

Processes that import the numerical libraries are what takes the time: one cluster serves all but one test, and its
scheduler is killed in the last one.
"""

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
def made(plugin: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler with one worker process, to which the tests add others."""
    folder = tmp_path_factory.mktemp("cluster")
    with cluster(folder, 1, STUB_LOG=str(folder / "stub.log")) as made:
        yield made


def processes(out: Path) -> Counter[int]:
    return Counter(json.loads(path.read_text())["process"] for path in (out / "cells").glob("*.json"))


def test_one_worker(made: Cluster, serial: Path, screen_file: Path, tmp_path: Path) -> None:
    outcome = run(screen_file, tmp_path / "out", embeddings=MODELS, scheduler=made.address)
    same_scores(outcome.scores, read_scores(serial))
    assert len(processes(tmp_path / "out")) == 1
    assert os.getpid() not in processes(tmp_path / "out")


def test_workers_that_join_late(made: Cluster, serial: Path, screen_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    what = config(screen_file, out, embeddings=MODELS, scheduler=made.address)
    with running(what, 2, TXEVAL_STUB_SLEEP="0.5") as process:
        for name in ("worker1", "worker2"):
            made.start_worker(name, "--no-nanny", wait=False)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    same_scores(read_scores(out), read_scores(serial))
    assert len(processes(out)) > 1, stderr


def test_three_workers(
    made: Cluster, serial: Path, screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Relative paths start where the client is, not where the workers are.
    monkeypatch.chdir(screen_file.parent)
    monkeypatch.setenv("TXEVAL_STUB_SLEEP", "0.05")
    for name in {"worker1", "worker2"} - set(made.processes):
        made.start_worker(name, "--no-nanny")
    (made.folder / "stub.log").write_text("")
    out = Path(os.path.relpath(tmp_path / "out"))
    outcome = run(Path(screen_file.name), out, embeddings=MODELS, executor="dask", scheduler=made.address)
    assert outcome.n_errors == 0, outcome.warnings
    same_scores(outcome.scores, read_scores(serial))
    for table in ("units", "batches"):
        one, other = (read_details(folder, "stub_size", table) for folder in (serial, out))
        assert one.equals(other)
    assert len(processes(out)) == 3
    # An embedding is made once, and nothing is left of the run but its results.
    begun = Counter((made.folder / "stub.log").read_text().splitlines())
    assert begun["stub_plain"] == begun["stub_seeded 0"] == begun["stub_seeded 1"] == 1
    assert [path.name for path in out.rglob(".*")] == [".lock"]
    again = run(Path(screen_file.name), out, embeddings=MODELS, scheduler=str(made.folder / "scheduler.json"))
    assert (again.n_computed, again.n_reused) == (0, len(stamps(out)))


def test_ctrl_c(made: Cluster, screen_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    what = config(screen_file, out, embeddings=MODELS, scheduler=made.address)
    with running(what, 3, TXEVAL_STUB_SLEEP="1.5") as process:
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
        assert time.monotonic() - begin < 15
    assert process.returncode == 130, stderr
    assert "cells are left; the same command goes on from there" in stdout
    assert "Traceback" not in stderr
    kept = len(stamps(out))
    time.sleep(4)
    # Nobody goes on with what was asked for: at most the cells that were at work are finished.
    assert len(stamps(out)) <= kept + 3


def test_the_client_is_killed(made: Cluster, serial: Path, screen_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    what = config(screen_file, out, embeddings=MODELS, scheduler=made.address)
    with running(what, 3, TXEVAL_STUB_SLEEP="1.5") as process:
        with pytest.raises(InputError, match=f"in use by process {process.pid} on "):
            run(screen_file, out, embeddings=MODELS, scheduler=made.address)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # At once, while the workers are still at cells of the dead client.
    outcome = run(screen_file, out, embeddings=MODELS, scheduler=made.address)
    assert outcome.n_reused >= 3
    assert outcome.n_errors == 0
    same_scores(outcome.scores, read_scores(serial))
    assert [path.name for path in out.rglob(".*")] == [".lock"]


def test_a_worker_is_killed_in_the_middle_of_a_cell(
    made: Cluster, serial: Path, screen_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    what = config(screen_file, out, embeddings=MODELS, scheduler=made.address)
    with running(what, 3, TXEVAL_STUB_SLEEP="1") as process:
        time.sleep(0.3)
        made.processes["worker2"].send_signal(signal.SIGKILL)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    assert "is lost (killed, out of memory, or its time was up); trying again" in stderr
    same_scores(read_scores(out), read_scores(serial))


def test_a_worker_with_several_threads(made: Cluster, screen_file: Path, tmp_path: Path) -> None:
    """An error where it is there from the start: it would not be the only one of its kind."""
    made.start_worker("wide", "--no-nanny", threads=2)
    try:
        with pytest.raises(InputError, match=r"worker tcp://127\.0\.0\.1:\d+ on .* has 2 threads") as why:
            run(screen_file, tmp_path / "out", embeddings=MODELS, scheduler=made.address)
        assert "--nthreads 1" in why.value.remedy
    finally:
        made.end("wide")


def test_a_gpu_is_asked_for_and_nobody_has_one(made: Cluster, screen_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot compute on cuda|GPU=1"):
        run(screen_file, tmp_path / "out", embeddings=MODELS, scheduler=made.address, device="cuda")


def test_less_memory_than_a_cell_needs(made: Cluster, screen_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs .* of memory in a worker, and a worker has 100 MiB"):
        run(screen_file, tmp_path / "out", embeddings=MODELS, scheduler=made.address, max_memory="100M")


def test_another_version_of_txeval(made: Cluster, screen_file: Path, tmp_path: Path) -> None:
    info = tmp_path / "old" / "txeval-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: txeval\nVersion: 0.0.1\n")
    path = os.pathsep.join([str(info.parent), os.environ.get("PYTHONPATH", "")])
    address = made.start_worker("old", "--no-nanny", PYTHONPATH=path)
    try:
        with pytest.raises(InputError, match=rf"worker {address} .* has txeval 0\.0\.1, this process "):
            run(screen_file, tmp_path / "out", embeddings=MODELS, scheduler=made.address)
    finally:
        made.end("old")


def test_a_folder_that_a_worker_does_not_see(made: Cluster, screen_file: Path, tmp_path: Path) -> None:
    hidden = made.hide(tmp_path)
    if hidden is None:
        pytest.skip("needs the right to make a mount namespace")
    address = made.start_worker("blind", "--no-nanny", before=hidden)
    try:
        with pytest.raises(InputError, match=rf"worker {address} on .* does not see the results folder {tmp_path}/out"):
            run(screen_file, tmp_path / "out", embeddings=MODELS, scheduler=made.address)
    finally:
        made.end("blind")


def test_the_scheduler_is_killed(made: Cluster, serial: Path, screen_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    what = config(screen_file, out, embeddings=MODELS, scheduler=made.address)
    with running(what, 3, TXEVAL_STUB_SLEEP="0.5") as process:
        made.processes["scheduler"].kill()
        begin = time.monotonic()
        _, stderr = process.communicate(timeout=120)
    assert time.monotonic() - begin < 20
    assert process.returncode == 2
    assert f"the scheduler {made.address} has gone; finished scores are kept" in stderr
    assert "Traceback" not in stderr
    kept = stamps(out)
    assert len(kept) >= 3
    # The same command, here on this machine.
    outcome = run(screen_file, out, embeddings=MODELS)
    assert outcome.n_reused >= len(kept)
    assert {name: stamp for name, stamp in stamps(out).items() if name in kept} == kept
    same_scores(outcome.scores, read_scores(serial))


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
        assert psutil.Process(made.processes["worker0"].pid).is_running()
    rows = outcome.scores.set_index(["metric", "subset"]).sort_index()
    assert log.read_text().split().count("stub_trouble") == 3
    assert rows.loc[("fine", ""), "reason"].startswith("lost 3 times, the last time: worker tcp://127.0.0.1:")
    # What killed its worker once is computed the second time, and what only waited behind it has lost nothing.
    assert rows.loc[("again", ""), "value"] == 1.0
    assert rows.loc[("size", ""), "status"] == "ok"
    assert (outcome.n_errors, outcome.exit_status) == (1, 1)


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
