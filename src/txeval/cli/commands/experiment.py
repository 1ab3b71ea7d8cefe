"""`txeval experiment`: Figures 1 and 2 of the paper on any screen."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txeval.cli.base import Command, Parser, at_least, one_of, output_console
from txeval.cli.options import add_run_options, config_from
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.embed.base import EmbeddingSpec
    from txeval.run import RunConfig

__all__ = ["COMMAND"]

KINDS = ("likelihood", "scaling")
LIKELIHOODS = ("zinb", "nb", "poisson")
FORMATS = ("svg", "pdf", "png", "none")


def _configure(parser: Parser) -> None:
    parser.add_argument(
        "kind",
        metavar="EXPERIMENT",
        type=one_of("experiment", KINDS),
        help="likelihood (Figure 1 of the paper) or scaling (Figure 2)",
    )
    add_run_options(parser)
    what = parser.add_argument_group("the experiment")
    what.add_argument(
        "--model",
        metavar="[LABEL=]SOURCE[@OPTION=VALUE,...]",
        nargs="+",
        action="extend",
        help="what is trained (default: scvi); scaling: any embedder that learns from the train split, or several",
    )
    what.add_argument(
        "--likelihoods",
        metavar="NAME",
        nargs="+",
        action="extend",
        type=one_of("likelihood", LIKELIHOODS),
        help="likelihood: which of zinb, nb, poisson (default: all three)",
    )
    what.add_argument(
        "--sizes",
        metavar="N",
        nargs="+",
        action="extend",
        type=_size,
        help="scaling: numbers of training samples, or all (default: all, and halves of it down to a sixteenth)",
    )
    what.add_argument(
        "--steps",
        metavar="N",
        type=at_least(1),
        help="scaling: train on about this many minibatches whatever the size (default: the epochs of the model)",
    )
    what.add_argument(
        "--format",
        metavar="FORMAT",
        default="svg",
        type=one_of("format", FORMATS),
        help="of the figure: svg (default), pdf, png or none",
    )


def _size(text: str) -> int:
    """Argument type: a number of samples, or all."""
    if text.lower() == "all":
        return 0
    plain = text.replace(",", "").replace("_", "")
    if not plain.isdigit() or int(plain) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of samples nor 'all'")
    return int(plain)


def _run(args: argparse.Namespace) -> int:
    import dataclasses

    from txeval.cli.commands.run import run_config
    from txeval.embed import parse_spec
    from txeval.run import make_plan, make_progress

    _check(args)
    models = [parse_spec(text) for text in args.model or ["scvi"]]
    others = [parse_spec(text) for text in args.embedding or []]
    # What the screen allows is known once it is open; any embedding will do for that.
    args.embedding = others or ["random"]
    config = config_from(args, for_run=True)
    plan = make_plan(config)
    embeddings = [*_embeddings(args, models, len(plan.splits["train"])), *others]
    config = dataclasses.replace(config, embeddings=tuple(embeddings), tasks=_tasks(config, plan))
    outcome = run_config(config, make_progress(plain=True if args.plain else None))
    _conclude(args, outcome)
    return outcome.exit_status


def _check(args: argparse.Namespace) -> None:
    wrong = {"likelihood": ("sizes", "steps"), "scaling": ("likelihoods",)}[args.kind]
    for name in wrong:
        if getattr(args, name) is not None:
            other = "scaling" if args.kind == "likelihood" else "likelihood"
            raise InputError(f"--{name} is for the experiment {other}", remedy="leave it out")


def _embeddings(args: argparse.Namespace, models: list[EmbeddingSpec], train: int) -> list[EmbeddingSpec]:
    from txeval.run.experiment import default_sizes, likelihood_embeddings, scaling_embeddings

    made: list[EmbeddingSpec] = []
    for model in models:
        if args.kind == "likelihood":
            made += likelihood_embeddings(model, args.likelihoods or LIKELIHOODS)
        else:
            made += scaling_embeddings(model, args.sizes or default_sizes(train), train, steps=args.steps)
    return made


def _tasks(config: RunConfig, plan: Any) -> tuple[str, ...]:
    """Level 5 as in the paper; where the screen is too small for it, the levels that it allows, and said."""
    if config.tasks is not None:
        return config.tasks
    from txeval.cli.forecast import forecast

    told = forecast(plan)
    if "no score" not in told.get("relationships", "no score"):
        return ("relationships",)
    allowed = tuple(name for name, text in told.items() if "no score" not in text)
    output_console(stderr=True).print(
        f"Level 5 has {told['relationships']}; so the levels that the screen allows: {', '.join(allowed)}."
    )
    return allowed


def _conclude(args: argparse.Namespace, outcome: Any) -> None:
    from rich.text import Text

    from txeval import report
    from txeval.cli.commands.figures import write_figures
    from txeval.report.experiments import experiment_grids, likelihood_frame, scaling_frame
    from txeval.run import Store

    console = output_console(plain=args.plain)
    manifest = Store(outcome.folder).manifest()
    scores = report.mark_untrained(outcome.scores)
    make, axis = (likelihood_frame, "likelihood") if args.kind == "likelihood" else (scaling_frame, "size")
    frame = make(scores, manifest)
    headline = frame[[metric in _headlines() for metric in zip(frame["task"], frame["metric"], strict=True)]]
    report.print_grids(experiment_grids(headline, axis), console)
    folder = outcome.folder
    if outcome.n_failed:
        console.print(Text(f"{outcome.n_failed:,} scores could not be computed: their rows say why."))
    console.print(Text(f"Scores: {folder / 'scores.csv'}; all tables: txeval show {folder}", overflow="fold"))
    if args.format == "none":
        return
    try:
        [path] = write_figures(folder, folder / "figures", [args.format], only=[args.kind])
    except InputError as why:
        console.print(Text(f"No figure: {why.problem}. {why.remedy}", overflow="fold"))
        return
    console.print(Text(f"Figure: {Path(path)}", overflow="fold"))


def _headlines() -> set[tuple[str, str]]:
    from txeval.report.tables import catalogue

    return {key for key, metric in catalogue().items() if metric.headline}


COMMAND = Command(
    name="experiment",
    summary="Figures 1 and 2 of the paper on your screen: likelihoods of scVI, growing training sets",
    description="likelihood: trains scVI with each likelihood. scaling: trains a model on growing parts of the train "
    "split, batch by batch, each part holding the smaller ones, and embeds every sample with each. Both are scored on "
    "level 5 as in the paper, or on the levels that the screen allows (--tasks chooses), with --seeds repeats that "
    "differ in the draw of the batches and of the model. The results are an ordinary results folder, so that the same "
    "command goes on where it was stopped. --embedding adds others to compare with.",
    epilog="""example:
  txeval experiment scaling screen.h5ad --perturbation gene --control non-targeting --batch gem_group \\
      --model scvi@latent=32,genes=2000 --sizes 1000 4000 16000 all --seeds 3 --out scaling
""",
    configure=_configure,
    run=_run,
    position=47,
)
