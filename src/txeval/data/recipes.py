"""Data sets of the catalogue, prepared: from their files to one checked file, and the description of a run on it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from txeval._version import __version__
from txeval.data.datasets import Dataset, SourceFile, resolve_roles, stated_licences
from txeval.data.download import Progress
from txeval.data.locate import whole_or_nothing
from txeval.data.matrix import open_store
from txeval.data.norman import prepare_devel
from txeval.data.prepare import DEFAULT_MEMORY, Prepared, Recipe, prepare_screen
from txeval.data.roles import Roles
from txeval.data.screen import Screen, open_screen
from txeval.data.split import split
from txeval.data.writing import SUFFIXES
from txeval.destination import check_destination
from txeval.errors import InputError
from txeval.protocol import load_protocol

__all__ = ["PreparedDataset", "SizeCheck", "check_sizes", "prepare_dataset", "write_run_file"]

_HEADER = "# Made by txeval data prepare"


@dataclass(frozen=True)
class SizeCheck:
    """A size that a publication states, and the one found.

    Attributes
    ----------
    within
        How far it may be off and still be the same number, rounded.
    verdict
        "as published", "differs", or "depends on the draw": sizes in samples of a seeded split.
    """

    what: str
    expected: int
    within: int
    found: int
    verdict: Literal["as published", "differs", "depends on the draw"]


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared data set.

    Attributes
    ----------
    prepared
        The file and how it was made.
    scale, scale_note
        Of its values, and what it rests on.
    sizes
        What -> number: samples, genes, perturbations, controls, batches, cell lines.
    checks
        Against what the catalogue expects.
    notes
        What was decided or is odd.
    run_file
        YAML that `txeval run` takes; None where one of the user's own is in the way.
    """

    dataset: Dataset
    prepared: Prepared
    roles: Roles
    scale: str
    scale_note: str
    sizes: Mapping[str, int]
    checks: tuple[SizeCheck, ...]
    notes: tuple[str, ...]
    licences: Mapping[str, str]
    run_file: Path | None


def prepare_dataset(
    dataset: Dataset,
    files: Sequence[SourceFile],
    out: Path | str,
    *,
    recipe: Recipe | None = None,
    roles: Mapping[str, Any] | None = None,
    max_memory: int = DEFAULT_MEMORY,
    overwrite: bool = False,
    progress: Progress = lambda done, total, text: None,
) -> PreparedDataset:
    """Prepare a data set of the catalogue from its files, and check what came out.

    Parameters
    ----------
    files
        As `fetch_dataset` or `find_dataset` gives them.
    out
        .h5ad file, or .zarr folder; the description of a run is written beside it (.yaml).
    recipe
        Instead of what the catalogue says.
    roles
        Names of `Roles` -> columns, instead of those of the catalogue.
    max_memory, overwrite, progress
        See `prepare_screen`.

    Raises
    ------
    InputError
        The files cannot be used, lack the columns of the roles, or the result is no screen.
    """
    out = Path(out).expanduser()
    uns = {"source": _provenance(dataset, files)}
    notes: list[str] = []
    if dataset.source.dataset:
        if recipe is not None and recipe != Recipe():
            raise InputError(
                f"{dataset.name} is small, and prepared in one way only",
                remedy="prepare it as it is, then the file that results: txeval data prepare FILE --out ...",
            )
        prepared = _prepare_cut(dataset, files, out, uns, overwrite)
        chosen = _roles(dataset, [out], roles, notes)
    else:
        paths = [file.path for file in files]
        # Before hours of copying.
        chosen = _roles(dataset, paths, roles, notes)
        recipe = recipe or Recipe(min_counts=dataset.min_counts)
        prepared = prepare_screen(
            paths, out, recipe, max_memory=max_memory, uns=uns, overwrite=overwrite, progress=progress
        )
    notes += prepared.report.get("notes", ())
    progress(prepared.shape[0], prepared.shape[0], "checking")
    with open_screen(out, chosen, layer=dataset.layer or None, name=dataset.stem) as screen:
        sizes = _sizes(screen)
        checks = check_sizes(dataset, screen, sizes)
        if dataset.scale and screen.scale != dataset.scale:
            notes.append(f"the values are {screen.scale} ({screen.scale_note}); the catalogue expects {dataset.scale}")
        notes += [str(note) for note in screen.report["warnings"]]
        scale, scale_note = screen.scale, screen.scale_note
    licences = stated_licences([file.path for file in files]) if dataset.source.records else {}
    run_file, note = write_run_file(dataset, out, chosen, overwrite=overwrite)
    notes += [note] if note else []
    return PreparedDataset(
        dataset=dataset,
        prepared=prepared,
        roles=chosen,
        scale=scale,
        scale_note=scale_note,
        sizes=sizes,
        checks=checks,
        notes=tuple(dict.fromkeys(notes)),
        licences=licences,
        run_file=run_file,
    )


def _provenance(dataset: Dataset, files: Sequence[SourceFile]) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "files": [f"{file.path.name} ({file.size} bytes; {file.checked})" for file in files],
        "citation": list(dataset.citation),
        "licence": dataset.licence or "as the Zenodo record states",
    }


