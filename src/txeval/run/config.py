"""What a run is asked to do: read from a YAML file and flags, checked, and written back so that it can be repeated."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from txeval.compute.machine import parse_size
from txeval.data import Roles
from txeval.data.scale import SCALES
from txeval.destination import check_destination
from txeval.embed import list_embedders, parse_spec, rebase, resolve
from txeval.embed.base import EmbeddingSpec
from txeval.embed.spec import is_precomputed
from txeval.errors import InputError, unknown
from txeval.postprocess import POST_PROCESSINGS
from txeval.protocol import Protocol, list_protocols, load_protocol, read_yaml
from txeval.tasks.base import Params, Task
from txeval.tasks.registry import get_task, list_tasks, task_params

if TYPE_CHECKING:
    from txeval.run.cluster import Place

__all__ = ["EXECUTORS", "OVERWRITE", "Overwrite", "RunConfig", "build_config", "check_config", "load_config"]

Overwrite = Literal["never", "missing", "always"]

#: What to do with scores that the results folder holds already.
OVERWRITE: tuple[Overwrite, ...] = get_args(Overwrite)

#: Where cells are computed: on this machine, or on a Dask cluster.
EXECUTORS = ("local", "dask")

#: The baseline that the others are divided by.
RANDOM = "random"

#: Parameters of post-processings in a protocol, with their defaults.
_POST_PARAMS: Mapping[str, Mapping[str, Any]] = {"tvn": {"coral": True, "shrinkage": 0.5}}


def post_params(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of one post-processing, where a protocol gives some."""
    return {**_POST_PARAMS.get(name, {}), **given.get(name, {})}


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is asked to do.

    Attributes
    ----------
    screen
        File or folder of the screen.
    roles
        Which columns hold what.
    embeddings
        What to evaluate.
    protocol
        Parameters of the benchmark.
    labels
        Table of labels of the samples, joined to `obs`; None: the screen holds them.
    layer, scale, name
        Matrix to read (None: X), its declared scale (None: determined), name of the data set (None: the file's).
    tasks, post_processing, seeds, min_counts
        None: all tasks, and what the protocol says.
    out
        Results folder; None only where nothing is computed.
    relations
        File or folder of databases of known relationships; None: the five published ones.
    workers
        Number of worker processes; 1 computes in this process; "auto": the usable cores, as far as memory allows.
    max_memory
        Bound in bytes on the memory of all processes of the run together; None: what the machine or the control group
        has, less a reserve.
    device
        "auto" (a CUDA device where torch finds one), "cpu", "cuda" or "cuda:N".
    executor
        "local": on this machine; "dask": on the workers of a Dask cluster.
    scheduler
        Address of the scheduler of a running Dask cluster, or the file that it writes its address to.
    cluster
        File that describes a cluster which dask-jobqueue starts.
    retries
        How often a cell or an embedding is tried again after an error that may pass: of memory, a file, a device.
        Errors of the code or the data (a wrong value, type or index) and scores that cannot be computed are not.
    overwrite
        "missing": compute what the folder lacks; "always": everything; "never": refuse where anything is there.
    baseline
        Whether to add floors and ceilings that are not among the embeddings.
    baselines
        Which: embedders such as `random` or `ceiling@of=obsm:X_scvi`; None: what the protocol says.
    positional
        Whether embeddings without sample names may be matched by order.
    max_elements
        Bound on the values of one block that is read of the screen; None: the default.
    """

    screen: Path
    roles: Roles
    embeddings: tuple[EmbeddingSpec, ...]
    protocol: Protocol
    labels: Path | None = None
    layer: str | None = None
    scale: str | None = None
    name: str | None = None
    tasks: tuple[str, ...] | None = None
    post_processing: tuple[str, ...] | None = None
    seeds: int | None = None
    min_counts: float | None = None
    out: Path | None = None
    relations: Path | None = None
    workers: int | Literal["auto"] = 1
    max_memory: int | None = None
    device: str = "auto"
    executor: str = "local"
    scheduler: str | None = None
    cluster: Path | None = None
    retries: int = 1
    overwrite: Overwrite = "missing"
    baseline: bool = True
    baselines: tuple[str, ...] | None = None
    positional: bool = False
    max_elements: int | None = None

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        """Names of the tasks to run, in the order of the levels."""
        every = [task.name for task in list_tasks()]
        return tuple(every if self.tasks is None else sorted(self.tasks, key=every.index))

    @property
    def chosen_post_processing(self) -> tuple[str, ...]:
        """Names of the post-processings to run."""
        if self.post_processing is not None:
            return self.post_processing
        return tuple(self.protocol.post_processing.get("choices", POST_PROCESSINGS))

    @property
    def chosen_seeds(self) -> range:
        """Seeds to run."""
        return range(self.protocol.seeds if self.seeds is None else self.seeds)

    @property
    def chosen_min_counts(self) -> float | None:
        """Samples with a total count at or below it are dropped."""
        if self.min_counts is not None:
            return self.min_counts
        value: float | None = self.protocol.quality_control.get("min_counts", 0)
        return value

    @property
    def chosen_baselines(self) -> tuple[str, ...]:
        """The floors and ceilings to be added."""
        if not self.baseline:
            return ()
        return tuple(self.protocol.baselines) if self.baselines is None else self.baselines

    @property
    def chosen_embeddings(self) -> tuple[EmbeddingSpec, ...]:
        """The embeddings, after the floors and ceilings to be added, with `positional` where it holds."""
        asked = [
            dataclasses.replace(spec, options={**spec.options, "positional": True})
            if self.positional and is_precomputed(spec.source)
            else spec
            for spec in self.embeddings
        ]
        there = {spec.source for spec in asked}
        added = [baseline_spec(text) for text in self.chosen_baselines]
        return (*(spec for spec in added if spec.source not in there), *asked)

    @property
    def place(self) -> Place | None:
        """The cluster to compute on; None: this machine."""
        if self.executor == "local":
            return None
        from txeval.run.cluster import check_place

        return check_place(self.scheduler, self.cluster)

    def post_params(self, name: str) -> dict[str, Any]:
        """All parameters of one post-processing, under the protocol."""
        return post_params(name, self.protocol.post_processing)

    def task_params(self, task: Task) -> Params:
        """Parameters of one task, under the protocol."""
        where = f"protocol {self.protocol.name}, task {task.name}"
        return task_params(task, self.protocol.tasks.get(task.name, {}), where=where)

    def to_dict(self, protocol: str | None = None) -> dict[str, Any]:
        """Plain data that `build_config` would read back; paths are absolute.

        Parameters
        ----------
        protocol
            Name or file that stands for the protocol; None for its name.
        """
        made: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "roles":
                value = {key: list(item) if isinstance(item, tuple) else item for key, item in vars(value).items()}
                value = {key: item for key, item in value.items() if item not in (None, [])}
            elif field.name == "protocol":
                value = protocol or value.name
            elif field.name == "embeddings":
                value = [
                    {
                        "label": spec.label,
                        "source": rebase(spec, Path.cwd()).source,
                        **({"options": dict(spec.options)} if spec.options else {}),
                    }
                    for spec in value
                ]
            elif isinstance(value, Path):
                value = str(value.absolute())
            elif isinstance(value, tuple):
                value = list(value)
            if value is not None:
                made[field.name] = value
        return made


def baseline_spec(text: str) -> EmbeddingSpec:
    """The embedding of a floor or a ceiling.

    Raises
    ------
    InputError
        It is the name of neither.
    """
    spec = parse_spec(text)
    role = "" if is_precomputed(spec.source) else resolve(spec).info.role
    if not role:
        known = [info.name for info in list_embedders() if info.role]
        raise unknown("floor or ceiling", spec.source, known, where="baselines")
    if role == "ceiling" and spec.label == spec.source:
        return dataclasses.replace(spec, label=f"replicate ceiling ({spec.options.get('of', 'pca')})")
    return spec


def load_config(path: Path | None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read what a run is asked to do.

    Parameters
    ----------
    path
        YAML file with the names of `RunConfig`; `roles:` holds the roles. Relative paths in it are relative to
        the file. None: everything comes from `overrides`.
    overrides
        Same names; entries that are None count as not given. They replace what the file says; roles one by one.
        Relative paths are relative to the current folder.

    Raises
    ------
    InputError
        For a file that cannot be read, an unknown name (with the nearest), a value of another kind, or values
        that contradict each other.
    """
    content = _read_yaml(Path(path)) if path is not None else {}
    if path is not None:
        content = _anchor_paths(_normal(content, str(path)), Path(path).absolute().parent)
    given = _normal({key: value for key, value in (overrides or {}).items() if value is not None}, "the arguments")
    roles = dict(content.get("roles", {}))
    changed = {key: value for key, value in given.pop("roles", {}).items() if value not in (None, (), [])}
    for one, other in (("control", "control_column"), ("control_column", "control")):
        if one in changed and other not in changed:
            roles.pop(other, None)
    if given.keys() & {"scheduler", "cluster"} or given.get("executor") == "local":
        # What the file says of another place does not fit to it.
        content = {key: value for key, value in content.items() if key not in ("executor", "scheduler", "cluster")}
    merged = {**content, **given, "roles": {**roles, **changed}}
    return build_config(merged, where=str(path) if path is not None else "")


def build_config(values: Mapping[str, Any], *, where: str = "") -> RunConfig:
    """Make a run's configuration from plain data, and check it.

    Parameters
    ----------
    values
        Names of `RunConfig`; embeddings as text or as label / source / options, the protocol as name or file.
    where
        What to call the source of the values in messages.

    Raises
    ------
    InputError
        See `load_config`.
    """
    values = _normal(values, where)
    place = f"{where}: " if where else ""
    for needed, remedy in (
        ("screen", "give the file of the screen (.h5ad or .zarr)"),
        ("embeddings", "give at least one embedding: pca, obsm:KEY, or a file"),
    ):
        if values.get(needed) is None:
            raise InputError(f"{place}{needed} is missing", remedy=remedy)
    protocol = values.get("protocol", "paper")
    if "executor" not in values and ("scheduler" in values or "cluster" in values):
        values["executor"] = "dask"
    config = RunConfig(
        screen=Path(values["screen"]).expanduser(),
        roles=_roles(values.get("roles", {}), place),
        embeddings=_embeddings(values["embeddings"], place),
        protocol=protocol if isinstance(protocol, Protocol) else load_protocol(str(Path(protocol).expanduser())),
        **{key: value for key, value in values.items() if key not in ("screen", "roles", "embeddings", "protocol")},
    )
    check_config(config)
    return config


def check_config(config: RunConfig) -> None:
    """Check everything that can be said without opening the screen.

    Raises
    ------
    InputError
        For unknown names, numbers out of range, things named twice, and contradictions.
    """
    _check_embeddings(config)
    _check_names("task", config.tasks, [task.name for task in list_tasks()])
    _check_names("post-processing", config.post_processing, POST_PROCESSINGS)
    if config.scale is not None and config.scale not in SCALES:
        raise unknown("scale", config.scale, SCALES)
    if config.overwrite not in OVERWRITE:
        raise unknown("overwrite policy", config.overwrite, OVERWRITE)
    for name, value, low in (
        ("seeds", config.seeds, 1),
        ("retries", config.retries, 0),
        ("workers", None if config.workers == "auto" else config.workers, 1),
        ("max_memory", config.max_memory, 1),
        ("max_elements", config.max_elements, 1),
        ("min_counts", config.min_counts, 0),
    ):
        if value is not None and not value >= low:
            raise InputError(f"{name} is {value}", remedy=f"use {low} or more")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise InputError(f"device is {config.device!r}", remedy="use auto, cpu, cuda or cuda:0 (or another number)")
    _check_executor(config)
    _check_protocol(config)
    if config.relations is not None and not config.relations.exists():
        raise InputError(
            f"relations: there is no folder {config.relations}",
            remedy="give a folder of files NAME.txt with two columns of gene names, or leave it out",
        )
    if config.out is not None:
        check_destination(config.out, folder=True)


def _check_executor(config: RunConfig) -> None:
    if config.executor not in EXECUTORS:
        raise unknown("executor", config.executor, EXECUTORS)
    if config.executor == "local":
        for name in ("scheduler", "cluster"):
            if getattr(config, name) is not None:
                raise InputError(
                    f"{name} is given, and executor is 'local'", remedy=f"use executor dask, or leave {name} out"
                )
        return
    if config.workers != 1:
        raise InputError(
            f"workers is {config.workers}, and executor is 'dask': the cluster has its own number of workers",
            remedy="leave workers out; a cluster file says how many to start",
        )
    _ = config.place


def _check_embeddings(config: RunConfig) -> None:
    if not config.embeddings:
        raise InputError("no embedding is given", remedy="give at least one: pca, obsm:KEY, or a file")
    baselines = [spec for spec in config.embeddings if spec.source == RANDOM]
    if len(baselines) > 1:
        raise InputError(
            f"the embedding {RANDOM} is requested {len(baselines)} times: {', '.join(s.label for s in baselines)}",
            remedy="name it once; it is the baseline of the whole run",
        )
    counts = Counter(spec.label for spec in config.chosen_embeddings)
    for label, count in counts.items():
        if not label.strip():
            raise InputError("an embedding has an empty label", remedy="write LABEL=SOURCE")
        if count > 1:
            sources = ", ".join(spec.source for spec in config.chosen_embeddings if spec.label == label)
            raise InputError(
                f"{count} embeddings have the label {label!r}: {sources}",
                remedy="give each its own: LABEL=SOURCE" + (", or leave the baseline out" if label == RANDOM else ""),
            )
    for spec in config.embeddings:
        resolve(spec)


def _check_names(kind: str, names: Sequence[str] | None, known: Sequence[str]) -> None:
    if names is None:
        return
    if not names:
        raise InputError(f"no {kind} is chosen", remedy=f"choose some of {', '.join(known)}, or leave it out for all")
    for name, count in Counter(names).items():
        if name not in known:
            raise unknown(kind, name, known)
        if count > 1:
            raise InputError(f"the {kind} {name} is named {count} times", remedy="name it once")


def _check_protocol(config: RunConfig) -> None:
    protocol = config.protocol
    where = f"protocol {protocol.name}"
    for name in protocol.tasks:
        if name not in {task.name for task in list_tasks()}:
            raise unknown("task", name, [task.name for task in list_tasks()], where=where)
        config.task_params(get_task(name))
    for name, value in protocol.post_processing.items():
        place = f"{where}, section post_processing"
        if name == "choices":
            if not isinstance(value, list) or not value:
                raise InputError(f"{place}: choices is {value!r}", remedy=f"list some of {', '.join(POST_PROCESSINGS)}")
            _check_names("post-processing", [str(item) for item in value], POST_PROCESSINGS)
            continue
        if name not in POST_PROCESSINGS:
            raise unknown("post-processing", name, [*POST_PROCESSINGS, "choices"], where=place)
        if not isinstance(value, Mapping):
            raise InputError(f"{place}: {name} is {value!r}", remedy="give its parameters as name: value lines")
        known = _POST_PARAMS.get(name, {})
        for key, item in value.items():
            if key not in known:
                raise unknown("parameter", str(key), known, where=f"{place}, {name}")
            if not (isinstance(item, bool) if isinstance(known[key], bool) else _is_number(item)):
                remedy = "give true or false" if isinstance(known[key], bool) else "give a number"
                raise InputError(f"{place}: {name}.{key} is {item!r}", remedy=remedy)
    shrinkage = config.post_params("tvn")["shrinkage"]
    if not shrinkage > 0:
        raise InputError(f"{where}: tvn.shrinkage is {shrinkage}", remedy="give a number above 0")
    min_counts = protocol.quality_control.get("min_counts", 0)
    if min_counts is not None and not (_is_number(min_counts) and min_counts >= 0):
        raise InputError(f"{where}: quality_control.min_counts is {min_counts!r}", remedy="give 0 or a number above")


def _roles(values: Mapping[str, Any], place: str) -> Roles:
    if not values.get("perturbation"):
        raise InputError(
            f"{place}roles: perturbation is missing",
            remedy="name the column of obs that says what was done to each sample",
        )
    return Roles(**values)


def _embeddings(values: Any, place: str) -> tuple[EmbeddingSpec, ...]:
    made = []
    for value in values:
        if isinstance(value, EmbeddingSpec):
            made.append(value)
        elif isinstance(value, str):
            made.append(parse_spec(value))
        elif isinstance(value, Mapping):
            for key in value:
                if key not in ("label", "source", "options"):
                    raise unknown("key", str(key), ("label", "source", "options"), where=f"{place}embeddings")
            source, options = value.get("source"), value.get("options") or {}
            if not isinstance(source, str) or not source:
                raise InputError(f"{place}embeddings: {dict(value)!r} has no source", remedy="add source: pca, ...")
            if not isinstance(options, Mapping):
                raise InputError(f"{place}embeddings: options is {options!r}", remedy="give name: value lines")
            made.append(EmbeddingSpec(str(value.get("label") or source), source, dict(options)))
        else:
            raise InputError(
                f"{place}embeddings: {value!r} is a {type(value).__name__}",
                remedy="write each as LABEL=SOURCE, or as label:, source: and options:",
            )
    return tuple(made)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"there is no file {path}", remedy="give a YAML file that describes the run")
    content = read_yaml(path, "")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings", remedy=f"use the names {', '.join(_KINDS)}")
    return content


