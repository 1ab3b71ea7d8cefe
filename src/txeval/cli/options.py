"""Arguments that `run` and `validate` share, and how they become a run's configuration."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txeval.cli.base import Parser, at_least, one_of
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.roles import Roles
    from txeval.embed.base import EmbeddingSpec
    from txeval.run.config import RunConfig

__all__ = [
    "add_run_options",
    "add_screen_options",
    "commands_of",
    "config_from",
    "counts",
    "refuse_foreign",
    "roles_from",
]

SCALES = ("counts", "normalized", "log1p", "continuous")
OVERWRITE = ("never", "missing", "always")
EXECUTORS = ("local", "dask")
DEFAULT_OUT = "txeval-results"


def add_screen_options(parser: Parser) -> None:
    """Add what says which column of a screen holds what."""
    screen = parser.add_argument_group("the screen: which column of obs holds what")
    screen.add_argument("--perturbation", metavar="COLUMN", help="what was done to each sample (guide target, drug)")
    screen.add_argument(
        "--control", metavar="LABEL", nargs="+", action="extend", help="perturbation label(s) of unperturbed samples"
    )
    screen.add_argument("--control-column", metavar="COLUMN", help="instead of --control: a column of true and false")
    screen.add_argument(
        "--exclude", metavar="LABEL", nargs="+", action="extend", help="perturbation label(s) to leave out"
    )
    screen.add_argument(
        "--separator", metavar="TEXT", help="what joins the genes of a combination, whose order then does not count"
    )
    screen.add_argument("--batch", metavar="COLUMN", help="batch, plate, lane or replicate")
    screen.add_argument(
        "--target-gene", metavar="COLUMN", help="gene that is perturbed, where labels are no gene symbols"
    )
    screen.add_argument("--cell-line", metavar="COLUMN", help="cell line, where there are several")
    screen.add_argument(
        "--gene-symbol", metavar="COLUMN", help="column of var with the gene names (default: its index)"
    )
    screen.add_argument(
        "--labels", metavar="FILE", help="table (.csv, .tsv) of further columns of obs; names of samples come first"
    )
    screen.add_argument("--layer", metavar="NAME", help="layer with the expression values (default: X)")
    screen.add_argument(
        "--scale",
        metavar="SCALE",
        type=one_of("scale", SCALES),
        help="scale of the values: counts, normalized, log1p or continuous (default: determined from them, and stated)",
    )
    screen.add_argument("--name", metavar="NAME", help="name of the data set in the results (default: the file's name)")


def add_run_options(parser: Parser) -> None:
    """Add what describes a run: the screen, its columns, the embeddings, the protocol."""
    parser.add_argument(
        "screen",
        metavar="SCREEN",
        help="perturbation screen (.h5ad, .zarr, 10x .h5, GCT, GCTX, loom, mtx folder), or a YAML file "
        "that describes the run",
    )
    add_screen_options(parser)
    what = parser.add_argument_group("what to evaluate")
    what.add_argument(
        "--embedding",
        metavar="[LABEL=]SOURCE[@OPTION=VALUE,...]",
        nargs="+",
        action="extend",
        help="an embedder (see `txeval embedders`), obsm:KEY, a .npy / .npz / .parquet file, or other.h5ad#obsm/KEY",
    )
    what.add_argument(
        "--positional",
        action="store_true",
        default=None,
        help="allow embeddings without sample names, matched by order",
    )
    what.add_argument(
        "--baselines",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="floors and ceilings to add: random, shuffled, control_mean, ceiling (default: what the protocol says; "
        "paper: random)",
    )
    what.add_argument(
        "--no-baseline", action="store_true", default=None, help="add no floor or ceiling, the random baseline included"
    )
    what.add_argument(
        "--protocol",
        metavar="NAME_OR_FILE",
        help="parameters of the benchmark (default: paper; see `txeval protocols`)",
    )
    what.add_argument("--tasks", metavar="TASK", nargs="+", action="extend", help="only these (see `txeval tasks`)")
    what.add_argument(
        "--post-processing",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="only these of raw, centering, center_scaling, tvn",
    )
    what.add_argument("--seeds", metavar="N", type=at_least(1), help="number of seeds for what depends on one")
    what.add_argument(
        "--min-counts", metavar="N", type=counts, help="keep samples with more counts than this (protocol paper: 1000)"
    )
    what.add_argument("--relations", metavar="FOLDER", help="folder of the databases of known relationships")

    how = parser.add_argument_group("how to run")
    how.add_argument("--out", metavar="FOLDER", help=f"results folder (default: {DEFAULT_OUT})")
    how.add_argument(
        "--workers",
        metavar="N",
        type=workers,
        help="worker processes (default: 1), or auto: the usable cores, as far as memory allows",
    )
    how.add_argument(
        "--max-memory",
        metavar="SIZE",
        type=size,
        help="bound on the memory of all workers together, such as 2GiB, 16GB or 500M (default: what the machine or "
        "the control group has, less a tenth)",
    )
    how.add_argument(
        "--device",
        metavar="DEVICE",
        help="auto (default: a CUDA device where torch finds one, else cpu), cpu, cuda or cuda:N",
    )
    how.add_argument(
        "--executor",
        metavar="WHERE",
        type=one_of("executor", EXECUTORS),
        help="local (default): this machine; dask: a cluster, named by --scheduler or --cluster",
    )
    how.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="scheduler of a running Dask cluster (tcp://HOST:8786), or its --scheduler-file NAME.json",
    )
    how.add_argument(
        "--cluster",
        metavar="FILE.yaml",
        help="cluster that dask-jobqueue starts for this run: SLURM, PBS, LSF, SGE, ...",
    )
    how.add_argument(
        "--retries",
        metavar="N",
        type=at_least(0),
        help="tries more for a cell that ended in an error that may pass: memory, file, device (default: 1)",
    )
    how.add_argument(
        "--overwrite",
        metavar="POLICY",
        type=one_of("overwrite policy", OVERWRITE),
        help="missing (default): compute what the folder lacks; always: everything again; "
        "never: refuse a folder that holds scores",
    )
    how.add_argument(
        "--trust",
        action="store_true",
        help="run the commands, and use the cluster, that a YAML file or a protocol names and these arguments do not",
    )
    how.add_argument("--plain", action="store_true", help="plain lines instead of a progress bar")


def workers(text: str) -> int | str:
    """Argument type: a number of workers, or auto."""
    return text if text == "auto" else at_least(1)(text)


def size(text: str) -> int:
    """Argument type: a size of memory."""
    from txeval.compute.machine import parse_size

    try:
        return parse_size(text)
    except InputError as why:
        raise argparse.ArgumentTypeError(f"{why.problem}: {why.remedy}") from None


def counts(text: str) -> float:
    """Argument type: a number of counts."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of counts: use 0 or more")
    return value


