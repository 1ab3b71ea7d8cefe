"""The truth of a simulated screen: what was planted, in a folder beside the file."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from txeval.compute.arrays import F32
from txeval.data.matrix import open_store
from txeval.errors import InputError

__all__ = ["Truth", "relations_folder", "run_file", "truth_folder"]

_FORMAT = 2
_SETTINGS = "settings.json"
_RELATIONS = "simulated_programs.csv"
_README = """The truth of {name}, which `txeval simulate` wrote.

settings.json         what it was asked for; the same settings give the same screen
perturbations.csv     target, kind (active; none; unexpressed: of a gene that is not expressed), program, strength
effects.csv           every shift of a program's activity, in units of log expression at loading 1
programs.csv          members and their loadings
relations/            pairs of targets in one program, for --relations
genes.csv             mean, spread, spread between batches; planted: spread of the log expression from programs
batches.csv           cell line, shift of the log library, root mean square shift of the genes
responses.csv         how much of each effect a cell line shows (with several cell lines)

txeval run {run}              the benchmark on it
txeval recovery RESULTS       how well each level recovers what is in these tables
"""


def truth_folder(path: Path | str) -> Path:
    """Folder of the truth of a simulated screen: `screen.truth` beside `screen.h5ad`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.truth")


def relations_folder(path: Path | str) -> Path:
    """Folder of the known relationships of a simulated screen, as `load_relations` reads it."""
    return truth_folder(path) / "relations"


