"""Which column of a screen says what, and the labels that result."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import Bools, Ints, Strings
from txeval.data.gene_names import is_symbol
from txeval.data.harmonise import DOUBTFUL, MISSING, canonical, control_spelling
from txeval.data.matrix import Store
from txeval.data.samples import Samples
from txeval.errors import InputError, nearest, unknown

__all__ = ["Labelled", "Roles", "read_labels", "single_gene"]

#: Label of controls whose perturbation label is missing (a boolean column says that they are controls).
CONTROL_LABEL = "control"


@dataclass(frozen=True)
class Roles:
    """Which `obs` column says what. Controls are named by labels or by a boolean column, not by both.

    Attributes
    ----------
    perturbation
        Column of perturbation labels.
    control
        One or several labels of that column that are controls.
    control_column
        Column that is true for controls. `COLUMN~PATTERN` (see `Store.column`) is true where the pattern is found.
    batch
        Column of batch labels; None: all samples are one batch, "all".
    target_gene
        Column with the gene that each perturbation targets; None: the perturbation label itself where it is
        one gene symbol.
    cell_line
        Column of cell lines.
    gene_symbol
        `var` column with the gene names; None: the names of `var`.
    exclude
        Labels of the perturbation column whose samples are left out, such as "unassigned".
    separator
        What joins the genes of a combination: the order of the genes then does not count, and a part that is a
        control ("KLF1+ctrl") is left out. None: labels are taken as they are.
    """

    perturbation: str
    control: tuple[str, ...] = ()
    control_column: str | None = None
    batch: str | None = None
    target_gene: str | None = None
    cell_line: str | None = None
    gene_symbol: str | None = None
    exclude: tuple[str, ...] = ()
    separator: str | None = None

    def __post_init__(self) -> None:
        for name in ("exclude", "control"):
            labels: Any = getattr(self, name)
            labels = (labels,) if isinstance(labels, str) else tuple(str(label) for label in (labels or ()))
            object.__setattr__(self, name, labels)
        both = [label for label in labels if label in self.exclude]
        if both:
            raise InputError(
                f"the label {both[0]!r} is given as a control and to be left out", remedy="name it only once"
            )
        if labels and self.control_column:
            raise InputError(
                f"the controls are named twice: by label ({', '.join(labels)}) and by column ({self.control_column})",
                remedy="give either --control LABEL or --control-column COLUMN",
            )
        if self.batch is not None and self.batch == self.perturbation:
            raise InputError(
                f"{self.batch!r} is given as the perturbation and as the batch column", remedy="name two columns"
            )


@dataclass
class Labelled:
    """Labels of one column for all samples of the file.

    Attributes
    ----------
    codes
        (n_file,) int64 into `labels`, -1 where the label is missing.
    labels
        Sorted text labels, as objects: labels of one column may be as long as a list of guides.
    missing_texts
        Text that was taken for a missing label -> number of its samples.
    """

    codes: Ints
    labels: Strings
    missing_texts: Mapping[str, int] = field(default_factory=dict)

    def take(self, kept: Ints) -> tuple[Ints, Strings]:
        """Codes of some samples into the sorted labels that occur among them."""
        used, codes = np.unique(self.codes[kept], return_inverse=True)
        return codes.astype(np.int64).reshape(-1), self.labels[used]


@dataclass
class Assignment:
    """What the roles say of every sample of the file, before quality control.

    Attributes
    ----------
    is_control
        (n_file,) bool.
    dropped
        Reason -> (n_file,) bool, in the order in which reasons count.
    """

    perturbation: Labelled
    is_control: Bools
    batch: Labelled
    target: Labelled | None
    cell_line: Labelled | None
    dropped: dict[str, Bools] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_labels(
    column: pd.Series[Any],
    name: str,
    path: Path,
    *,
    role: str,
    never_missing: Callable[[str], bool] = lambda label: False,
) -> Labelled:
    """Make text labels of a categorical, text, integer or boolean column.

    Parameters
    ----------
    never_missing
        Which labels are labels although they spell a missing one, such as the control "none".

    Raises
    ------
    InputError
        The column holds decimal numbers.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = np.asarray(column.cat.codes, dtype=np.int64)
        values: Any = list(column.cat.categories)
    else:
        found, uniques = pd.factorize(column, use_na_sentinel=True)
        codes, values = np.asarray(found, dtype=np.int64), list(uniques)
    texts = []
    for value in values:
        if isinstance(value, (float, np.floating)):
            if not float(value).is_integer():
                raise InputError(
                    f"{path}: obs column {name!r} holds decimal numbers (such as {value:g}), not {role} labels",
                    remedy=f"name the column that holds the {role} labels",
                )
            texts.append(str(int(value)))
        else:
            texts.append(value.decode() if isinstance(value, bytes) else str(value))
    if not texts:
        return Labelled(np.full(len(codes), -1, dtype=np.int64), np.empty(0, dtype=object))
    labels, inverse = np.unique(np.array(texts, dtype=object), return_inverse=True)
    is_missing = np.array(
        [label.strip().lower() in MISSING and not never_missing(label) for label in labels.tolist()], dtype=bool
    )
    number = np.where(is_missing, -1, np.cumsum(~is_missing) - 1)
    out = np.full(len(codes), -1, dtype=np.int64)
    known = codes >= 0
    place = inverse.reshape(-1)[codes[known]]
    out[known] = number[place]
    counts = np.bincount(place, minlength=len(labels))
    missing_texts = {str(labels[i]): int(counts[i]) for i in np.flatnonzero(is_missing) if counts[i]}
    return Labelled(out, labels[~is_missing], missing_texts)


