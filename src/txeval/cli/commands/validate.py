"""`txeval validate`: what a run would do, and what is odd about it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from txeval.cli.base import Command, output_console
from txeval.cli.options import add_run_options, config_from

if TYPE_CHECKING:
    from rich.console import Console

    from txeval.run.plan import Plan

__all__ = ["COMMAND", "describe"]


def _run(args: argparse.Namespace) -> int:
    from txeval.run import make_plan

    plan = make_plan(config_from(args, for_run=False))
    describe(plan, output_console(plain=args.plain))
    return 0


def describe(plan: Plan, console: Console) -> None:
    """Print what a plan would compute from what."""
    from rich.table import Table
    from rich.text import Text

    from txeval.cli.forecast import counted, forecast
    from txeval.text import clean

    about = plan.describe()
    screen, samples = about["screen"], about["samples"]

    def section(title: str, rows: list[tuple[str, str]]) -> None:
        console.print(Text(title, style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 1))
        for name, text in rows:
            table.add_row(Text(clean(name)), Text(clean(text)))
        console.print(table)
        console.print()

    section(
        f"Screen {clean(about['dataset'])}",
        [
            ("file", screen["path"]),
            ("samples", f"{samples['n']:,} of {screen['n_file']:,} in the file"),
            *[("  dropped", f"{count:,}: {reason}") for reason, count in screen["report"]["dropped"].items()],
            ("genes", f"{screen['n_genes']:,}"),
            ("perturbations", f"{samples['perturbations']:,}"),
            ("controls", f"{samples['controls']:,}"),
            ("batches", f"{samples['batches']:,}"),
            ("values", f"{screen['scale']} ({screen['scale_note']})"),
            ("quality control", str(screen["report"].get("quality_control", ""))),
        ],
    )
    section(
        f"Splits ({about['split']['id']})",
        [(name, _split_text(part)) for name, part in about["split"]["parts"].items()],
    )
    section("Embeddings", [(entry["label"], _embedding_text(entry, plan)) for entry in about["embeddings"]])
    facts = forecast(plan)
    section(
        f"Levels (protocol {about['protocol']['name']})",
        [
            (f"{task['level']} {name}", f"{facts[name]} [{counted(about['cells_per_task'][name], 'cell')}]".strip())
            for name, task in about["tasks"].items()
        ],
    )
    posts, seeds = ", ".join(about["post_processing"]), len(about["seeds"])
    console.print(
        Text(f"{about['cells']:,} cells: post-processings {posts}; {seeds} seeds for what depends on one"), style="bold"
    )
    if about["warnings"]:
        console.print()
        section("Odd", [("-", warning) for warning in about["warnings"]])
    else:
        console.print("Nothing odd was found.")


def _split_text(part: dict[str, Any]) -> str:
    from txeval.cli.forecast import counted

    of = f"{counted(part['batches'], 'batch', 'batches')}, {counted(part['perturbations'], 'perturbation')}"
    return f"{counted(part['samples'], 'sample')}, {part['controls']:,} of them controls; {of}"


def _embedding_text(entry: dict[str, Any], plan: Plan) -> str:
    from txeval.embed import check_options, resolve
    from txeval.embed.spec import is_precomputed

    source = entry["source"]
    options = ", ".join(f"{name}={value}" for name, value in entry["options"].items())
    facts = [source if source != entry["label"] else "", options]
    if is_precomputed(source):
        spec = next(job.spec for job in plan.embeddings if job.spec.label == entry["label"])
        embedder = resolve(spec)
        found = embedder.fingerprint(plan.screen, check_options(embedder.info, spec.options, label=spec.label))
        n, d = found["shape"]
        facts += ["precomputed", f"{n:,} x {d:,}"]
    else:
        facts += ["made by txeval", "one per seed" if entry["stochastic"] else ""]
    return ", ".join(fact for fact in facts if fact)


COMMAND = Command(
    name="validate",
    summary="say what a run would do, what is wrong and what is odd; writes nothing",
    description="Opens the screen and every embedding, and prints what `txeval run` with the same arguments "
    "would compute: samples, splits, embeddings, what each level has to work with, and whatever is odd.",
    configure=add_run_options,
    run=_run,
    position=30,
)
