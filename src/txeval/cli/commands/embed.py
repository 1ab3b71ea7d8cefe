"""`txeval embed`: one embedding of a screen, kept in a folder."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txeval.cli.base import Command, Parser, Stopped, output_console
from txeval.cli.options import add_screen_options, counts
from txeval.errors import InputError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from txeval.embed.base import EmbeddingSpec
    from txeval.run.embedding import Embedded

__all__ = ["COMMAND"]

#: Seconds between two plain lines of progress.
_EVERY = 5.0


def _configure(parser: Parser) -> None:
    parser.add_argument("screen", metavar="SCREEN", help="perturbation screen (.h5ad or .zarr)")
    add_screen_options(parser)
    what = parser.add_argument_group("what makes the embedding")
    what.add_argument(
        "--model", metavar="NAME[@OPTION=VALUE,...]", required=True, help="an embedder (see `txeval models`)"
    )
    what.add_argument(
        "--weights", metavar="FOLDER", help="its weights (default: where `txeval weights list` finds them)"
    )
    what.add_argument(
        "--option", metavar="OPTION=VALUE", nargs="+", action="extend", default=[], help="settings of the embedder"
    )
    what.add_argument("--seed", metavar="N", type=int, default=0, help="seed of what is random in it (default: 0)")
    what.add_argument("--device", metavar="DEVICE", default="auto", help="auto (default), cpu or cuda")
    what.add_argument(
        "--min-counts",
        metavar="N",
        type=counts,
        help="embed samples with more counts than this (default: all; an embedder that learns does so from those that "
        "the protocol keeps)",
    )
    what.add_argument(
        "--protocol", metavar="NAME_OR_FILE", default="paper", help="whose train split is learnt from (default: paper)"
    )
    how = parser.add_argument_group("where it goes")
    how.add_argument("--out", metavar="FOLDER", required=True, help="folder of the embedding")
    how.add_argument("--save", metavar="FOLDER", help="keep the trained model, for transfer to other screens")
    how.add_argument("--overwrite", action="store_true", help="replace another embedding in that folder")
    how.add_argument("--plain", action="store_true", help="plain lines instead of a line that changes")


def _spec(args: argparse.Namespace) -> EmbeddingSpec:
    """Embedder and options, from `--model`, `--option` and `--weights`."""
    from dataclasses import replace

    from txeval.embed import parse_spec, resolve
    from txeval.embed.spec import parse_value

    spec = parse_spec(args.model)
    known = resolve(spec).info.options
    options: dict[str, Any] = dict(spec.options)
    for item in args.option:
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals or not name:
            raise InputError(f"--option {item!r} is no OPTION=VALUE", remedy="write it like this: --option layer=-1")
        if name not in known:
            raise unknown("option", name, known, where=f"embedder {spec.source}")
        if name in options:
            raise InputError(f"option {name} is given twice", remedy="give it once")
        # A text stays as it is: a number in it is none of an option that wants text.
        options[name] = value if isinstance(known[name][0], str) else parse_value(value.strip())
    if args.weights is not None:
        if "weights" not in known:
            raise InputError(f"embedder {spec.source} reads no weights", remedy="leave --weights out")
        if "weights" in options:
            raise InputError("the weights are named twice", remedy="give --weights, or the option weights")
        options["weights"] = args.weights
    return replace(spec, options=options)


def _run(args: argparse.Namespace) -> int:
    from txeval.cli.options import roles_from
    from txeval.protocol import load_protocol
    from txeval.run.embedding import embed_to_folder

    spec, roles = _spec(args), roles_from(args)
    tell = _Line(plain=args.plain or not sys.stderr.isatty())
    try:
        made = embed_to_folder(
            Path(args.screen),
            roles,
            spec,
            Path(args.out),
            protocol=load_protocol(args.protocol),
            layer=args.layer,
            labels=None if args.labels is None else Path(args.labels),
            scale=args.scale,
            name=args.name,
            min_counts=args.min_counts,
            seed=args.seed,
            device=args.device,
            save=None if args.save is None else Path(args.save),
            overwrite=args.overwrite,
            progress=tell,
        )
    except KeyboardInterrupt:
        raise Stopped("the same command goes on from here") from None
    finally:
        tell.close()
    _conclude(made, args, output_console(plain=args.plain))
    return 0


class _Line:
    """How far it is, on standard error: a line that changes on a terminal, else one every few seconds."""

    def __init__(self, *, plain: bool) -> None:
        self.plain = plain
        self._told = 0.0
        self._wide = 0

    def __call__(self, done: int, total: int, text: str) -> None:
        from txeval.run.progress import printable

        now = time.monotonic()
        if now - self._told < (_EVERY if self.plain else 0.1) and not (done == total and not self.plain):
            return
        self._told = now
        line = printable(f"{text} ({done:,} of {total:,})" if total else text)
        if self.plain:
            print(line, file=sys.stderr, flush=True)
        else:
            line = line[:100]
            print(f"\r{line.ljust(self._wide)}", end="", file=sys.stderr, flush=True)
            self._wide = len(line)

    def close(self) -> None:
        """Take the line away."""
        if self._wide:
            print("\r" + " " * self._wide + "\r", end="", file=sys.stderr, flush=True)
            self._wide = 0


def _conclude(made: Embedded, args: argparse.Namespace, console: Console) -> None:
    from rich.text import Text

    from txeval.run.progress import duration

    record = made.record
    say: Callable[[str], None] = lambda text: console.print(Text(text), soft_wrap=True)  # noqa: E731
    n, d = record["shape"]
    if made.reused:
        say(f"{made.values} is there already: {n:,} samples x {d:,} dimensions, made {record['made']}.")
    else:
        say(f"{n:,} samples x {d:,} dimensions by {record['embedder']} in {duration(record['seconds'])}: {made.values}")
    for text in _facts(record):
        say(text)
    if made.saved is not None:
        say(f"Trained model: {made.saved} (for other screens: --model {made.reader} --option model={made.saved})")
    say(f"What went into it: {made.values.with_name('embedding.json')}")
    names = "" if any(made.values.parent.glob("embedding.names.*")) else " --positional"
    say(f"To score it: txeval run {args.screen} ... --embedding {record['embedder']}={made.values}{names}")


def _facts(record: Mapping[str, Any]) -> list[str]:
    """What a user should see at once."""
    found = []
    genes, unusable = record.get("genes") or {}, record["provenance"].get("unusable") or {}
    if "matched_columns" in genes:
        found.append(
            f"Genes: {genes['matched_columns']:,} of {genes['columns']:,} columns are known to the model"
            f" ({genes['matched_fraction']:.1%})."
        )
    elif "found_in_the_screen" in genes:
        found.append(
            f"Genes: {genes['found_in_the_screen']:,} of the model's {genes['of_the_model']:,} are in the screen"
            f" ({genes['found_fraction']:.1%})."
        )
    if unusable.get("count"):
        found.append(f"Unusable: {unusable['count']:,} samples, filled with {unusable['filled_with']}.")
    if record.get("train"):
        found.append(f"Trained on {record['train']}.")
    warnings = record["provenance"].get("warnings") or []
    return [*found, *(f"Warning: {text}" for text in warnings)]


COMMAND = Command(
    name="embed",
    summary="embed a screen with one model, for use in any run",
    description="Makes one embedding: one float32 row for each sample, in the order of the screen, with the names of "
    "the samples and a record of what went into it. The same command again finds it there; after an interruption it "
    "goes on.",
    epilog="""example:
  txeval embed screen.h5ad --perturbation gene --control non-targeting --batch gem_group \\
      --model scvi --option likelihood=nb max_epochs=50 --out emb/scvi --save models/mine
  txeval run screen.h5ad ... --embedding scVI=emb/scvi/embedding.npy
""",
    configure=_configure,
    run=_run,
    position=25,
)