def single_gene(label: str, genes: frozenset[str] | set[str] = frozenset()) -> str:
    """The gene symbol that a perturbation label is, or "" (combinations such as "A+B" or "A_B" have no single one).

    Examples
    --------
    >>> single_gene("HLA-A"), single_gene("KLF1+MAP2K6"), single_gene("AHR_FEV")
    ('HLA-A', '', '')
    """
    return label if label in genes or is_symbol(label) else ""


def _is_combination(label: str) -> bool:
    """Whether a label is several gene symbols joined."""
    parts = re.split(r"[+_|,;&/]", label)
    return len(parts) > 1 and all(is_symbol(part.strip()) for part in parts)


def assign(store: Store, roles: Roles) -> Assignment:
    """Read the columns that the roles name, and check them.

    Raises
    ------
    InputError
        A column or control label does not exist, nothing or everything is a control, or nothing has a label.
    """
    path = store.path
    column = store.column("obs", roles.perturbation, role="perturbation column")
    warnings: list[str] = []
    named = {*roles.control, *roles.exclude}

    def read(column: pd.Series[Any], name: str, role: str) -> Labelled:
        found = read_labels(column, name, path, role=role, never_missing=named.__contains__)
        # An empty text is missing without saying otherwise.
        said = {text: count for text, count in found.missing_texts.items() if text.strip()}
        if said:
            texts = ", ".join(f"{text!r} ({count:,})" for text, count in said.items())
            warnings.append(f"texts in obs column {name!r} that stand for a missing {role}: {texts}")
        return found

    perturbation = read(column, roles.perturbation, "perturbation")
    n = len(column)
    dropped: dict[str, Bools] = {}
    for label in roles.exclude:
        if label not in perturbation.labels:
            error = unknown(
                "perturbation label", label, perturbation.labels.tolist(), where=f"{path}, {roles.perturbation}"
            )
            raise InputError(f"{error.problem} (to be left out)", remedy=error.remedy)
        rows = perturbation.codes == int(np.searchsorted(perturbation.labels, label))
        _add(dropped, f"label {label!r} is to be left out", rows)
    if (perturbation.codes < 0).all():
        raise InputError(
            f"{path}: none of the {n:,} samples has a label in obs column {roles.perturbation!r}",
            remedy="name the column that holds the perturbation labels (--perturbation)",
        )
    if roles.control_column is not None:
        flags = store.column("obs", roles.control_column, role="control column")
        if roles.control_column not in store.columns("obs"):  # a pattern: true where it is found
            flags = flags.notna()
        is_control, unknown_flag, note = _flags(flags, roles.control_column, path)
        warnings += [note] if note else []
        if not is_control.any():
            raise InputError(
                f"{path}: obs column {roles.control_column!r} marks none of the {n:,} samples as a control",
                remedy="name the column that is true for controls, or the labels of the controls (--control)",
            )
        unlabelled = is_control & (perturbation.codes < 0)
        if unlabelled.any():
            perturbation = _label(perturbation, unlabelled, CONTROL_LABEL)
            count = f"{int(unlabelled.sum()):,} controls"
            warnings.append(f"{count} have no label in {roles.perturbation!r}: labelled {CONTROL_LABEL!r}")
        _add(dropped, f"no control flag in {roles.control_column!r}", unknown_flag)
    else:
        is_control = _controls_by_label(perturbation, roles, path, store.columns("obs"))
    _add(dropped, f"no perturbation label in {roles.perturbation!r}", perturbation.codes < 0)
    if roles.separator:
        perturbation, note = _order_free(perturbation, roles)
        warnings += [note] if note else []
    if roles.batch is None:
        batch = Labelled(np.zeros(n, dtype=np.int64), np.array(["all"], dtype=object))
        warnings.append("no batch column is given: all samples are one batch, 'all'")
    else:
        batch = read(store.column("obs", roles.batch, role="batch column"), roles.batch, "batch")
        no_batch = batch.codes < 0
        _add(dropped, f"no batch label in {roles.batch!r}", no_batch)
        if no_batch.all():
            raise InputError(
                f"{path}: none of the {n:,} samples has a label in obs column {roles.batch!r}",
                remedy="name the column that holds the batch labels (--batch)",
            )
    target = cell_line = None
    if roles.target_gene is not None:
        target = read(
            store.column("obs", roles.target_gene, role="target gene column"), roles.target_gene, "target gene"
        )
    if roles.cell_line is not None:
        cell_line = read(store.column("obs", roles.cell_line, role="cell line column"), roles.cell_line, "cell line")
        absent = cell_line.codes < 0
        if absent.any():
            cell_line = _label(cell_line, absent, "(missing)")
            warnings.append(f"{int(absent.sum()):,} samples have no cell line in {roles.cell_line!r}: '(missing)'")
    for reason, rows in dropped.items():
        first = ", ".join(str(i) for i in np.flatnonzero(rows)[:5])
        warnings.append(f"{int(rows.sum()):,} samples dropped: {reason} (first rows of the file: {first})")
    return Assignment(perturbation, is_control, batch, target, cell_line, dropped, warnings)


