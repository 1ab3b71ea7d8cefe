"""Forms of the documents of a results folder: what is read from one has these fields, types and bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta, Struct

__all__ = ["IDENTIFIER", "AboutEmbedding", "Cell", "Manifest", "Plan", "Seal", "Sealed"]

#: Names that become names of files: letters, digits, `.`, `_` and `-`, not starting with a dot.
IDENTIFIER = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}"

Identifier = Annotated[str, Meta(pattern=rf"^{IDENTIFIER}\Z")]
RelativePath = Annotated[str, Meta(pattern=rf"^({IDENTIFIER}/)?{IDENTIFIER}\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Text = Annotated[str, Meta(max_length=2**20)]
Label = Annotated[str, Meta(max_length=2**12)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Whole = Annotated[int, Meta(ge=-(2**62), le=2**62)]
#: Neither infinite nor NaN.
Number = Annotated[float, Meta(ge=-1.7e308, le=1.7e308)]
Plain = dict[str, Any]


class Seal(TypedDict):
    """What is known of a file that is no document: bytes, and SHA-256 of its content."""

    size: Count
    sha256: Digest


class Sealed(Struct):
    """`splits/*.json`, `samples/*.json`, `postprocessing/*.json`: of the file of the same name beside it."""

    file: Seal


class AboutEmbedding(Struct):
    """`embeddings/*.json`.

    Attributes
    ----------
    of
        The .npy file whose rows it consists of, where that is another: of the folder, or an absolute path.
    file, index
        Seals of the file that has the values, and of `<key>.index.npy`, where it picks rows of it.
    """

    shape: tuple[Count, Count]
    file: Seal
    index: Seal | None = None
    of: Label | None = None
    source: Label = ""
    provenance: Plain = {}


class Row(Struct):
    """One score of a cell."""

    metric: Label
    status: Literal["ok", "failed"]
    value: Number | None
    subset: Label = ""
    reason: Text = ""
    low: Number | None = None
    high: Number | None = None
    interval_unit: Label = ""
    interval_method: Label = ""
    interval_note: Text = ""
    chance: Number | None = None
    chance_low: Number | None = None
    chance_high: Number | None = None
    n_samples: Whole | None = None
    n_groups: Whole | None = None
    group: Label = ""
    left_out: dict[Label, Whole] = {}
    notes: list[Text] = []

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.value is not None):
            raise ValueError(f"a row of {self.metric} with status {self.status} has the value {self.value}")


class Cell(Struct):
    """`cells/<key>.json`."""

    format: Count
    key: Identifier
    state: Literal["done", "error"]
    rows: list[Row]
    tables: dict[Identifier, Seal]
    txeval_version: Label
    device: Label
    seconds: Number | None
    peak_memory_mb: Number | None
    warnings: list[Text]


class Screen(Struct):
    """A screen, as plans and the manifest have it."""

    path: Label
    name: Label
    fingerprint: Identifier
    n: Count
    n_file: Count
    n_genes: Count
    report: Plain
    roles: Plain


class Protocol(Struct):
    """A protocol, as plans and the manifest have it."""

    name: Label
    description: Text = ""
    choice: Literal["best", "cross_fitted"] = "best"
    seeds: Count = 5
    headline: dict[Label, list[Label]] = {}
    tasks: dict[Label, Plain] = {}
    post_processing: Plain = {}
    quality_control: Plain = {}
    split: Plain = {}


class Split(Struct):
    """A split, as plans and the manifest have it."""

    id: Label
    digest: Identifier
    parts: dict[Label, dict[Label, Count]]


class Model(Struct):
    """A label, and what it stands for."""

    label: Label
    source: Label
    options: Plain
    content: Identifier
    stochastic: bool
    added: bool
    fingerprints: list[Identifier]


class ModelRow(Model):
    """A model of a data set in the manifest."""

    dataset: Label
    shape: tuple[Count, Count] | None
    provenance: list[Plain]


class PlannedMetric(Struct):
    """A metric of a task."""

    name: Label
    version: Whole
    derived: bool


class PlannedTask(Struct):
    """A task of a plan."""

    level: Whole
    title: Label
    version: Whole
    params: Plain
    metrics: list[PlannedMetric]
    digest: Identifier


class TaskRow(PlannedTask):
    """A task in the manifest."""

    protocol: Label
    task: Identifier


class Entry(Struct, forbid_unknown_fields=True):
    """A cell of a plan under the label of one model."""

    key: Identifier
    family: Identifier
    model: Label
    post_processing: Label
    task: Identifier
    seed: Whole | None
    embedding_fingerprint: Identifier
    metrics: list[Label] | None = None


class Run(Struct):
    """One call of `txeval run`."""

    started: Label
    state: Label
    warnings: list[Text] = []
    seconds: Number | None = None
    host: Label = ""
    platform: Label = ""
    cpu: Label = ""
    device: Label = ""
    command: list[Text] = []
    versions: dict[Label, Label] = {}


class Plan(Struct):
    """`plans/<id>.json`."""

    id: Identifier
    dataset: Label
    screen: Screen
    protocol: Protocol
    protocol_digest: Identifier
    split: Split
    models: list[Model]
    tasks: dict[Identifier, PlannedTask]
    entries: list[Entry]
    config: Plain
    warnings: list[Text]
    runs: list[Run]
    order: Count
    created: Count
    current: bool

    def __post_init__(self) -> None:
        labels = {model.label for model in self.models}
        for entry in self.entries:
            if entry.model not in labels:
                raise ValueError(f"entries name the model {entry.model!r}, which models does not have")
            if entry.task not in self.tasks:
                raise ValueError(f"entries name the task {entry.task!r}, which tasks does not have")


class Manifest(Struct):
    """`manifest.json`; one that says nothing but its format is of a folder whose first run has not ended."""

    format: Count
    txeval_version: Label
    state: Literal["complete", "incomplete"] = "incomplete"
    pending_cells: Count = 0
    error_cells: Count = 0
    screens: list[Screen] = []
    protocols: list[Protocol] = []
    splits: list[Split] = []
    embeddings: list[ModelRow] = []
    tasks: list[TaskRow] = []
    configurations: list[Plain] = []
    runs: list[Run] = []
    warnings: list[Text] = []
    files: dict[RelativePath, Seal] = {}