def run_file(path: Path | str) -> Path:
    """YAML beside a simulated screen, for `txeval run`: `screen.run.yaml` beside `screen.h5ad`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.run.yaml")


@dataclass(frozen=True)
class Truth:
    """What a simulated screen was made of.

    Attributes
    ----------
    path
        The screen.
    settings
        What it was asked for.
    perturbations
        One row per perturbation: `perturbation`, `gene` (its target), `kind` ("active"; "none": without effect;
        "unexpressed": of a gene that is not expressed), `program` (number, -1 without one), `strength` (signed).
        Targets that are not measured are absent from `genes`.
    effects
        `perturbation`, `program`, `strength`: every shift of the activity of a program, in units of log expression
        at loading 1. Perturbations without effect have no row.
    programs
        `gene`, `program`, `loading` of every gene in a program.
    relations
        `entity1`, `entity2`: pairs of target genes in the same program.
    genes
        `gene`, `mean` (expected value in an unperturbed sample of median depth), `spread` (counts: dispersion phi;
        continuous: standard deviation), `batch_spread`, `planted` (standard deviation over the samples of the log
        expression that programs give it), `measured` (continuous: landmark).
    batches
        `batch`, `cell_line`, `log_depth` (shift of the log library), `shift` (root mean square over the genes).
    responses
        `cell_line`, `perturbation`, `factor`: how much of the effects a cell line shows; empty for one line.
    """

    path: Path
    settings: dict[str, Any]
    perturbations: pd.DataFrame
    effects: pd.DataFrame
    programs: pd.DataFrame
    relations: pd.DataFrame
    genes: pd.DataFrame
    batches: pd.DataFrame
    responses: pd.DataFrame

    @cached_property
    def signal(self) -> F32:
        """(n, n_programs) float32: the activity of every program in every sample, as in `obsm["X_truth"]`."""
        store = open_store(self.path)
        try:
            matrix = store.matrix("obsm/X_truth")
            return np.asarray(matrix.rows(np.arange(matrix.shape[0])), dtype=np.float32)
        finally:
            store.close()

    @classmethod
    def load(cls, path: Path | str) -> Truth:
        """Load the truth of a screen.

        Parameters
        ----------
        path
            The screen that `simulate_screen` wrote, or the folder beside it.

        Raises
        ------
        InputError
            It is not there, or not what `simulate_screen` writes.
        """
        path = Path(path)
        folder = path if (path / _SETTINGS).is_file() else truth_folder(path)
        remedy = "give a screen that `txeval simulate` wrote, or the folder .truth beside it"
        if not (folder / _SETTINGS).is_file():
            raise InputError(f"{path} has no truth beside it ({folder.name})", remedy=remedy)
        try:
            content = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise InputError(f"{folder} has format {content['format']}, not {_FORMAT}", remedy="simulate it again")
            tables = {name: _read(folder / f"{name}.csv", columns) for name, columns in _TABLES.items()}
            return cls(path=folder.parent / str(content["screen"]), settings=content["settings"], **tables)
        except (OSError, ValueError, KeyError, TypeError) as why:
            raise InputError(f"{folder} cannot be read as a truth: {why}", remedy=remedy) from why

    def write(self, folder: Path) -> None:
        """Write everything but the signal into a folder, which is made."""
        (folder / "relations").mkdir(parents=True)
        content = {"format": _FORMAT, "screen": self.path.name, "settings": self.settings}
        (folder / _SETTINGS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for name in _TABLES:
            if name != "relations":
                getattr(self, name).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
        if len(self.relations):
            self.relations.to_csv(folder / "relations" / _RELATIONS, index=False, lineterminator="\n")
        text = _README.format(name=self.path.name, run=run_file(self.path).name)
        (folder / "README.txt").write_text(text, encoding="utf-8")

    def run(self) -> str:
        """YAML that `txeval run` takes, to stand beside the screen."""
        roles = {
            "perturbation": "perturbation",
            "control_column": "control",
            "batch": "batch",
            "target_gene": "gene",
            **({"cell_line": "cell_line"} if self.settings["n_cell_lines"] > 1 else {}),
        }
        content = {
            "screen": self.path.name,
            "roles": roles,
            "scale": self.settings["mode"],
            "min_counts": 0,
            "embeddings": [
                {
                    "label": "pca",
                    "source": "pca",
                    **({} if self.settings["mode"] == "counts" else {"options": {"input": "as_is"}}),
                },
                {"label": "truth", "source": "obsm:X_truth"},
                {"label": "noisy truth", "source": "obsm:X_noisy"},
            ],
            **({"relations": f"{truth_folder(self.path).name}/relations"} if len(self.relations) else {}),
            "out": f"{self.path.stem}-results",
        }
        head = "# The activities that were planted, the same with noise, and PCA of the values, which sees neither.\n"
        return head + yaml.safe_dump(content, sort_keys=False)


_TABLES: dict[str, dict[str, Any]] = {
    "perturbations": {"perturbation": str, "gene": str, "kind": str, "program": np.int64, "strength": np.float64},
    "effects": {"perturbation": str, "program": np.int64, "strength": np.float64},
    "programs": {"gene": str, "program": np.int64, "loading": np.float64},
    "relations": {"entity1": str, "entity2": str},
    "genes": {
        "gene": str,
        "mean": np.float64,
        "spread": np.float64,
        "batch_spread": np.float64,
        "planted": np.float64,
        "measured": bool,
    },
    "batches": {"batch": str, "cell_line": str, "log_depth": np.float64, "shift": np.float64},
    "responses": {"cell_line": str, "perturbation": str, "factor": np.float64},
}


def table(name: str, values: dict[str, Any]) -> pd.DataFrame:
    """One of the tables of a truth, with the types that it is read back with."""
    frame = pd.DataFrame(values, columns=list(_TABLES[name]))
    return frame.astype({column: object if kind is str else kind for column, kind in _TABLES[name].items()})


def _read(path: Path, columns: dict[str, Any]) -> pd.DataFrame:
    if path.stem == "relations":
        path = path.parent / "relations" / _RELATIONS
        if not path.is_file():
            return table("relations", {})
    kinds = {name: object if kind is str else kind for name, kind in columns.items()}
    return pd.read_csv(path, dtype=kinds, keep_default_na=False, float_precision="round_trip", usecols=list(columns))


def replace_folder(part: Path, folder: Path) -> None:
    """Put a folder in the place of another."""
    if folder.is_dir():
        shutil.rmtree(folder)
    part.replace(folder)