def _roles(dataset: Dataset, paths: Sequence[Path], given: Mapping[str, Any] | None, notes: list[str]) -> Roles:
    obs: list[str] = []
    var: list[str] = []
    for path in paths:
        store = open_store(path)
        try:
            obs += store.columns("obs")
            var += store.columns("var")
        finally:
            store.close()
    given = {role: value for role, value in (given or {}).items() if value}
    tried = dict(dataset.roles)
    for role, value in given.items():
        tried[role] = (value,) if isinstance(value, str) else tuple(value)
    if "control" in given:
        tried.pop("control_column", None)
    roles, found = resolve_roles(replace(dataset, roles=tried), list(dict.fromkeys(obs)), list(dict.fromkeys(var)))
    notes += found
    return roles


def _prepare_cut(
    dataset: Dataset, files: Sequence[SourceFile], out: Path, uns: Mapping[str, Any], overwrite: bool
) -> Prepared:
    """The small screens of the published file of PerturBench."""
    begun = time.monotonic()
    content = {**uns, "txeval": {"version": __version__}}
    reused = out.exists() and _holds(out, content)
    if not reused:
        check_destination(out, suffixes=SUFFIXES, overwrite=overwrite)
        prepare_devel(files[0].path, out, dataset.source.dataset, uns=content)
    store = open_store(out)
    try:
        matrix = store.matrix("layers/counts")
    finally:
        store.close()
    report = {"samples": matrix.shape[0], "genes": matrix.shape[1], "left_out": {}, "notes": []}
    return Prepared(out, matrix.shape, matrix.dtype.name, report, 0, time.monotonic() - begun, 0, reused=reused)


def _holds(out: Path, content: Mapping[str, Any]) -> bool:
    """Whether a file says of itself that it was made from the same bytes by the same version."""
    import anndata

    try:
        made = anndata.read_h5ad(out, backed="r").uns if out.is_file() else anndata.read_zarr(out).uns
        source = {
            name: list(value) if name in ("files", "citation") else value for name, value in made["source"].items()
        }
        return bool(source == content["source"] and made["txeval"]["version"] == __version__)
    except Exception:  # whatever it is, it is not that file
        return False


def _sizes(screen: Screen) -> dict[str, int]:
    samples = screen.samples
    return {
        "samples": screen.n,
        "controls": int(samples.is_control.sum()),
        "perturbations": len(np.unique(samples.perturbation[~samples.is_control])),
        "cell_lines": 1 if samples.cell_lines is None else len(samples.cell_lines),
        "genes": screen.n_genes,
        "batches": len(samples.batches),
    }


def check_sizes(dataset: Dataset, screen: Screen, sizes: Mapping[str, int]) -> tuple[SizeCheck, ...]:
    """Hold the sizes of a prepared screen, and of its split by the paper's protocol, against the published ones."""
    expected = dataset.expected
    if expected is None:
        return ()
    checks = [
        SizeCheck(what, value, within, sizes[what], _verdict(value, within, sizes[what]))
        for what, (value, within) in expected.sizes.items()
    ]
    if expected.splits:
        checks += _split_checks(expected.splits, screen)
    return tuple(checks)


def _verdict(expected: int, within: int, found: int) -> Literal["as published", "differs"]:
    return "as published" if abs(found - expected) <= within else "differs"


def _split_checks(expected: Mapping[str, Mapping[str, int]], screen: Screen) -> list[SizeCheck]:
    samples = screen.samples
    parts = split(
        samples.perturbations[samples.perturbation],
        samples.batches[samples.batch],
        samples.is_control,
        **load_protocol("paper").split,
    )
    checks = []
    for name, sizes in expected.items():
        rows = parts[name]
        control = samples.is_control[rows]
        found = {
            "samples": len(rows),
            "controls": int(control.sum()),
            "batches": len(np.unique(samples.batch[rows])),
            "perturbations": len(np.unique(samples.perturbation[rows][~control])),
        }
        for what, value in sizes.items():
            verdict: Any = _verdict(value, 0, found[what])
            if verdict == "differs" and what in ("samples", "controls"):
                verdict = "depends on the draw"
            checks.append(SizeCheck(f"{name}: {what}", value, 0, found[what], verdict))
    return checks


def write_run_file(dataset: Dataset, out: Path, roles: Roles, *, overwrite: bool) -> tuple[Path | None, str]:
    """Write the YAML that `txeval run` takes beside a prepared file; gives it, and what has to be said.

    A file of that name that the program did not write, or that was changed since, stays as it is.
    """
    path = out.with_suffix(".yaml")
    chosen = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(roles).items()
        if value not in (None, ())
    }
    settings: dict[str, Any] = {"screen": out.name, "name": dataset.stem, "roles": chosen}
    if dataset.layer:
        settings["layer"] = dataset.layer
    settings |= dict(dataset.run)
    settings |= {"embeddings": ["pca"], "out": f"{dataset.stem}-results"}
    lines = [
        f"{_HEADER} {dataset.name} (txeval {__version__}).",
        f"# txeval validate {path.name} says what a run would do; txeval run {path.name} does it.",
        *[f"# Cite: {citation}" for citation in dataset.citation],
        "",
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    ]
    text = "\n".join(lines)
    if path.exists():
        before = path.read_text(encoding="utf-8", errors="replace")
        if before == text:
            return path, ""
        if not before.startswith(_HEADER):
            return None, f"{path.name} is there already, and not of this program: it was left as it is"
        if not overwrite:
            return path, f"{path.name} is there already, and was left as it is"
    with whole_or_nothing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path, ""
