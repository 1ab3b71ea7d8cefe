"""The command line: parse, call, print."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from txeval.cli.base import Parser, Stopped, complain, find_commands
from txeval.errors import InputError, unknown

__all__ = ["build_parser", "main"]

_EPILOG = """exit status:
  0    every score was computed
  1    some scores could not be computed: `txeval show` says which and why
  2    the input, the disk or the cluster cannot be used: the message says what to change
  70   a fault of txeval itself
  130  stopped by Ctrl-C; the same command goes on where it was

Start with `txeval demo`, then `txeval validate YOUR_SCREEN.h5ad ...`.
"""

#: Where the system says that a file cannot be written or read, the user can act on it.
_USER_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}


def build_parser() -> Parser:
    """Build the parser with every command that `txeval.cli.commands` holds."""
    from txeval._version import __version__

    parser = Parser(
        prog="txeval",
        description="How good is a representation of transcriptomes for perturbation analysis? Takes a perturbation "
        "screen and embeddings of its samples, gives scores on the six levels of the benchmark of Bendidi et al. 2024.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"txeval {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=Parser)
    for command in find_commands().values():
        child = commands.add_parser(
            command.name, help=command.summary, description=command.description, epilog=command.epilog
        )
        command.configure(child)
        child.set_defaults(_run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status (see `txeval --help`); never raises for bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("TXEVAL_DEBUG"))
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except SystemExit as end:  # argparse ends --help and --version this way
        return end.code if isinstance(end.code, int) else 0
    except InputError as why:
        if debug:
            traceback.print_exc()
        complain(why.problem, why.remedy)
        return 2
    except KeyboardInterrupt as stop:
        advice = stop.advice if isinstance(stop, Stopped) else ""
        complain("stopped", advice, kind="")
        return 130
    except BrokenPipeError:
        # The reader has gone (`txeval show DIR | head`); what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as why:
        if why.errno not in _USER_ERRNOS:
            return _crash(why, debug)
        if debug:
            traceback.print_exc()
        name = f"{why.filename}: " if why.filename else ""
        complain(f"{name}{why.strerror}", "free space or choose another folder; finished scores are kept")
        return 2
    except Exception as why:
        return _crash(why, debug)


def _dispatch(arguments: list[str]) -> int:
    parser = build_parser()
    first = next((word for word in arguments if not word.startswith("-")), None)
    commands = find_commands()
    if first is not None and first not in commands and arguments[0] == first:
        raise unknown("command", first, commands)
    namespace = parser.parse(arguments)
    if namespace.command is None:
        parser.print_help()
        return 0
    return int(namespace._run(namespace))


def _crash(why: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
        return 70
    with tempfile.NamedTemporaryFile("w", prefix="txeval-", suffix=".log", delete=False, encoding="utf-8") as log:
        traceback.print_exc(file=log)
    complain(
        f"a fault of txeval itself: {type(why).__name__}: {why}",
        f"please report it with {log.name}, which says where it happened",
    )
    return 70