def _add(dropped: dict[str, Bools], reason: str, rows: Bools) -> None:
    """Note samples to drop that no earlier reason has dropped."""
    for earlier in dropped.values():
        rows = rows & ~earlier
    if rows.any():
        dropped[reason] = rows


def _label(labelled: Labelled, rows: Bools, label: str) -> Labelled:
    """Give some samples a label, in sorted order among the others."""
    labels = np.unique(np.array([*labelled.labels, label], dtype=object))
    moved = np.searchsorted(labels, labelled.labels)
    codes = np.full(len(labelled.codes), -1, dtype=np.int64)
    known = labelled.codes >= 0
    codes[known] = moved[labelled.codes[known]]
    codes[rows] = int(np.searchsorted(labels, label))
    return Labelled(codes, labels)


def _order_free(perturbation: Labelled, roles: Roles) -> tuple[Labelled, str]:
    """Labels with the genes of combinations sorted, and what became one label by it."""
    separator = roles.separator or ""
    names = [
        label if label in roles.control else canonical(label, separator, roles.control)
        for label in perturbation.labels.tolist()
    ]
    labels, moved = np.unique(np.array(names, dtype=object), return_inverse=True)
    codes = np.where(perturbation.codes >= 0, moved.reshape(-1)[perturbation.codes], -1)
    merged = len(perturbation.labels) - len(labels)
    changed = sum(old != new for old, new in zip(perturbation.labels.tolist(), names, strict=True))
    note = (
        f"{changed:,} labels are combinations in another order or with a part that is a control: renamed by the"
        f" separator {separator!r}" + (f"; {merged:,} of them became one with another label" if merged else "")
    )
    return Labelled(codes, labels), note if changed else ""


