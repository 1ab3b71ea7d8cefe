"""Finds tasks and metrics: modules of this package and the entry points of other packages."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import typing
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from txeval.errors import InputError, unknown
from txeval.tasks.base import Metric, Params, Task

__all__ = ["get_task", "list_tasks", "metrics_of", "task_params"]

TASK_GROUP = "txeval.tasks"
METRIC_GROUP = "txeval.metrics"


@cache
def _tasks() -> dict[str, Task]:
    found: dict[str, Task] = {}
    package = importlib.import_module("txeval.tasks")
    for info in pkgutil.iter_modules(package.__path__):
        task = getattr(importlib.import_module(f"txeval.tasks.{info.name}"), "TASK", None)
        if isinstance(task, Task):
            found[task.name] = task
    for entry in entry_points(group=TASK_GROUP):
        task = entry.load()
        if not isinstance(task, Task):
            raise InputError(f"entry point {entry.name!r} ({entry.value}) is not a txeval.tasks.Task")
        found[task.name] = task
    return dict(sorted(found.items(), key=lambda item: (item[1].level, item[0])))


@cache
def _plugin_metrics() -> tuple[Metric, ...]:
    found = []
    for entry in entry_points(group=METRIC_GROUP):
        metric = entry.load()
        if not isinstance(metric, Metric):
            raise InputError(f"entry point {entry.name!r} ({entry.value}) is not a txeval.tasks.Metric")
        found.append(metric)
    return tuple(found)


def list_tasks() -> list[Task]:
    """Every task, in the order of the levels."""
    return list(_tasks().values())


def get_task(name: str) -> Task:
    """The task of a name; InputError with the nearest names where there is none."""
    try:
        return _tasks()[name]
    except KeyError:
        raise unknown("task", name, _tasks()) from None


def metrics_of(task: Task, params: Params | None = None) -> tuple[Metric, ...]:
    """Metrics of a task: its own, then those that other packages add; with parameters those that they ask for."""
    found = (*task.metrics, *(metric for metric in _plugin_metrics() if metric.task == task.name))
    if params is None:
        return found
    return tuple(metric for metric in found if metric.asked is None or metric.asked(params))


def task_params(task: Task, values: Mapping[str, Any], *, where: str = "") -> Params:
    """Build a task's parameters from a mapping.

    Raises
    ------
    InputError
        For a name that is not a parameter (with the nearest) or a value of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(task.params)}
    hints = typing.get_type_hints(task.params)
    place = where or f"task {task.name}"
    for name, value in values.items():
        if name not in fields:
            raise unknown("parameter", name, fields, where=place)
        if not _fits(value, hints[name]):
            raise InputError(
                f"{place}: parameter {name} is {value!r}, a {type(value).__name__}",
                remedy=f"give a value of type {_type_name(hints[name])}",
            )
    converted = {name: _convert(value, hints[name]) for name, value in values.items()}
    try:
        return task.params(**converted)
    except ValueError as why:
        raise InputError(f"{place}: {why}") from None


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        return isinstance(value, (list, tuple)) and all(_fits(item, inner) for item in value)
    if origin is not None or not isinstance(hint, type):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _convert(value: Any, hint: Any) -> Any:
    if hint is float:
        return float(value)
    if isinstance(value, list):
        return tuple(value)
    return value


def _type_name(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if isinstance(hint, type) and origin is None:
        return "nothing" if hint is type(None) else hint.__name__
    if origin is tuple:
        return f"list of {_type_name(typing.get_args(hint)[0])}"
    return " or ".join(_type_name(part) for part in typing.get_args(hint))
