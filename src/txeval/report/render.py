"""Grids as text for a terminal, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from txeval.report.layout import Cell, Column, Grid, Row

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

__all__ = ["FORMATS", "print_grids", "to_latex", "to_markdown"]

#: Width to which the names of rows may be folded.
FOLDED = 24

FORMATS = ("terminal", "csv", "markdown", "latex")


# Terminal


def print_grids(grids: Iterable[Grid], console: Console) -> None:
    """Print grids with rich; a grid that is wider than the terminal is cut into several below each other."""
    from rich.text import Text

    for grid in grids:
        console.print(Text(grid.title, style="bold"))
        for part in _fitting(grid, console.width):
            console.print(_rich_table(part))
        for renderable in _rich_notes(grid):
            console.print(renderable)
        console.print()


def _rich_table(grid: Grid) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in grid.index:
        table.add_column(Text(title), overflow="fold")
    for j, column in enumerate(grid.columns):
        table.add_column(Text(column.label), justify="right", overflow="fold", min_width=_column_width(grid, j))
    for place, row in enumerate(grid.rows):
        table.add_row(*(Text(name) for name in row.names), *(_rich_cell(cell) for cell in row.cells))
        if place + 1 < len(grid.rows) and grid.rows[place + 1].section != row.section:
            table.add_section()
    return table


def _rich_cell(cell: Cell) -> Text:
    from rich.text import Text

    text = Text()
    if cell.tied:
        text.append("*", style="bold")
    text.append(cell.text, style="bold" if cell.best else "dim" if cell.dim else "")
    text.append("".join(f"[{mark}]" for mark in cell.marks), style="dim")
    for part in (cell.letter, cell.rank):
        if part:
            text.append(f" {part}", style="dim")
    if cell.below:
        text.append(f"\n{cell.below}", style="dim")
    return text


def _width(cell: Cell) -> int:
    return max(len(line) for line in _rich_cell(cell).plain.split("\n"))


def _rich_notes(grid: Grid) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    best = any(cell.best for row in grid.rows for cell in row.cells)
    notes = (["Bold: best model of the row."] if best else []) + list(grid.notes)
    lines = [Text(note, style="dim") for note in notes]
    lines += [Text(f"[{number}] {reason}") for number, reason in enumerate(grid.reasons, start=1)]
    return [Padding(line, (0, 0, 0, 1)) for line in lines]


def _column_width(grid: Grid, j: int) -> int:
    """Width below which a word of a title or a score would be broken."""
    return max([1, *map(len, grid.columns[j].label.split()), *(_width(row.cells[j]) for row in grid.rows)])


def _fitting(grid: Grid, width: int) -> list[Grid]:
    """Cut a grid by columns so that each part fits; the leading columns are repeated."""
    gap = 2
    # Names of rows may be folded, scores not.
    lead = 2 + sum(
        min(FOLDED, max([len(title), *(len(row.names[i]) for row in grid.rows)])) + gap
        for i, title in enumerate(grid.index)
    )
    widths = [_column_width(grid, j) + gap for j in range(len(grid.columns))]
    # Chance, floors and ceilings are repeated, as a model is read against them; where they would take more than half
    # of the width, all but the first of them stand in a part of their own.
    reference = [j for j, column in enumerate(grid.columns) if column.group == "reference"]
    fixed = reference if lead + sum(widths[j] for j in reference) <= width / 2 + lead / 2 else reference[:1]
    parts: list[list[int]] = []
    current, used = list(fixed), lead + sum(widths[j] for j in fixed)
    for j in range(len(grid.columns)):
        if j in fixed:
            continue
        ends = j and j - 1 in reference and j not in reference and j - 1 not in fixed
        if len(current) > len(fixed) and (used + widths[j] > width or ends):
            parts.append(current)
            current, used = list(fixed), lead + sum(widths[k] for k in fixed)
        current.append(j)
        used += widths[j]
    parts.append(current)
    return [_columns(grid, part) for part in parts]


def _columns(grid: Grid, picked: Sequence[int]) -> Grid:
    return Grid(
        title=grid.title,
        index=grid.index,
        columns=tuple(grid.columns[j] for j in picked),
        rows=tuple(Row(row.names, tuple(row.cells[j] for j in picked), row.section) for row in grid.rows),
    )


# Markdown


def to_markdown(grids: Iterable[Grid]) -> str:
    """Render grids as GitHub-flavoured Markdown tables, best scores bold, holes with numbered reasons."""
    return "\n".join(_markdown(grid) for grid in grids)


def _markdown(grid: Grid) -> str:
    header = [*grid.index, *(column.label for column in grid.columns)]
    rule = [*["---"] * len(grid.index), *["---:"] * len(grid.columns)]
    lines = [f"### {_md(grid.title)}", "", _md_row(map(_md, header)), _md_row(rule)]
    lines += [_md_row([*map(_md, row.names), *map(_md_cell, row.cells)]) for row in grid.rows]
    lines.append("")
    if any(cell.best for row in grid.rows for cell in row.cells):
        lines.append("- Bold: best model of the row.")
    lines += [f"- {_md(note)}" for note in grid.notes]
    lines += [f"- [{number}] {_md(reason)}" for number, reason in enumerate(grid.reasons, start=1)]
    return "\n".join([*lines, ""])


def _md_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md_cell(cell: Cell) -> str:
    text = f"**{_md(cell.text)}**" if cell.best else _md(cell.text)
    parts = [
        _md("*") if cell.tied else "",
        text,
        *(f"[{mark}]" for mark in cell.marks),
        _md(cell.letter),
        _md(cell.rank),
    ]
    line = " ".join(part for part in parts if part)
    return f"{line}<br>{_md(cell.below)}" if cell.below else line


def _md(text: str) -> str:
    for char in "\\`*_[]<>|#":
        text = text.replace(char, f"\\{char}")
    return text


# LaTeX


def to_latex(grids: Iterable[Grid]) -> str:
    r"""Render grids as LaTeX tables for `\usepackage{booktabs}`."""
    return "\n".join(_latex(grid) for grid in grids)


def _latex(grid: Grid) -> str:
    n = len(grid.index)
    align = "l" * n + "".join(_latex_align(grid.columns, j) for j in range(len(grid.columns)))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(grid.title)}}}", rf"\begin{{tabular}}{{{align}}}"]
    header = [*grid.index, *(column.label for column in grid.columns)]
    lines += [r"\toprule", _tex_row(map(_tex, header)), r"\midrule"]
    for place, row in enumerate(grid.rows):
        if place and grid.rows[place - 1].section != row.section:
            lines.append(r"\midrule")
        lines.append(_tex_row([*map(_tex, row.names), *map(_tex_cell, row.cells)]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = ["Bold: best model of the row."] if any(c.best for row in grid.rows for c in row.cells) else []
    texts = [_tex(note) for note in [*notes, *grid.notes]]
    texts += [rf"\textsuperscript{{{number}}} {_tex(reason)}" for number, reason in enumerate(grid.reasons, start=1)]
    if texts:
        lines += [r"\par\smallskip\footnotesize", " \\\\\n".join(texts)]
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_align(columns: Sequence[Column], j: int) -> str:
    gap = r"@{\hspace{2em}}" if j and columns[j - 1].group != columns[j].group else ""
    return gap + "r"


def _tex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex_cell(cell: Cell) -> str:
    text = _tex(cell.text)
    if cell.best:
        text = rf"\textbf{{{text}}}"
    raised = ("*" if cell.tied else "") + ",".join(map(str, cell.marks)) + _tex(cell.letter)
    text = rf"{text}\textsuperscript{{{raised}}}" if raised else text
    more = " ".join(_tex(part) for part in (cell.rank, cell.below) if part)
    return rf"\shortstack[r]{{{text}\\\scriptsize {more}}}" if more else text


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(char, char) for char in text)