def _controls_by_label(perturbation: Labelled, roles: Roles, path: Path, columns: list[str]) -> Bools:
    labels = perturbation.labels.tolist()
    likely = [label for label in labels if control_spelling(label)]
    hint = f"; in {roles.perturbation!r} these look like controls: {', '.join(likely[:5])}" if likely else ""
    if not roles.control:
        raise InputError(
            f"{path}: no control is named",
            remedy=f"give the label of the controls (--control LABEL) or a column that is true for them"
            f" (--control-column COLUMN){hint}",
        )
    for label in roles.control:
        if label not in labels:
            close = nearest(label, labels)
            shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
            if label in columns:
                hint += f"; {label!r} is an obs column: if it is true for controls, use --control-column {label}"
            raise InputError(
                f"{path}: no sample has the control label {label!r} in obs column {roles.perturbation!r}",
                remedy=(f"did you mean {' or '.join(map(repr, close))}?" if close else f"its labels are: {shown}")
                + hint,
            )
    return np.isin(perturbation.codes, [labels.index(label) for label in roles.control])


def _flags(column: pd.Series[Any], name: str, path: Path) -> tuple[Bools, Bools, str]:
    """True/false of a column: (is control, is missing, note)."""
    if pd.api.types.is_bool_dtype(column.dtype) and not isinstance(column.dtype, pd.CategoricalDtype):
        missing = np.asarray(column.isna(), dtype=bool)
        return np.asarray(column.fillna(False), dtype=bool), missing, ""
    texts = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    codes, uniques = pd.factorize(column, use_na_sentinel=True)
    values: list[Any] = list(uniques)
    spelled = [(v.decode() if isinstance(v, bytes) else str(v)).strip().lower() for v in values]
    odd = [
        f"{v:g}" if isinstance(v, (float, np.floating)) else str(v)
        for v, text in zip(values, spelled, strict=True)
        if text not in texts and text not in MISSING
    ]
    if odd:
        raise InputError(
            f"{path}: obs column {name!r} is not a true/false column: it holds {', '.join(map(repr, odd[:5]))}"
            f"{', ...' if len(odd) > 5 else ''}",
            remedy="name a column of true/false or 0/1, or give the labels of the controls instead (--control LABEL)",
        )
    true = np.array([texts.get(text, False) for text in spelled] + [False], dtype=bool)
    absent = np.array([text in MISSING for text in spelled] + [True], dtype=bool)
    found = ", ".join(repr(str(v)) for v in values)
    return true[codes], absent[codes], f"obs column {name!r} holds {found} rather than true/false: read as such"