def _anchor_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    made = dict(content)
    for name in ("screen", "labels", "out", "relations", "cluster"):
        if name in made:
            made[name] = folder / Path(made[name]).expanduser()
    protocol = made.get("protocol")
    if isinstance(protocol, str) and protocol not in list_protocols() and Path(protocol).suffix in {".yaml", ".yml"}:
        made["protocol"] = str(folder / Path(protocol).expanduser())
    if "embeddings" in made:
        specs = _embeddings(made["embeddings"], "")
        made["embeddings"] = [rebase(spec, folder) for spec in specs]
    return made


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    # YAML 1.1 reads 1e3 as text: only 1.0e+3 is a number there.
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        value = float(value)
    return value if _is_number(value) and value == value else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and float(number).is_integer() else None


def _workers(value: Any) -> int | str | None:
    return value if value == "auto" else _whole(value)


def _size(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    try:
        return parse_size(value)
    except InputError:
        return None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    if isinstance(value, str) and value:
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _path(value: Any) -> Path | None:
    if isinstance(value, Path):
        return value
    return Path(value).expanduser() if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        return None
    made = [_text(item) for item in value]
    return tuple(item for item in made if item is not None) if None not in made else None


def _specs(value: Any) -> Any:
    if isinstance(value, (str, EmbeddingSpec)) or (isinstance(value, Mapping) and "source" in value):
        return [value]
    return list(value) if isinstance(value, (list, tuple)) else None


def _protocol(value: Any) -> Any:
    return value if isinstance(value, Protocol) else (_text(value) if not isinstance(value, Path) else str(value))


def _role_values(value: Any) -> Any:
    if isinstance(value, Roles):
        value = {key: item for key, item in vars(value).items() if item not in (None, ())}
    return dict(value) if isinstance(value, Mapping) else None


#: Name -> (reader that gives None for what does not fit, what does fit).
_KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "screen": (_path, "a path"),
    "roles": (_role_values, "lines such as perturbation: COLUMN"),
    "labels": (_path, "a path"),
    "layer": (_text, "a name"),
    "scale": (_text, "one of " + ", ".join(SCALES)),
    "name": (_text, "a name"),
    "embeddings": (_specs, "a list of embeddings"),
    "protocol": (_protocol, "the name or the YAML file of a protocol"),
    "tasks": (_texts, "a list of tasks"),
    "post_processing": (_texts, "a list of post-processings"),
    "seeds": (_whole, "a whole number"),
    "min_counts": (_number, "a number"),
    "out": (_path, "a path"),
    "relations": (_path, "a path"),
    "workers": (_workers, "a whole number, or auto"),
    "max_memory": (_size, "a size such as 2GiB, 16GB or 500M"),
    "device": (_text, "auto, cpu, cuda or cuda:N"),
    "executor": (_text, "one of " + ", ".join(EXECUTORS)),
    "scheduler": (_text, "an address such as tcp://HOST:8786"),
    "cluster": (_path, "a path"),
    "retries": (_whole, "a whole number"),
    "overwrite": (_text, "one of " + ", ".join(OVERWRITE)),
    "baseline": (_flag, "true or false"),
    "baselines": (_texts, "a list of floors and ceilings"),
    "positional": (_flag, "true or false"),
    "max_elements": (_whole, "a whole number"),
}


def _normal(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of the right types; InputError for a name or a value that does not fit."""
    place = f"{where}: " if where else ""
    roles = [field.name for field in dataclasses.fields(Roles)]
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in _KINDS:
            if key in roles:
                raise InputError(f"{place}{key} stands at the top level", remedy=f"put it under roles:, as {key}: ...")
            raise unknown("setting", str(key), _KINDS, where=where)
        if value is None:
            continue
        reader, fits = _KINDS[key]
        made[key] = reader(value)
        if made[key] is None:
            raise InputError(f"{place}{key} is {value!r}", remedy=f"give {fits}")
    if "roles" in made:
        made["roles"] = _normal_roles(made["roles"], roles, where)
    return made


_ROLE_KINDS = {"control": "one or several labels", "exclude": "one or several labels", "separator": "a character"}


def _normal_roles(values: Mapping[str, Any], known: Sequence[str], where: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise unknown("role", str(key), known, where=where)
        if value is None:
            continue
        made[key] = _texts(value) if key in ("control", "exclude") else _text(value)
        if made[key] is None:
            fits = _ROLE_KINDS.get(key, "the name of a column")
            raise InputError(f"{where + ': ' if where else ''}roles: {key} is {value!r}", remedy=f"give {fits}")
    return made
