"""The YAML of a run that a description proposes, with the reason of each line as a comment."""

from __future__ import annotations

import textwrap
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from txeval.data.describe import Description, Proposal
from txeval.data.readers import stem

__all__ = ["render", "shown"]

_ROLES = (
    *("perturbation", "control", "control_column", "exclude", "separator", "batch", "target_gene", "cell_line"),
    "gene_symbol",
)
_SETTINGS = ("layer", "min_counts", "tasks", "embeddings")


def render(about: Description) -> str:
    """Make the YAML of a run that holds what a description proposes.

    Every value stands below its reason. Where perturbation or controls are not known, the first line says that the
    file is incomplete, and `txeval validate` says so as well.
    """
    n, g = about.shape
    head = [
        "Proposed by `txeval data describe` from what the file shows: read the reasons, and correct what is wrong.",
        f"{about.kind}, {n:,} samples x {g:,} genes; {about.where}: {about.scale} ({about.scale_why})",
        "Then: txeval validate THIS_FILE, and txeval run THIS_FILE.",
    ]
    if not about.complete:
        missing = "controls" if about.value("perturbation") is not None else "perturbation and controls"
        head.insert(0, f"INCOMPLETE: the {missing} must be filled in, see below.")
    lines = [line for text in head for line in _comment(text)]
    lines += ["", _entry("screen", str(about.path.absolute()))]
    if about.labels is not None:
        lines.append(_entry("labels", str(about.labels.absolute())))
    lines += [_entry("name", shown(stem(about.path))), "", "roles:"]
    for role in _ROLES:
        lines += _proposed(about.proposals.get(role), indent="  ")
    lines.append("")
    for role in _SETTINGS:
        lines += _proposed(about.proposals.get(role), indent="")
    lines += [_entry("out", f"{_safe(stem(about.path))}-results"), ""]
    if about.findings:
        lines += _comment("To look at before a run:")
        for finding in about.findings:
            lines += _comment(f"- {finding.text}" + (f": {finding.remedy}" if finding.remedy else ""), hanging="  ")
    return "\n".join(lines) + "\n"


def _proposed(proposal: Proposal | None, *, indent: str) -> list[str]:
    if proposal is None:
        return []
    lines = _comment(proposal.why, indent=indent)
    for other, remark in proposal.others:
        lines += _comment(f"or {other}: {remark}", indent=indent, hanging="   ")
    for other, remark in proposal.rejected:
        lines += _comment(f"not {other}: {remark}", indent=indent, hanging="   ")
    if proposal.value is None:
        return [*lines, f"{indent}# {proposal.role}:"]
    return [*lines, indent + _entry(proposal.role, proposal.value)]


def _entry(name: str, value: Any) -> str:
    """One line of YAML, whatever characters a label holds."""
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=False, width=10**9).strip()
    return f"{name}: {text[1:-1]}"


def _comment(text: str, *, indent: str = "", hanging: str = "") -> list[str]:
    wrapped = textwrap.wrap(
        shown(text), 110 - len(indent), subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )
    return [f"{indent}# {line}" for line in wrapped]


def shown(text: object) -> str:
    """Text from a file without control characters: it can neither steer a terminal nor end a comment."""
    return "".join(
        char if unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029" else f"\\x{ord(char):02x}"
        for char in str(text)
    )


def _safe(name: str) -> str:
    """A name that is a folder below the current one, whatever the file was called."""
    made = "".join(char if char.isalnum() or char in "-_." else "_" for char in name).lstrip(".")
    return Path(made).name or "screen"
