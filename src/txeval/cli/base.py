"""What a command is, and the parser that answers a typing slip with the nearest name."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from txeval.errors import InputError, unknown

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Command",
    "Parser",
    "Stopped",
    "at_least",
    "complain",
    "find_commands",
    "one_of",
    "output_console",
]


@dataclass(frozen=True)
class Command:
    """One command of the program; a module of `txeval.cli.commands` holds one as `COMMAND`.

    Attributes
    ----------
    position
        Place in the list of commands.
    configure
        Adds the command's arguments to its parser. Must not import anything heavy: it runs for every call.
    run
        Does the work; returns the exit status.
    """

    name: str
    summary: str
    description: str
    configure: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]
    epilog: str = ""
    position: int = 100


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with what the user can do to go on."""

    def __init__(self, advice: str) -> None:
        self.advice = advice
        super().__init__(advice)


def _help_format(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors and name the nearest flag."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _help_format)
        options["description"] = textwrap.fill(options.get("description") or "", 100)
        super().__init__(allow_abbrev=False, **options)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments, or raise InputError."""
        namespace, rest = self.parse_known_args(arguments)
        if not rest:
            return namespace
        parser = self._parser_of(namespace)
        flags = [word for word in rest if word.startswith("--")]
        if flags:
            name = flags[0].split("=")[0]
            known = [option for action in parser._actions for option in action.option_strings]
            raise unknown("flag", name, [option for option in known if option.startswith("--")], where=parser.prog)
        raise InputError(f"{parser.prog}: unexpected {rest[0]!r}", remedy=f"see {parser.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            raise unknown(action.dest, str(value), action.choices, where=self.prog)
        super()._check_value(action, value)

    def _parser_of(self, namespace: argparse.Namespace) -> argparse.ArgumentParser:
        """The parser of the command, or of its action, that the arguments name."""
        parser: argparse.ArgumentParser = self
        while True:
            for action in parser._actions:
                named = getattr(namespace, action.dest, None)
                if isinstance(action, argparse._SubParsersAction) and named in action.choices:
                    parser = action.choices[named]
                    break
            else:
                return parser

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit for."""
        remedy = f"see {self.prog} --help"
        if re.search(r"required: .*(SCREEN|DIR)", message):
            remedy = f"put it first: {self.prog} SCREEN --perturbation COLUMN ...; {remedy}"
        raise InputError(f"{self.prog}: {message}", remedy=remedy)


@cache
def find_commands() -> dict[str, Command]:
    """Every command by name, in the order of their positions."""
    package = importlib.import_module("txeval.cli.commands")
    found = []
    for info in pkgutil.iter_modules(package.__path__):
        command = getattr(importlib.import_module(f"{package.__name__}.{info.name}"), "COMMAND", None)
        if isinstance(command, Command):
            found.append(command)
    return {command.name: command for command in sorted(found, key=lambda command: command.position)}


def one_of(kind: str, choices: Iterable[str]) -> Callable[[str], str]:
    """Argument type: one of some names, or an error that gives the nearest."""
    names = tuple(choices)

    def check(text: str) -> str:
        if text not in names:
            raise unknown(kind, text, names)
        return text

    return check


def at_least(low: int) -> Callable[[str], int]:
    """Argument type: a whole number not below `low`."""

    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is below {low}")
        return value

    return check


def complain(problem: str, remedy: str = "", *, kind: str = "error: ") -> None:
    """Print a message to stderr, without control characters that data may have brought along."""
    text = f"txeval: {kind}{problem}" + (f"\n  -> {remedy}" if remedy else "")
    for line in text.splitlines():
        print(
            "".join(char if unicodedata.category(char)[0] != "C" else f"\\x{ord(char):02x}" for char in line),
            file=sys.stderr,
        )


def output_console(*, plain: bool = False, stderr: bool = False) -> Console:
    """Console for results (stdout) or messages (stderr); no colours where nobody would see them."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False, no_color=plain or None)
    if not console.is_terminal and "COLUMNS" not in console._environ:
        console.width = 110
    return console
