"""Files that describe a cluster, the job scripts that they make, and runs on the workers that they start."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import config, run, same_scores

from txeval.errors import InputError
from txeval.run import build_config, load_config
from txeval.run.cluster import ClusterFile, read_cluster

pytest.importorskip("dask_jobqueue")

SLURM: dict[str, Any] = {
    "type": "slurm",
    "minimum": 1,
    "maximum": 32,
    "options": {
        "queue": "cpu",
        "account": "mylab",
        "cores": 8,
        "memory": "64GB",
        "walltime": "24:00:00",
        "job_script_prologue": ["source /shared/venv/bin/activate"],
        "job_extra_directives": ["--constraint=avx2"],
        "scheduler_options": {"host": "127.0.0.1"},
    },
}


def written(folder: Path, content: Any) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def options(command: str) -> set[str]:
    words = command.split()
    return {f"{one} {other}" for one, other in pairwise(words) if one.startswith("--")}


def script(found: ClusterFile) -> str:
    cluster = found.make()
    try:
        return str(cluster.job_script())
    finally:
        cluster.close()


def test_slurm(tmp_path: Path) -> None:
    found = read_cluster(written(tmp_path, SLURM))
    assert (found.type, found.minimum, found.maximum) == ("slurm", 1, 32)
    lines = script(found).splitlines()
    for line in (
        "#SBATCH -p cpu",
        "#SBATCH -A mylab",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=60G",
        "#SBATCH -t 24:00:00",
        "#SBATCH --constraint=avx2",
        "source /shared/venv/bin/activate",
    ):
        assert line in lines
    # A process for each core, since a cell needs one of its own.
    assert {"--nthreads 1", "--nworkers 8"} <= options(lines[-1])
    # With a certificate of the run, unless it is declined.
    assert "distributed.cli.dask_worker tls://127.0.0.1:" in lines[-1]
    assert "--tls-key" in lines[-1]
    asked = {**SLURM, "options": {**SLURM["options"], "security": False}}
    assert "distributed.cli.dask_worker tcp://127.0.0.1:" in script(read_cluster(written(tmp_path, asked)))


@pytest.mark.parametrize(
    ("kind", "line"), [("pbs", "#PBS -l select=1:ncpus=2:mem=3815MB"), ("lsf", "#BSUB -n 2"), ("sge", "#$ -j y")]
)
def test_other_batch_systems(tmp_path: Path, kind: str, line: str) -> None:
    asked = {"cores": 2, "memory": "4GB", "scheduler_options": {"host": "127.0.0.1"}}
    text = script(read_cluster(written(tmp_path, {"type": kind, "workers": 3, "options": asked})))
    assert line in text.splitlines()
    assert {"--nthreads 1", "--nworkers 2"} <= options(text)


BAD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no file": (None, ("there is no file",)),
    "not YAML": ("a: [", ("is not YAML",)),
    "no settings": ("- a", ("holds no settings",)),
    "no type": ({"workers": 2}, ("type is missing", "slurm")),
    "type": ({"type": "slrum", "workers": 2}, ("'slrum'", "'slurm'")),
    "setting": ({"type": "slurm", "worker": 2}, ("'worker'", "'workers'")),
    "no number": ({"type": "slurm"}, ("does not say how many workers",)),
    "number": ({"type": "slurm", "workers": "many"}, ("workers is 'many'", "whole number")),
    "none": ({"type": "slurm", "workers": 0}, ("workers is 0",)),
    "both": ({"type": "slurm", "workers": 2, "maximum": 3}, ("contradicts",)),
    "order": ({"type": "slurm", "minimum": 5, "maximum": 3}, ("minimum 5 is above maximum 3",)),
    "wait": ({"type": "slurm", "workers": 1, "start_timeout": -1}, ("start_timeout is -1",)),
    "options": ({"type": "slurm", "workers": 1, "options": [1]}, ("options is [1]",)),
    "cores": ({"type": "slurm", "workers": 1, "options": {"cores": 0}}, ("cores is 0",)),
    "threads": (
        {"type": "slurm", "workers": 1, "options": {"cores": 8, "processes": 2}},
        ("8 cores in 2 processes", "processes: 8"),
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, fragments = BAD[name]
    path = tmp_path / "cluster.yaml"
    if content is not None:
        written(tmp_path, content)
    with pytest.raises(InputError) as why:
        read_cluster(path)
    for fragment in fragments:
        assert fragment in str(why.value)


def test_options_that_dask_jobqueue_refuses(tmp_path: Path) -> None:
    found = read_cluster(written(tmp_path, {"type": "slurm", "workers": 1, "options": {"memory": "1GB", "que": "x"}}))
    with pytest.raises(InputError, match="refuses the options of slurm"):
        found.make()


def test_a_batch_system_that_is_not_here(screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(InputError, match="there is no command sbatch on this machine") as why:
        run(screen_file, tmp_path / "out", cluster=written(tmp_path, SLURM))
    assert "--scheduler" in why.value.remedy


def test_what_a_configuration_may_say(screen_file: Path, tmp_path: Path) -> None:
    def values(**changes: Any) -> dict[str, Any]:
        return {**config(screen_file, tmp_path / "out").to_dict(), "tasks": ["knn"], "embeddings": ["pca"], **changes}

    plain = build_config(values(executor="local"))
    assert plain.place is None
    found = build_config({**values(), "executor": "dask", "scheduler": "tcp://here:8786"})
    assert found.place is not None
    assert found.place.text == "the scheduler tcp://here:8786"
    for changes, fragment in (
        ({"executor": "spark"}, "no executor called 'spark'"),
        ({"executor": "dask"}, "neither a scheduler nor a cluster file"),
        ({"executor": "local", "scheduler": "tcp://here:8786"}, "scheduler is given, and executor is 'local'"),
        ({"executor": "dask", "scheduler": "here"}, "'here' is no address"),
        ({"executor": "dask", "scheduler": "tcp://here:1", "workers": 3}, "the cluster has its own number"),
        ({"executor": "dask", "scheduler": "tcp://here:1", "cluster": written(tmp_path, SLURM)}, "both are given"),
        ({"executor": "dask", "cluster": tmp_path / "no.yaml"}, "there is no file"),
    ):
        with pytest.raises(InputError, match=fragment):
            build_config(values(**changes))


def test_flags_go_before_what_the_file_says(screen_file: Path, tmp_path: Path) -> None:
    written(tmp_path, SLURM)
    path = tmp_path / "run.yaml"
    content = {**config(screen_file, tmp_path / "out").to_dict(), "tasks": ["knn"], "embeddings": ["pca"]}
    del content["executor"]
    path.write_text(yaml.safe_dump({**content, "cluster": "cluster.yaml"}))
    found = load_config(path)
    assert (found.executor, found.cluster) == ("dask", tmp_path / "cluster.yaml")
    assert load_config(path, {"executor": "local"}).place is None
    other = load_config(path, {"scheduler": "tcp://here:8786"})
    assert (other.executor, other.cluster, other.scheduler) == ("dask", None, "tcp://here:8786")


def test_where_the_cells_are_computed_changes_no_key(screen_file: Path, tmp_path: Path) -> None:
    from txeval.run import make_plan

    here = make_plan(config(screen_file, tmp_path / "out"))
    there = make_plan(config(screen_file, tmp_path / "out", scheduler="tcp://here:8786"))
    assert [cell.key for cell in here.cells] == [cell.key for cell in there.cells]
    assert here.id == there.id


def test_without_dask(screen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "distributed" else real(name))
    with pytest.raises(InputError, match="needs the package distributed") as why:
        config(screen_file, tmp_path / "out", scheduler="tcp://here:8786")
    assert why.value.remedy == "pip install 'txeval[cluster]'"


def test_workers_that_are_started_on_demand(plugin: None, screen_file: Path, tmp_path: Path) -> None:
    """From none: the batch system is one that starts its jobs at once, on this machine."""
    asked = {
        "cores": 1,
        "memory": "4GB",
        "python": sys.executable,
        "scheduler_options": {"host": "127.0.0.1"},
        "worker_extra_args": ["--host", "127.0.0.1", "--no-dashboard"],
        "local_directory": str(tmp_path),
    }
    path = written(tmp_path, {"type": "local", "minimum": 0, "maximum": 2, "options": asked})
    here = run(screen_file, tmp_path / "here")
    there = run(screen_file, tmp_path / "there", cluster=path)
    same_scores(here.scores, there.scores)
