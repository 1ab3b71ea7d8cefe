"""Protocols: every parameter of the benchmark, as data in YAML files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from txeval.errors import InputError, unknown

__all__ = ["ABOUT", "CHOICES", "Protocol", "list_protocols", "load_protocol", "parse_yaml", "read_yaml"]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


#: A settings file is no data: more than this is a mistake, or meant to take all memory.
_MOST_BYTES = 2**20


def parse_yaml(text: str) -> Any:
    """Read one YAML document as plain data; raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file that a user wrote, as plain data whose keys are names.

    Parameters
    ----------
    what
        What to call it in messages, with the blank behind it: "protocol file ".

    Raises
    ------
    InputError
        It cannot be read: no UTF-8 text, no YAML, larger than 1 MiB, nested too deep, a number too long, or a key that
        is no name.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes; no settings take more than {_MOST_BYTES:,}")
        content = parse_yaml(path.read_text(encoding="utf-8"))
        _check_keys(content)
    # Deep nesting and cycles through aliases are a RecursionError, and a number of too many digits a ValueError.
    except RecursionError:
        raise InputError(f"{what}{path} is not YAML that can be used: it is nested too deep") from None
    except (yaml.YAMLError, ValueError) as why:
        raise InputError(f"{what}{path} is not YAML: {why}", remedy="write lines of the form name: value") from None
    except OSError as why:
        raise InputError(f"{what}{path} cannot be read: {why.strerror}", remedy="check the file") from None
    return content


def _check_keys(content: Any) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            # YAML reads the names null and true as what they mean.
            if not isinstance(key, (str, bool, type(None))):
                raise ValueError(f"the key {str(key)[:40]} is a {type(key).__name__}, no name")
            _check_keys(value)
    elif isinstance(content, list):
        for value in content:
            _check_keys(value)


_SECTIONS = {
    "name": str,
    "extends": str,
    "description": str,
    "quality_control": dict,
    "split": dict,
    "seeds": int,
    "post_processing": dict,
    "tasks": dict,
    "choice": str,
    "headline": dict,
    "baselines": list,
}

#: Sections that say what is run and shown, and determine no score.
ABOUT: tuple[str, ...] = ("name", "description", "seeds", "choice", "headline", "baselines")

#: How the post-processing of a model is chosen for the summary.
CHOICES: tuple[str, ...] = ("best", "cross_fitted")


@dataclass(frozen=True)
class Protocol:
    """A named set of parameters.

    Attributes
    ----------
    quality_control
        `min_counts`: samples with a total raw count at or below it are dropped.
    split
        `scheme` ("paper" or "reference"), `seed`, `train_fraction`.
    seeds
        Number of seeds, 0 .. seeds - 1.
    post_processing
        `choices` and the parameters of each choice.
    tasks
        Task name -> its parameters; absent ones keep the task's default.
    choice
        "best": the best post-processing on the numbers that are reported; "cross_fitted": chosen on one half of the
        units, reported on the other, and the halves swapped.
    headline
        Task name -> metrics of the summary table; absent tasks show those that they mark themselves.
    baselines
        Embedders of floors and ceilings that are added to every run.
    """

    name: str
    description: str = ""
    quality_control: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 5
    post_processing: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    choice: str = "best"
    headline: Mapping[str, Sequence[str]] = field(default_factory=dict)
    baselines: Sequence[str] = ("random",)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `load_protocol` would read back."""
        return {
            "name": self.name,
            "description": self.description,
            "quality_control": dict(self.quality_control),
            "split": dict(self.split),
            "seeds": self.seeds,
            "post_processing": dict(self.post_processing),
            "tasks": {name: dict(params) for name, params in self.tasks.items()},
            "choice": self.choice,
            "headline": {name: list(metrics) for name, metrics in self.headline.items()},
            "baselines": list(self.baselines),
        }

    @property
    def fingerprint(self) -> str:
        """Digest of every parameter (not of the name or the description)."""
        content = {key: value for key, value in self.to_dict().items() if key not in ("name", "description")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def list_protocols() -> list[str]:
    """Names of the protocols that ship with the package."""
    folder = resources.files("txeval") / "protocols"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_protocol(source: str | Path) -> Protocol:
    """Load a protocol by name or from a YAML file, with what it extends.

    Raises
    ------
    InputError
        For a name or file that does not exist, YAML that does not parse, or a section that is none.
    """
    return _build(_resolve(str(source), ()))


def _resolve(source: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if source in seen:
        raise InputError(f"protocols extend each other in a circle: {' -> '.join([*seen, source])}")
    content, where = _read(source)
    for key, value in content.items():
        if key not in _SECTIONS:
            raise unknown("section", str(key), _SECTIONS, where=where)
        if not isinstance(value, _SECTIONS[key]) or isinstance(value, bool):
            raise InputError(f"{where}: section {key} is {value!r}", remedy=f"it must be a {_SECTIONS[key].__name__}")
    for name, params in content.get("tasks", {}).items():
        if not isinstance(params, dict):
            raise InputError(f"{where}: tasks: {name} is {params!r}", remedy="give its parameters as name: value lines")
    parent = content.get("extends")
    if parent is None:
        return content
    # A parent's file is looked for beside the file that extends it.
    is_file = Path(parent).suffix in {".yaml", ".yml"}
    base_source = str(Path(where).parent / parent) if is_file else parent
    return _merge(_resolve(base_source, (*seen, source)), content)


def _read(source: str) -> tuple[dict[str, Any], str]:
    path = Path(source)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise InputError(f"protocol file {source} does not exist", remedy="give a YAML file or a protocol's name")
        content, where = read_yaml(path, "protocol file "), str(path)
    else:
        if source not in list_protocols():
            raise unknown("protocol", source, list_protocols())
        text, where = (resources.files("txeval") / "protocols" / f"{source}.yaml").read_text("utf-8"), source
        content = parse_yaml(text)
    content = _null_as_text(content)
    if not isinstance(content, dict):
        raise InputError(f"protocol file {where} holds no sections", remedy=f"use sections {', '.join(_SECTIONS)}")
    content.setdefault("name", Path(where).stem)
    return content, where


def _null_as_text(value: Any) -> Any:
    """Parameters called `null`, which YAML reads as nothing, under their name."""
    if not isinstance(value, dict):
        return value
    return {"null" if key is None else key: _null_as_text(item) for key, item in value.items()}


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        merged[key] = _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged


def _build(content: dict[str, Any]) -> Protocol:
    content.pop("extends", None)
    protocol = Protocol(**content)
    allowed = {
        "quality_control": {"min_counts"},
        "split": {"scheme", "seed", "train_fraction"},
    }
    for section, names in allowed.items():
        for key in getattr(protocol, section):
            if key not in names:
                raise unknown("parameter", str(key), names, where=f"protocol {protocol.name}, section {section}")
    if protocol.choice not in CHOICES:
        raise unknown("choice of post-processing", protocol.choice, CHOICES, where=f"protocol {protocol.name}")
    for task, metrics in protocol.headline.items():
        if not isinstance(metrics, list) or not all(isinstance(name, str) for name in metrics):
            raise InputError(
                f"protocol {protocol.name}, section headline: {task} is {metrics!r}", remedy="list names of metrics"
            )
    if not all(isinstance(name, str) for name in protocol.baselines):
        raise InputError(
            f"protocol {protocol.name}: baselines is {list(protocol.baselines)!r}", remedy="list names of embedders"
        )
    if protocol.seeds < 1:
        raise InputError(f"protocol {protocol.name}: seeds is {protocol.seeds}", remedy="use at least one seed")
    return protocol
