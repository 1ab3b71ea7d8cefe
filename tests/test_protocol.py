"""Protocols: what ships, what a user's file may say, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from txeval.errors import InputError
from txeval.protocol import list_protocols, load_protocol
from txeval.run.cluster import read_cluster
from txeval.run.config import load_config
from txeval.tasks import list_tasks, task_params


@pytest.mark.parametrize("name", list_protocols())
def test_every_shipped_protocol_fits_every_task(name: str) -> None:
    protocol = load_protocol(name)
    known = {task.name for task in list_tasks()}
    assert set(protocol.tasks) <= known
    for task in list_tasks():
        task_params(task, protocol.tasks.get(task.name, {}))


def test_paper_and_reference_differ_as_documented() -> None:
    paper, reference = load_protocol("paper"), load_protocol("reference")
    assert (paper.split["scheme"], reference.split["scheme"]) == ("paper", "reference")
    assert reference.split["seed"] == paper.split["seed"] == 42
    assert reference.tasks["knn"]["downsample"] == reference.tasks["batch_mixing"]["downsample"] == "complement"
    assert reference.tasks["linear_probe"]["batch_size"] == 64768 and reference.tasks["linear_probe"]["drop_last"]
    assert reference.tasks["relationships"]["keep_control"] and not paper.tasks["relationships"]["keep_control"]
    assert reference.tasks["consistency"]["p_value"] == "reference"
    assert reference.tasks["reconstruction"]["decoder"] == "mlp"
    assert paper.fingerprint != reference.fingerprint


def test_a_users_file_extends_one_and_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: paper\ntasks:\n  linear_probe:\n    lr: 1e-4\n    weight_decay: 2.5E-6\n")
    mine, paper = load_protocol(path), load_protocol("paper")
    assert mine.name == "mine"
    assert mine.tasks["linear_probe"] == {**paper.tasks["linear_probe"], "lr": 1e-4, "weight_decay": 2.5e-6}
    assert mine.tasks["knn"] == paper.tasks["knn"]
    child = tmp_path / "child.yaml"
    child.write_text("extends: mine.yaml\nseeds: 2\n")
    assert load_protocol(child).tasks["linear_probe"]["lr"] == 1e-4
    assert load_protocol(child).seeds == 2


def test_the_fingerprint_is_of_the_parameters_not_of_the_name(tmp_path: Path) -> None:
    path = tmp_path / "renamed.yaml"
    path.write_text("extends: paper\nname: other\ndescription: words\n")
    assert load_protocol(path).fingerprint == load_protocol("paper").fingerprint


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("extends: papr\n", "did you mean|does not exist"),
        ("task: {}\n", "did you mean 'tasks'"),
        ("tasks:\n  knn: 5\n", "knn is 5"),
        ("seeds: many\n", "seeds is 'many'"),
        ("seeds: 0\n", "seeds is 0"),
        ("split: {schema: paper}\n", "did you mean 'scheme'"),
        ("quality_control: {min_count: 5}\n", "did you mean 'min_counts'"),
        ("- a\n- b\n", "holds no sections"),
        ("a: [1\n", "not YAML"),
        ("extends: bad.yaml\n", "circle"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=fragment):
        load_protocol(path)


def test_what_is_shown_is_part_of_a_protocol(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: paper\nchoice: cross_fitted\nheadline: {knn: [top1]}\nbaselines: [random, shuffled]\n")
    mine = load_protocol(path)
    assert (mine.choice, mine.headline, list(mine.baselines)) == (
        "cross_fitted",
        {"knn": ["top1"]},
        ["random", "shuffled"],
    )
    assert (load_protocol("paper").choice, list(load_protocol("paper").baselines)) == ("best", ["random"])


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("choice: first\n", "choice of post-processing called 'first'"),
        ("headline: {knn: top1}\n", "list names of metrics"),
        ("baselines: [1]\n", "list names of embedders"),
    ],
)
def test_what_is_wrong_with_what_is_shown_is_named(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=fragment):
        load_protocol(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: caf\xe9\n", "not YAML"),
        (b"tasks: &a {knn: *a}\n", "nested too deep"),
        (b"tasks: " + b"[" * 3000 + b"]" * 3000, "nested too deep"),
        (b"tasks: {1: {k: 5}}\n", "the key 1 is a int"),
        (b"seeds: " + b"9" * 5000 + b"\n", "not YAML"),
        (b"name: x\n" + b"#" * 2**20, "1,048,584 bytes"),
    ],
)
@pytest.mark.parametrize("read", [lambda path: load_protocol(str(path)), load_config, read_cluster])
def test_files_that_are_no_settings_are_refused(
    tmp_path: Path, content: bytes, said: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as why:
        read(path)
    assert said in why.value.problem and str(path) in why.value.problem