def roles_from(args: argparse.Namespace) -> Roles:
    """Roles of a screen from the flags of `add_screen_options`.

    Raises
    ------
    InputError
        The perturbation column is not named, or the controls are named twice.
    """
    from txeval.data.roles import Roles

    if not args.perturbation:
        raise InputError(
            "which column of obs says what was done to each sample?", remedy="name it: --perturbation COLUMN"
        )
    _check_controls(args)
    return Roles(
        perturbation=args.perturbation,
        control=tuple(args.control or ()),
        control_column=args.control_column,
        exclude=tuple(args.exclude or ()),
        separator=args.separator,
        batch=args.batch,
        target_gene=args.target_gene,
        cell_line=args.cell_line,
        gene_symbol=args.gene_symbol,
    )


def _check_controls(args: argparse.Namespace) -> None:
    if args.control and args.control_column:
        raise InputError(
            "--control and --control-column are both given",
            remedy="name the controls once: by label(s) of the perturbation column, or by a column of true and false",
        )


def config_from(args: argparse.Namespace, *, for_run: bool) -> RunConfig:
    """Build the configuration of a run from flags, or from a YAML file with flags on top.

    Parameters
    ----------
    for_run
        Whether results will be written: then there is always a folder for them.

    Raises
    ------
    InputError
        For anything that cannot be used, and for flags that contradict each other.
    """
    from txeval.run.config import load_config

    _check_controls(args)
    if args.min_counts and args.scale not in (None, "counts"):
        raise InputError(
            f"--min-counts {args.min_counts:g} contradicts --scale {args.scale}",
            remedy="totals are known of counts only: leave --min-counts out, or name a layer with counts",
        )
    is_yaml = Path(args.screen).suffix.lower() in {".yaml", ".yml"}
    given: dict[str, Any] = {
        "screen": None if is_yaml else args.screen,
        "roles": {
            "perturbation": args.perturbation,
            "control": tuple(args.control) if args.control else None,
            "control_column": args.control_column,
            "exclude": tuple(args.exclude) if args.exclude else None,
            "separator": args.separator,
            "batch": args.batch,
            "target_gene": args.target_gene,
            "cell_line": args.cell_line,
            "gene_symbol": args.gene_symbol,
        },
        "labels": args.labels,
        "layer": args.layer,
        "scale": args.scale,
        "name": args.name,
        "embeddings": args.embedding,
        "protocol": args.protocol,
        "tasks": args.tasks,
        "post_processing": args.post_processing,
        "seeds": args.seeds,
        "min_counts": args.min_counts,
        "out": args.out,
        "relations": args.relations,
        "workers": args.workers,
        "max_memory": args.max_memory,
        "device": args.device,
        "executor": args.executor,
        "scheduler": args.scheduler,
        "cluster": args.cluster,
        "retries": args.retries,
        "overwrite": args.overwrite,
        "baseline": False if args.no_baseline else None,
        "baselines": args.baselines,
        "positional": args.positional,
    }
    if for_run and not is_yaml and args.out is None:
        given["out"] = DEFAULT_OUT
    config = load_config(Path(args.screen) if is_yaml else None, given)
    if for_run and config.out is None:
        config = load_config(Path(args.screen), {**given, "out": DEFAULT_OUT})
    _show_commands(args, config, for_run=for_run)
    return config


