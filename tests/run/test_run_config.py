"""What a run is asked to do: read, checked, written back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import config

from txeval.embed import parse_spec
from txeval.errors import InputError
from txeval.run import build_config, load_config

GOOD: dict[str, Any] = {
    "screen": "screen.h5ad",
    "roles": {"perturbation": "gene", "control": "ctrl", "batch": "lane"},
    "embeddings": ["pca", "mine=vectors/mine.npy", {"label": "wide", "source": "pca", "options": {"components": 9}}],
}


def write(folder: Path, content: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_a_file(tmp_path: Path) -> None:
    found = load_config(write(tmp_path, {**GOOD, "out": "results", "seeds": 3, "min_counts": "1e3", "tasks": "knn"}))
    assert found.screen == tmp_path / "screen.h5ad"
    assert found.out == tmp_path / "results"
    assert found.roles.control == ("ctrl",)
    assert found.embeddings[1].label == "mine"
    assert found.embeddings[1].source == str(tmp_path / "vectors" / "mine.npy")
    assert found.embeddings[2] == parse_spec("wide=pca@components=9")
    assert (found.seeds, found.min_counts, found.tasks) == (3, 1000.0, ("knn",))
    assert found.protocol.name == "paper"
    assert list(found.chosen_seeds) == [0, 1, 2]
    assert [spec.label for spec in found.chosen_embeddings] == ["random", "pca", "mine", "wide"]


def test_flags_replace_what_the_file_says(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "seeds": 3})
    found = load_config(path, {"seeds": 1, "out": "here", "name": None, "roles": {"batch": "plate", "control": None}})
    assert found.seeds == 1
    assert found.out == Path("here")
    assert (found.roles.batch, found.roles.control) == ("plate", ("ctrl",))
    found = load_config(path, {"roles": {"control_column": "is_control"}})
    assert (found.roles.control, found.roles.control_column) == ((), "is_control")
    assert load_config(path, {"embeddings": ["pca"]}).embeddings == (parse_spec("pca"),)


def test_defaults_and_the_protocol(tmp_path: Path) -> None:
    found = build_config({**GOOD, "embeddings": "pca"})
    assert found.chosen_post_processing == ("raw", "centering", "center_scaling", "tvn")
    assert found.post_params("tvn") == {"coral": True, "shrinkage": 0.5}
    assert found.chosen_min_counts == 1000
    assert found.chosen_tasks[0] == "batch_mixing"
    (tmp_path / "mine.yaml").write_text("extends: paper\nseeds: 2\npost_processing: {tvn: {shrinkage: 0.1}}\n")
    found = load_config(write(tmp_path, {**GOOD, "protocol": "mine.yaml"}))
    assert (found.protocol.name, len(found.chosen_seeds)) == ("mine", 2)
    assert found.post_params("tvn") == {"coral": True, "shrinkage": 0.1}


def test_written_back(tmp_path: Path) -> None:
    given = {**GOOD, "out": "results", "scale": "counts", "positional": True, "workers": 2, "baseline": False}
    found = load_config(write(tmp_path, given))
    again = build_config(yaml.safe_load(yaml.safe_dump(found.to_dict())))
    assert again == found


def test_positional_is_told_to_precomputed_embeddings() -> None:
    found = build_config({**GOOD, "embeddings": ["pca", "mine=x.npy"], "positional": True})
    assert [dict(spec.options) for spec in found.chosen_embeddings] == [{}, {}, {"positional": True}]


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "setting": ({"scren": "x"}, ("'scren'", "'screen'")),
    "role at the top": ({"batch": "lane"}, ("batch", "under roles:")),
    "role": ({"roles": {"perturbtion": "x"}}, ("'perturbtion'", "'perturbation'")),
    "roles that are none": ({"roles": "gene"}, ("roles is 'gene'",)),
    "role of another kind": ({"roles": {"perturbation": ["a"]}}, ("perturbation is ['a']",)),
    "two kinds of controls": (
        {"roles": {"perturbation": "gene", "control": "c", "control_column": "is"}},
        ("named twice", "--control-column"),
    ),
    "no perturbation": ({"roles": {"control": "c"}}, ("perturbation is missing",)),
    "no screen": ({"screen": None}, ("screen is missing",)),
    "no embeddings": ({"embeddings": None}, ("embeddings is missing",)),
    "an empty list of embeddings": ({"embeddings": []}, ("no embedding is given",)),
    "embedding of another kind": ({"embeddings": [3]}, ("3 is a int",)),
    "embedding key": ({"embeddings": [{"source": "pca", "lable": "x"}]}, ("'lable'", "'label'")),
    "embedding without source": ({"embeddings": [{"label": "x"}]}, ("no source",)),
    "unknown embedder": ({"embeddings": ["pcaa"]}, ("'pcaa'", "'pca'")),
    "one label twice": ({"embeddings": ["a=pca", "a=x.npy"]}, ("label 'a'", "LABEL=SOURCE")),
    "random twice": ({"embeddings": ["random", "r2=random"]}, ("random is requested 2 times", "random, r2")),
    "label of the baseline": ({"embeddings": ["random=pca"]}, ("label 'random'", "baseline")),
    "seeds": ({"seeds": 0}, ("seeds is 0", "1 or more")),
    "seeds of another kind": ({"seeds": "many"}, ("seeds is 'many'", "whole number")),
    "seeds that are no whole number": ({"seeds": 1.5}, ("seeds is 1.5", "whole number")),
    "seeds that are a flag": ({"seeds": True}, ("seeds is True", "whole number")),
    "workers": ({"workers": 0}, ("workers is 0", "1 or more")),
    "min_counts": ({"min_counts": -1}, ("min_counts is -1", "0 or more")),
    "min_counts of another kind": ({"min_counts": "few"}, ("min_counts is 'few'", "a number")),
    "unknown task": ({"tasks": ["knnn"]}, ("'knnn'", "'knn'")),
    "one task twice": ({"tasks": ["knn", "knn"]}, ("task knn is named 2 times",)),
    "no task": ({"tasks": []}, ("no task is chosen",)),
    "unknown post-processing": ({"post_processing": ["center"]}, ("'center'", "'centering'")),
    "unknown protocol": ({"protocol": "papr"}, ("'papr'", "'paper'")),
    "protocol of another kind": ({"protocol": {"seeds": 3}}, ("protocol is {'seeds': 3}", "YAML file")),
    "unknown scale": ({"scale": "count"}, ("'count'", "'counts'")),
    "unknown overwrite": ({"overwrite": "alway"}, ("'alway'", "'always'")),
    "flag of another kind": ({"baseline": "no"}, ("baseline is 'no'", "true or false")),
    "relations": ({"relations": "nowhere"}, ("nowhere",)),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_settings(name: str, tmp_path: Path) -> None:
    changes, fragments = BAD[name]
    with pytest.raises(InputError) as why:
        load_config(write(tmp_path, {**GOOD, **changes}))
    assert all(fragment in str(why.value) for fragment in fragments), str(why.value)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "holds no settings"),
        ("- a\n", "holds no settings"),
        ("screen: [x\n", "is not YAML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        load_config(write(tmp_path, text))
    with pytest.raises(InputError, match="there is no file"):
        load_config(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("tasks: {kn: {k: 3}}", ("'kn'", "'knn'", "protocol mine")),
        ("tasks: {knn: {kk: 3}}", ("'kk'", "'k'", "protocol mine")),
        ("post_processing: {choices: [row]}", ("'row'", "'raw'")),
        ("post_processing: {choices: raw}", ("choices is 'raw'",)),
        ("post_processing: {tvm: {}}", ("'tvm'", "'tvn'")),
        ("post_processing: {tvn: {corl: true}}", ("'corl'", "'coral'")),
        ("post_processing: {tvn: {coral: 1}}", ("tvn.coral is 1", "true or false")),
        ("post_processing: {tvn: {shrinkage: 0}}", ("tvn.shrinkage is 0", "above 0")),
        ("post_processing: {raw: {coral: true}}", ("'coral'",)),
        ("quality_control: {min_counts: few}", ("min_counts is 'few'",)),
    ],
)
def test_bad_protocols(tmp_path: Path, text: str, fragments: tuple[str, ...]) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: paper\n{text}\n")
    with pytest.raises(InputError) as why:
        load_config(write(tmp_path, {**GOOD, "protocol": "mine.yaml"}))
    assert all(fragment in str(why.value) for fragment in fragments), str(why.value)


def test_bad_results_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        with pytest.raises(InputError, match="file"):
            load_config(write(tmp_path, {**GOOD, "out": out}))


def test_what_does_not_change_numbers_does_not_change_keys(screen_file: Path, tmp_path: Path) -> None:
    from txeval.run import make_plan

    def keys(**changes: Any) -> list[str]:
        return [cell.key for cell in make_plan(config(screen_file, **changes)).cells]

    standard = keys()
    assert len(set(standard)) == len(standard) == 14
    assert keys(workers=4, out=tmp_path / "other", name="Small", overwrite="always", max_elements=500) == standard
    assert keys(embeddings=["random@of=stub_plain", "called differently=obsm:X_emb"]) == standard
    assert keys(scale="counts") == standard
    assert keys(seeds=1) == [key for key in standard if key in set(keys(seeds=1))]
    assert len(keys(seeds=1)) == 8
    # One post-processing or task more leaves the others alone.
    assert set(keys(post_processing=["raw"])) < set(standard)
    assert set(keys(tasks=["stub_size"])) < set(standard)


def test_what_changes_numbers_changes_keys(screen_file: Path, tmp_path: Path) -> None:
    from txeval.run import make_plan

    def keys(screen: Path = screen_file, protocol: str = "", **changes: Any) -> set[str]:
        if protocol:
            path = tmp_path / "mine.yaml"
            path.write_text(f"extends: paper\n{protocol}\n")
            changes["protocol"] = path
        return {cell.key for cell in make_plan(config(screen, **changes)).cells}

    from run_helpers import write_screen

    standard = keys()
    assert keys(protocol="description: words") == standard
    assert keys(protocol="seeds: 3") == standard  # the number of seeds is set by the configuration
    assert not keys(protocol="split: {seed: 1}") & standard
    assert not keys(screen=write_screen(tmp_path / "other.h5ad", seed=1)) & standard
    sizes = keys(protocol="tasks: {stub_size: {power: 2}}")
    assert len(sizes & standard) == 8  # stub_noise is as it was
    assert keys(protocol="tasks: {stub_size: {power: 1}}") == standard  # the default, written out
    assert keys(post_processing=["tvn"]) == keys(post_processing=["tvn"], protocol="post_processing: {tvn: {}}")
    assert not keys(post_processing=["tvn"]) & keys(
        post_processing=["tvn"], protocol="post_processing: {tvn: {coral: false}}"
    )
    assert not keys(roles={"perturbation": "lane", "control": "lane1", "batch": "gene"}) & standard


def test_versions_of_tasks_and_metrics_enter_the_keys(screen_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from txeval.run import make_plan
    from txeval.tasks import registry
    from txeval.tasks.base import Task

    def keys() -> set[str]:
        return {cell.key for cell in make_plan(config(screen_file, tasks=["stub_size"])).cells}

    def change(task: Task) -> None:
        monkeypatch.setattr(registry, "_tasks", lambda: {**tasks, task.name: task})

    standard = keys()
    tasks = registry._tasks()
    task = tasks["stub_size"]
    change(dataclasses.replace(task, version=2))
    assert not keys() & standard
    first, *others = task.metrics
    change(dataclasses.replace(task, metrics=(dataclasses.replace(first, version=2), *others)))
    assert not keys() & standard
    # A derived metric is not part of any cell.
    change(dataclasses.replace(task, metrics=task.metrics[:-1]))
    assert keys() == standard


def test_describe(screen_file: Path) -> None:
    from txeval.run import make_plan

    plan = make_plan(config(screen_file))
    about = plan.describe()
    assert about["cells"] == 14
    assert about["cells_per_task"] == {"stub_size": 6, "stub_noise": 8}
    assert about["samples"] == {"n": 240, "controls": 40, "perturbations": 5, "batches": 6}
    assert about["split"]["parts"]["test"]["samples"] == len(plan.splits["test"])
    assert about["tasks"]["stub_size"]["params"] == {"power": 1.0}
    assert [entry["label"] for entry in about["embeddings"]] == ["random", "mine"]
    # Cells of one embedding are together.
    order = [(cell.model, cell.embedding.seed) for cell in plan.cells]
    assert len(set(order)) == 1 + sum(one != other for one, other in pairwise(order))


def test_without_relations(screen_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from txeval.run import make_plan, plan

    def nothing(folder: object) -> None:
        raise InputError("there are none here")

    monkeypatch.setattr(plan, "load_relations", nothing)
    found = make_plan(config(screen_file, tasks=["relationships"]))
    assert any("no database of known relationships: there are none here" in text for text in found.warnings)
