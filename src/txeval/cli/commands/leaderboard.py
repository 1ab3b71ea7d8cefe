"""`txeval leaderboard`: a static site from results folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from txeval.cli.base import Command, Parser, at_least, one_of, output_console
from txeval.cli.options import commands_of, refuse_foreign
from txeval.errors import InputError

if TYPE_CHECKING:
    from txeval.run import RunConfig

__all__ = ["COMMAND"]

ACTIONS = ("build", "serve", "check")
DEFAULT_OUT = "leaderboard"
DEFAULT_PORT = 8642

_WHOLE = (
    "It can be submitted: it is whole and consistent. Whether its numbers were honestly made, only computing them anew "
    "can tell: --recompute N."
)


def _configure(parser: Parser) -> None:
    parser.add_argument(
        "action",
        metavar="ACTION",
        type=one_of("action", ACTIONS),
        help="build: the site of results folders; serve: look at a site; check: can a folder be submitted?",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", help="results folders; for serve: the folder of the site")
    build = parser.add_argument_group("build")
    build.add_argument("--out", metavar="FOLDER", help=f"where the site goes (default: {DEFAULT_OUT})")
    build.add_argument("--title", metavar="TEXT", default="txeval leaderboard", help="heading of the site")
    build.add_argument(
        "--metric", metavar="NAME", nargs="+", action="extend", help="these metrics (default: the summary's)"
    )
    check = parser.add_argument_group("check")
    check.add_argument(
        "--recompute",
        metavar="N",
        type=at_least(1),
        help="also compute N cells anew, drawn at random, where the screen and the embeddings are at hand, and compare",
    )
    check.add_argument("--trust", action="store_true", help="with --recompute: run commands that the folder names")
    serve = parser.add_argument_group("serve")
    serve.add_argument(
        "--port", metavar="N", type=at_least(0), help=f"port on this machine (default: {DEFAULT_PORT}; 0: any)"
    )


def _run(args: argparse.Namespace) -> int:
    for name, action in (("out", "build"), ("metric", "build"), ("port", "serve"), ("recompute", "check")):
        if getattr(args, name) is not None and args.action != action:
            raise InputError(f"--{name} is for txeval leaderboard {action}", remedy="leave it out")
    return {"build": _build, "serve": _serve, "check": _check}[args.action](args)


def _build(args: argparse.Namespace) -> int:
    from rich.text import Text

    from txeval.errors import unknown
    from txeval.report.leaderboard import check_site, load_sources, make_boards, write_site

    out = Path(args.out or DEFAULT_OUT)
    check_site(out)
    sources = load_sources([Path(folder) for folder in args.folders])
    known = list(dict.fromkeys(name for source in sources for name in source.scores["metric"]))
    for name in args.metric or []:
        if name not in known:
            raise unknown("metric", name, known, where="these results")
    boards = make_boards(sources, metrics=args.metric)
    written = write_site(boards, sources, out, title=args.title)
    console = output_console()
    for board in boards:
        models = sum(row.kind == "model" for row in board.rows)
        holes = sum(row.missing(board.columns) for row in board.rows if row.kind == "model")
        text = f"{board.dataset}, protocol {board.protocol}: {models} models, {len(board.columns)} columns"
        console.print(Text(text + (f", {holes} cells without a score" if holes else "")))
        for note in board.notes:
            console.print(Text(f"  {note}"))
    console.print(
        Text(f"Site: {written[-1]} (open it in a browser, or: txeval leaderboard serve {out})", overflow="fold")
    )
    return 0


def _serve(args: argparse.Namespace) -> int:
    from txeval.cli.serving import HOST, make_server

    [folder, *more] = args.folders
    if more:
        raise InputError("one site at a time can be served", remedy="name the folder of one site")
    with make_server(Path(folder), DEFAULT_PORT if args.port is None else args.port) as server:
        print(f"http://{HOST}:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def _check(args: argparse.Namespace) -> int:
    from rich.text import Text

    from txeval.report.leaderboard import check_submission, recompute
    from txeval.text import clean

    def allow(config: RunConfig) -> None:
        if not args.trust:
            refuse_foreign([f"the command {what}" for spec in config.chosen_embeddings for what in commands_of(spec)])

    console = output_console()
    signs = {"ok": ("ok     ", ""), "remark": ("remark ", "yellow"), "fault": ("FAULT  ", "bold red")}
    faults = 0
    for folder in args.folders:
        found = check_submission(Path(folder))
        if args.recompute is not None:
            found += recompute(Path(folder), args.recompute, allow)
        bad = sum(finding.verdict == "fault" for finding in found)
        faults += bad
        console.print(Text(str(folder), style="bold", overflow="fold"))
        for finding in found:
            sign, style = signs[finding.verdict]
            console.print(Text(sign, style=style), Text(clean(finding.what)), sep="")
            if finding.remedy and finding.verdict != "ok":
                console.print(Text(f"       -> {clean(finding.remedy)}", style="dim"))
        console.print(Text("It cannot be submitted as it is." if bad else _WHOLE))
        console.print()
    return 1 if faults else 0


COMMAND = Command(
    name="leaderboard",
    summary="a static site that ranks models from results folders; check a folder for submission",
    description="build: merges results folders into boards, one per screen, split and protocol, with ranks and "
    "their intervals; scores of different versions never share a column, missing cells are shown, and the paper's "
    "values stand in rows of their own. serve: shows a site on this machine. check: whether a results folder is whole, "
    "consistent and complete; exit status 1 where it is not.",
    epilog="""example:
  txeval leaderboard check results/
  txeval leaderboard build results-a/ results-b/ --out site/
  txeval leaderboard serve site/
""",
    configure=_configure,
    run=_run,
    position=48,
)
