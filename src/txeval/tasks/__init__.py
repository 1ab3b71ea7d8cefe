"""The levels of the benchmark: one file each, found by their registry."""

from txeval.tasks.base import Metric, Params, Prepared, Samples, Score, Task, TaskInputs, TaskResult, run_task
from txeval.tasks.registry import get_task, list_tasks, task_params

__all__ = [
    "Metric",
    "Params",
    "Prepared",
    "Samples",
    "Score",
    "Task",
    "TaskInputs",
    "TaskResult",
    "get_task",
    "list_tasks",
    "run_task",
    "task_params",
]
