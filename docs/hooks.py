"""Fills the parts of the documentation that come from the program, so that they cannot drift from it.

A page holds a line such as `{{ levels }}`; the function of that name gives what stands there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from txeval.cli import build_parser
from txeval.cli.base import find_commands
from txeval.embed import list_embedders
from txeval.embed.cards import SUPPORT, list_models
from txeval.protocol import list_protocols, load_protocol
from txeval.report.parameters import differences, effective
from txeval.run.rows import DESCRIPTIONS
from txeval.tasks.registry import list_tasks, metrics_of, task_params


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"^\{\{ (\w+) \}\}$", lambda match: GENERATED[match[1]](), markdown, flags=re.MULTILINE)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _bound(value: float) -> str:
    return "∞" if value == float("inf") else "-∞" if value == float("-inf") else f"{value:g}"


def levels() -> str:
    parts = []
    for task in list_tasks():
        metrics = [
            [
                f"`{metric.name}`" + (" **(summary)**" if metric.headline else ""),
                metric.label,
                metric.summary,
                "higher" if metric.higher_is_better else "lower",
                f"{_bound(metric.low)} to {_bound(metric.high)}",
            ]
            for metric in metrics_of(task)
        ]
        params = [[f"`{name}`", f"`{json.dumps(value)}`"] for name, value in vars(task_params(task, {})).items()]
        needs = [text for text, needed in _NEEDS if needed(task)]
        parts += [
            f"## Level {task.level}: {task.title} (`{task.name}`)",
            f"*{task.question}*",
            f"What it cannot tell: {task.limits}",
            *([f"Needs {' and '.join(needs)}."] if needs else []),
            _table(["metric", "title", "what it is", "better", "range"], metrics),
            "Parameters and their defaults (protocol `paper`):",
            _table(["parameter", "default"], params),
        ]
    return "\n\n".join(parts)


_NEEDS: list[tuple[str, Callable[[Any], bool]]] = [
    ("the expression matrix", lambda task: task.needs_expression),
    ("the databases of known relationships", lambda task: task.needs_relations),
]


def embedders() -> str:
    parts = []
    for info in list_embedders():
        parts += [f"### `{info.name}`", info.summary]
        facts = [f"Needs {info.needs}." if info.needs else "", f"Licence: {info.licence}." if info.licence else ""]
        parts += [fact for fact in [*facts, info.citation] if fact]
        if info.stochastic:
            parts.append("Gives another embedding for each seed.")
        if info.options:
            rows = [[f"`{name}`", f"`{default}`", text] for name, (default, text) in info.options.items()]
            parts.append(_table(["option", "default", "what it does"], rows))
    return "\n\n".join(parts)


def models() -> str:
    parts = []
    for support, meaning in SUPPORT.items():
        chosen = [card for card in list_models() if card.support == support]
        if not chosen:
            continue
        last = "not built in, since" if support == "by command" else "checked against"
        rows = [
            [
                f"`{card.name}`",
                card.summary,
                card.genes,
                card.scale,
                card.dimensions,
                f"{card.licence}. {card.citation}".strip(". "),
                card.why or card.checked,
            ]
            for card in chosen
        ]
        header = ["model", "what it is", "genes", "scale", "dimensions", "licence, citation", last]
        parts += [f"### {support.capitalize()}: {meaning}", _table(header, rows)]
    return "\n\n".join(parts)


def protocol_differences() -> str:
    protocols = [load_protocol(name) for name in list_protocols()]
    rows = [[f"`{name}`", *(f"`{json.dumps(v)}`" for v in values)] for name, values in differences(protocols)]
    return _table(["parameter", *(f"`{protocol.name}`" for protocol in protocols)], rows)


def parity() -> str:
    """Every parameter in which a protocol differs, with the reason."""
    protocols = [load_protocol(name) for name in PARITY]
    reasons = parity_reasons()
    rows = []
    for name, values in differences(protocols):
        if name.startswith("headline."):
            continue
        rows.append([f"`{name}`", *(f"`{json.dumps(value)}`" for value in values), reasons.get(name, "")])
    rows.append(["`headline`", "as the metrics say", "as the metrics say", "see the file", reasons.get("headline", "")])
    return _table(["parameter", *(f"`{name}`" for name in PARITY), "why"], rows)


#: Protocols of the parity page, in the order of its columns.
PARITY = ("paper", "reference", "corrected")


def parity_reasons() -> dict[str, str]:
    """Parameter (or section) -> why protocols differ in it."""
    import yaml

    path = Path(__file__).with_name("parity_reasons.yaml")
    return {str(name): str(why).strip() for name, why in yaml.safe_load(path.read_text(encoding="utf-8")).items()}


def parity_effects() -> str:
    return _result("parity.md")


def ranking_results() -> str:
    return _result("ranking.md")


def probe_solvers() -> str:
    """The part of the results on all screens together."""
    text = _result("probe_solvers.md")
    start = text.index("### All")
    return text[start : text.index("### ", start + 4)].partition("\n")[2].strip()


def _result(name: str) -> str:
    """A table of benchmarks/results without its title, its headings one level down."""
    path = Path(__file__).parents[1] / "benchmarks" / "results" / name
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines).strip()


def protocol_paper() -> str:
    import yaml

    return f"```yaml\n{yaml.safe_dump(effective(load_protocol('paper')), sort_keys=False, width=100)}```"


def columns() -> str:
    return _table(["column", "what it holds"], [[f"`{name}`", text] for name, text in DESCRIPTIONS.items()])


def commands() -> str:
    parser = build_parser()
    parts = [f"```text\n{parser.format_help()}```"]
    for name in find_commands():
        child = next(action for action in parser._actions if hasattr(action, "choices") and action.choices).choices[
            name
        ]
        parts += [f"## `txeval {name}`", f"```text\n{child.format_help()}```"]
    return "\n\n".join(parts)


def _measured(name: str) -> str:
    """A table of benchmarks/results, as a part of a page."""
    path = Path(__file__).parents[1] / "benchmarks" / "results" / f"{name}.md"
    if not path.is_file():
        return "Not measured yet."
    text = path.read_text(encoding="utf-8").partition("\n")[2]
    text = text.replace("[full_size.md](full_size.md)", "[below](#one-embedding-at-the-size-of-replogle)")
    return re.sub("^## ", "### ", text, flags=re.MULTILINE).strip()


def benchmark_table() -> str:
    return _measured("bench")


def full_size_table() -> str:
    return _measured("full_size")


GENERATED: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        levels,
        embedders,
        models,
        protocol_differences,
        protocol_paper,
        parity,
        parity_effects,
        ranking_results,
        probe_solvers,
        benchmark_table,
        full_size_table,
        columns,
        commands,
    )
}