def summarise(
    assignment: Assignment, kept: Ints, roles: Roles, genes: Strings, path: Path
) -> tuple[Samples, list[str]]:
    """Roles of the kept samples, and what is odd about them."""
    codes, labels = assignment.perturbation.take(kept)
    batch, batches = assignment.batch.take(kept)
    is_control = assignment.is_control[kept]
    cell_line, cell_lines = assignment.cell_line.take(kept) if assignment.cell_line is not None else (None, None)
    perturbed = np.bincount(codes[~is_control], minlength=len(labels))
    controls = np.bincount(codes[is_control], minlength=len(labels))
    if not is_control.any() or is_control.all():
        group, other = ("perturbed sample", "control") if is_control.any() else ("control", "perturbed sample")
        n_before = int(np.sum(assignment.is_control == (group == "control")))
        reasons = "; ".join(f"{int(rows.sum()):,} samples dropped: {why}" for why, rows in assignment.dropped.items())
        raise InputError(
            f"{path}: no {group} is left, only {len(kept):,} {other}s (the file has {n_before:,} {group}s"
            f"{'; ' + reasons if reasons else ''})",
            remedy="check which labels are controls (--control), and the columns of labels and batches",
        )
    targets, warnings = _targets(assignment, kept, codes, labels, perturbed > 0, genes, roles)

    def listed(names: Any) -> str:
        names = [str(name) for name in names]
        return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")

    if roles.batch is not None and len(batches) == 1:
        warnings.append(f"one batch only ({str(batches[0])!r}): nothing can be said of batches")
    without = np.setdiff1d(np.arange(len(batches)), batch[is_control])
    if len(without):
        warnings.append(f"{len(without)} of {len(batches)} batches have no controls: {listed(batches[without])}")
    few = int(np.sum((perturbed > 0) & (perturbed < 2)))
    if few:
        warnings.append(f"{few:,} of {int(np.sum(perturbed > 0)):,} perturbations have fewer than 2 samples")
    both = labels[(perturbed > 0) & (controls > 0)]
    if len(both):
        warnings.append(f"{len(both)} labels are carried by controls and by perturbed samples: {listed(both)}")
    combined = [label for label in labels[perturbed > 0].tolist() if _is_combination(label)]
    if combined and roles.target_gene is None:
        warnings.append(
            f"{len(combined):,} perturbations are combinations, without a single target: {listed(combined)}"
        )
    doubtful = [label for label in labels[perturbed > 0].tolist() if label.strip().lower() in DOUBTFUL]
    for label in doubtful:
        count = int(perturbed[np.flatnonzero(labels == label)[0]])
        warnings.append(
            f"{count:,} samples are labelled {label!r}, taken as a perturbation like any other: "
            f"if it means that nothing is known of them, leave them out with --exclude {label!r}"
        )
    spelled: dict[str, list[str]] = {}
    for label in labels.tolist():
        spelled.setdefault(label.strip().lower(), []).append(label)
    for same in spelled.values():
        if len(same) > 1:
            warnings.append(f"labels that differ only in case or spaces are kept apart: {', '.join(map(repr, same))}")
    samples = Samples(
        perturbation=codes,
        perturbations=labels,
        is_control=is_control,
        batch=batch,
        batches=batches,
        target_genes=targets,
        cell_line=cell_line,
        cell_lines=cell_lines,
    )
    return samples, warnings


def _targets(
    assignment: Assignment, kept: Ints, codes: Ints, labels: Strings, is_perturbed: Bools, genes: Strings, roles: Roles
) -> tuple[Strings, list[str]]:
    """Target gene of each perturbation, "" where there is none."""
    out = [""] * len(labels)
    warnings = []
    if assignment.target is None:
        known = set(genes.tolist())
        out = [single_gene(label, known) if p else "" for label, p in zip(labels.tolist(), is_perturbed, strict=True)]
    else:
        target = assignment.target.codes[kept]
        has = (target >= 0) & ~assignment.is_control[kept]
        pairs = np.unique(np.column_stack([codes[has], target[has]]), axis=0)
        several = []
        first = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        for code, index, count in zip(*first, strict=True):
            if count == 1:
                out[int(code)] = single_gene(str(assignment.target.labels[pairs[index, 1]]), set(genes.tolist()))
            else:
                several.append(str(labels[code]))
        if several:
            warnings.append(
                f"{len(several)} perturbations have several genes in {roles.target_gene!r}, so no single target: "
                + ", ".join(several[:10])
            )
    found = np.array(out, dtype=str)
    n_targets = len(np.unique(found[found != ""]))
    n_measured = int(np.isin(np.unique(found[found != ""]), genes).sum())
    if n_targets and not n_measured:
        warnings.append(f"none of the {n_targets:,} target genes is among the {len(genes):,} measured genes")
    return found, warnings
