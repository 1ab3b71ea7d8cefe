"""`txeval simulate`: a screen with a known truth."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from txeval.cli.base import Command, Parser, at_least, one_of, output_console
from txeval.destination import check_destination
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.data.profile import Profile
    from txeval.data.truth import Truth

__all__ = ["COMMAND"]

MODES = ("counts", "continuous")
_CELLS, _GENES, _BATCHES = 20_000, 2_000, 12
_PERTURBATIONS, _UNEXPRESSED, _PROGRAMS = 100, 50, 10

#: Flag -> field of `Simulation`, of the numbers that have one.
_NUMBERS = {
    "effect": "effect",
    "no_effect": "null_fraction",
    "knock_down": "knock_down",
    "batch_effect": "batch_effect",
    "depth": "depth",
    "dispersion": "dispersion",
    "controls": "control_fraction",
}


def _configure(parser: Parser) -> None:
    parser.add_argument("out", metavar="OUT", help=".h5ad file or .zarr folder to write")
    size = parser.add_argument_group("size")
    size.add_argument("--cells", metavar="N", type=at_least(1), default=_CELLS, help=f"samples (default: {_CELLS:,})")
    size.add_argument("--genes", metavar="N", type=at_least(1), help=f"genes (default: those of --like, or {_GENES:,})")
    size.add_argument(
        "--perturbations",
        metavar="N",
        type=at_least(1),
        help=f"perturbations of expressed genes (default: {_PERTURBATIONS}, or a quarter of few genes)",
    )
    size.add_argument(
        "--unexpressed",
        metavar="N",
        type=at_least(0),
        help="further perturbations, of genes that are not expressed: the null of level 3 "
        f"(default: {_UNEXPRESSED}, or an eighth of few genes)",
    )
    size.add_argument(
        "--unmeasured",
        metavar="N",
        type=at_least(0),
        default=0,
        help="further perturbations, of genes that are not among those measured (default: 0)",
    )
    size.add_argument("--batches", metavar="N", type=at_least(1), default=_BATCHES, help=f"default: {_BATCHES}")
    size.add_argument(
        "--cell-lines", metavar="N", type=at_least(1), default=1, help="a batch is of one line (default: 1)"
    )
    size.add_argument(
        "--programs",
        metavar="N",
        type=at_least(1),
        default=_PROGRAMS,
        help=f"gene programs, whose members are the known relationships (default: {_PROGRAMS})",
    )
    size.add_argument("--seed", metavar="N", type=at_least(0), default=0, help="same seed, same screen (default: 0)")
    what = parser.add_argument_group("what is planted")
    what.add_argument(
        "--effect",
        metavar="X",
        type=_number,
        help="log shift of a program by the strongest perturbation, the others go down to a quarter of it; "
        "0: nothing has an effect (default: 1)",
    )
    what.add_argument(
        "--no-effect", metavar="SHARE", type=_number, help="perturbations without any effect (default: 0.1)"
    )
    what.add_argument(
        "--knock-down", metavar="X", type=_number, help="what is left of a target; above 1: activation (default: 0.25)"
    )
    what.add_argument(
        "--batch-effect",
        metavar="X",
        type=_number,
        help="standard deviation of the log shifts of genes in a batch (default: as in --like, or 0.2)",
    )
    what.add_argument("--controls", metavar="SHARE", type=_number, help="non-targeting controls (default: 0.1)")
    values = parser.add_argument_group("values")
    values.add_argument(
        "--mode",
        metavar="MODE",
        type=one_of("mode", MODES),
        help="counts, or continuous: log2 intensities, of which 978 genes are measured and the others inferred "
        "(default: as in --like, or counts)",
    )
    values.add_argument("--depth", metavar="X", type=_number, help="median total (default: as in --like, or 5,000)")
    values.add_argument(
        "--dispersion",
        metavar="X",
        type=_number,
        help="variance = mean + X mean^2 (default: as in --like, or 0.1)",
    )
    like = parser.add_argument_group("like a real screen")
    like.add_argument(
        "--like",
        metavar="FILE",
        help="take means, spreads, library sizes and batch shifts from this screen; "
        "where --genes is another number than it has, genes are drawn from it",
    )
    like.add_argument("--like-perturbation", metavar="COLUMN", help="its column of perturbations")
    like.add_argument("--like-control", metavar="LABEL", nargs="+", action="extend", help="its control label(s)")
    like.add_argument("--like-batch", metavar="COLUMN", help="its column of batches")
    like.add_argument("--like-layer", metavar="NAME", help="its layer with the values (default: X)")
    how = parser.add_argument_group("how to run")
    how.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    how.add_argument("--threads", metavar="N", type=at_least(1), help="default: up to 4, no more than the cores")
    how.add_argument("--plain", action="store_true", help="plain lines instead of a progress bar")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _run(args: argparse.Namespace) -> int:
    from txeval.cli.tracking import tracking
    from txeval.data.simulate import Simulation, simulate_screen
    from txeval.data.writing import SUFFIXES

    out = check_destination(args.out, option="", suffixes=SUFFIXES, overwrite=args.overwrite)
    with tracking("samples", plain=args.plain) as progress:
        like = _profile(args, progress)
        simulation = Simulation(**_settings(args, like))
        truth = simulate_screen(out, simulation, like=like, threads=args.threads, progress=progress)
    _tell(truth, like, args)
    return 0


def _profile(args: argparse.Namespace, progress: Any) -> Profile | None:
    from txeval.data.profile import fit_profile
    from txeval.data.roles import Roles

    given = [name for name in ("perturbation", "control", "batch", "layer") if getattr(args, f"like_{name}")]
    if args.like is None:
        if given:
            raise InputError(f"--like-{given[0]} is given without --like", remedy="name the screen: --like FILE")
        return None
    if not (args.like_perturbation and args.like_control):
        raise InputError(
            "--like needs to know the perturbations and controls of that screen",
            remedy="--like-perturbation COLUMN --like-control LABEL (and --like-batch COLUMN); "
            f"txeval data describe {args.like} proposes them",
        )
    roles = Roles(args.like_perturbation, control=tuple(args.like_control), batch=args.like_batch)
    return fit_profile(args.like, roles, layer=args.like_layer, progress=progress)


def _settings(args: argparse.Namespace, like: Profile | None) -> dict[str, Any]:
    genes = args.genes or (len(like.genes) if like is not None else _GENES)
    perturbations = args.perturbations or max(1, min(_PERTURBATIONS, genes // 4))
    settings = {
        "n_samples": args.cells,
        "n_genes": genes,
        "n_perturbations": perturbations,
        "unexpressed_targets": min(_UNEXPRESSED, genes // 8) if args.unexpressed is None else args.unexpressed,
        "unmeasured_targets": args.unmeasured,
        "n_batches": args.batches,
        "n_cell_lines": args.cell_lines,
        "n_programs": args.programs,
        "mode": args.mode or (like.mode if like is not None else "counts"),
        "seed": args.seed,
    }
    settings |= {field: getattr(args, flag) for flag, field in _NUMBERS.items() if getattr(args, flag) is not None}
    if settings["mode"] == "continuous":
        useless = [flag for flag in ("depth", "dispersion") if getattr(args, flag) is not None]
        if useless:
            raise InputError(f"--{useless[0]} is for counts, and the mode is continuous", remedy="leave it out")
    return settings


def _tell(truth: Truth, like: Profile | None, args: argparse.Namespace) -> None:
    from rich.text import Text

    from txeval.data.truth import run_file, truth_folder

    console = output_console(plain=args.plain)

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    settings = truth.settings
    kinds = truth.perturbations["kind"].value_counts()
    lines = settings["n_cell_lines"]
    batches = f"{settings['n_batches']} batches" + (f" of {lines} cell lines" if lines > 1 else "")
    files = truth.path.rglob("*") if truth.path.is_dir() else [truth.path]
    size = sum(file.stat().st_size for file in files) / 1e6
    say(
        f"{truth.path}: {settings['n_samples']:,} samples x {settings['n_genes']:,} genes, {settings['mode']}, "
        f"{batches}, {size:,.1f} MB"
    )
    say(
        f"Perturbations: {kinds.get('active', 0):,} with an effect, {kinds.get('none', 0):,} without, "
        f"{kinds.get('unexpressed', 0):,} of genes that are not expressed; {len(truth.relations):,} relationships "
        f"in {settings['n_programs']} programs"
    )
    if like is not None:
        facts = [f"Like {like.source}: {len(like.genes):,} genes", *_learnt(like), *like.notes]
        say("; ".join(facts))
    say(f"What was planted: {truth_folder(truth.path)}")
    say(f"To score it: txeval run {run_file(truth.path)}")
    say(f"Then, what each level finds of it: txeval recovery {truth.path.with_name(f'{truth.path.stem}-results')}")


def _learnt(like: Profile) -> list[str]:
    """Medians of what was learnt, so that an odd screen is seen."""
    import numpy as np

    spread, shift = float(np.median(like.spread)), float(np.median(like.batch_spread))
    if like.mode == "continuous":
        return [f"median standard deviation {spread:.2g} within a batch, {shift:.2g} between batches"]
    return [
        f"median total {like.depth:,.0f}, dispersion {spread:.2g}, shift of a gene between batches {shift:.2g} (log)"
    ]


COMMAND = Command(
    name="simulate",
    summary="make a screen with a known truth, of any size",
    description="Writes a perturbation screen block by block, what was planted in it (effects, programs, "
    "relationships) into a folder beside it, and a YAML file for `txeval run`. Some perturbations do nothing, so that "
    "chance is there to be seen; `txeval recovery` says what each level finds.",
    epilog="""examples:
  txeval simulate screen.h5ad
  txeval simulate large.h5ad --cells 2000000 --genes 8000 --perturbations 2000 --batches 200 --programs 50 --depth 2000
  txeval simulate like.h5ad --like real.h5ad --like-perturbation gene --like-control non-targeting --like-batch lane
  txeval simulate bulk.h5ad --mode continuous --genes 12300 --cell-lines 8 --batches 40
""",
    configure=_configure,
    run=_run,
    position=45,
)