def _show_commands(args: argparse.Namespace, config: RunConfig, *, for_run: bool) -> None:
    """Say which commands a run would start; InputError where somebody else may have written them."""
    from rich.text import Text

    from txeval.cli.base import output_console
    from txeval.embed.spec import parse_spec
    from txeval.text import clean

    # `experiment` gives specs, of models that the arguments name too.
    given = [*(args.embedding or ()), *(args.baselines or ())]
    specs = [parse_spec(item) if isinstance(item, str) else item for item in given]
    asked = {what for spec in specs for what in commands_of(spec)}
    commands = [what for spec in config.chosen_embeddings for what in commands_of(spec)]
    found = [f"the command {what}" for what in commands]
    foreign = [f"the command {what}" for what in commands if what not in asked]
    places = [name for name in ("cluster", "scheduler") if getattr(args, name) is None]
    foreign += [f"{name} {value}" for name in places if (value := getattr(config, name)) is not None]
    console = output_console(stderr=True)
    for what in dict.fromkeys([*found, *foreign]):
        said = "Runs with your rights" if for_run else "txeval run would run with your rights"
        console.print(Text(clean(f"{said}: {what}"), overflow="fold"))
    if for_run and not args.trust:
        refuse_foreign(foreign)


def refuse_foreign(commands: Sequence[str]) -> None:
    """Raise InputError where a file that somebody else may have written names what a run would start."""
    if commands:
        raise InputError(
            f"a file names what runs with your rights: {'; '.join(dict.fromkeys(commands))}",
            remedy="read it; where you would type it yourself, add --trust",
        )


def commands_of(spec: EmbeddingSpec) -> Iterator[str]:
    """Commands of other programs that an embedding runs, and those of the embedding that it is built on."""
    from txeval.embed.spec import parse_spec

    if spec.source == "external":
        yield str(spec.options.get("command", ""))
        return
    if "of" in spec.options:
        yield from commands_of(parse_spec(str(spec.options["of"])))
