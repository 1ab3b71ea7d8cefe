"""Every parameter of a protocol, the defaults of the tasks included, and where two protocols differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from txeval.protocol import Protocol

__all__ = ["differences", "effective", "flat"]


def effective(protocol: Protocol) -> dict[str, Any]:
    """Give a protocol as plain data with every parameter of every task, as a YAML file could state it."""
    from txeval.tasks.registry import list_tasks, task_params

    content = protocol.to_dict()
    content["tasks"] = {
        task.name: _plain(dataclasses.asdict(task_params(task, protocol.tasks.get(task.name, {}))))
        for task in list_tasks()
    }
    return content


def differences(protocols: Sequence[Protocol]) -> list[tuple[str, list[Any]]]:
    """Parameters on which protocols differ: dotted name, then the value in each of them."""
    values_of = [flat(effective(protocol)) for protocol in protocols]
    names = list(dict.fromkeys(name for values in values_of for name in values))
    rows = [(name, [values.get(name) for values in values_of]) for name in names if name not in ("name", "description")]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested parameters by dotted name."""
    out: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            out.update(flat(value, f"{prefix}{name}."))
        else:
            out[f"{prefix}{name}"] = value
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
