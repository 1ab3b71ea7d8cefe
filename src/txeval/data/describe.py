"""What a file of unknown origin seems to hold: roles, controls, batches and scale, each with its reason.

Nothing is decided here: a description is a proposal for a person, and its YAML says on what each line rests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.arrays import Bools, Ints, Strings
from txeval.data.gene_names import looks_like_ensembl, looks_like_symbols, without_version
from txeval.data.harmonise import (
    DOUBTFUL,
    MISSING,
    GuidePattern,
    Separator,
    control_spelling,
    find_guide_pattern,
    find_name_patterns,
    find_separator,
    is_guide_pool,
    parts_of,
)
from txeval.data.matrix import Matrix, Store, open_store, var_of
from txeval.data.roles import read_labels
from txeval.data.scale import determine
from txeval.data.screen import holds_counts, look_at
from txeval.data.split import split
from txeval.errors import InputError

__all__ = ["Column", "Description", "Finding", "Proposal", "describe"]

RELATIONSHIPS = "5 relationships"
LEVELS = ("1 batch mixing", "2 linear separability", "3 consistency", "4 kNN", RELATIONSHIPS, "6 reconstruction")

#: The order in which roles are shown and written.
ORDER = (
    *("perturbation", "control", "control_column", "exclude", "separator", "batch", "target_gene", "cell_line"),
    *("gene_symbol", "layer", "min_counts", "tasks", "embeddings"),
)

#: A column of more labels names samples rather than what was done to them.
MANY_LABELS = 100_000

#: A panel of fewer genes than this has smaller totals than the threshold for whole transcriptomes is meant for.
PANEL_GENES = 5000

#: Threshold of the protocols, which proposals are held against.
MIN_COUNTS = 1000

#: Words in names of columns -> how much they speak for a role.
_PERTURBATION = {
    **dict.fromkeys(("perturbation", "perturbations"), 6.0),
    **dict.fromkeys(("target_gene", "gene_target", "guide_target", "perturbed_gene", "target", "pert_iname"), 5.0),
    **dict.fromkeys(("perturbation_name", "perturbation_label", "pert_name", "treatmentid", "compound", "drug"), 5.0),
    **dict.fromkeys(("gene", "gene_name", "gene_symbol", "gene_id", "ensembl_gene_id", "knockout", "tf"), 4.0),
    **dict.fromkeys(("condition", "treatment", "cytokine", "stimulus", "product_name", "drug_name"), 4.0),
    **dict.fromkeys(("pert_id", "pert", "guide", "grna", "sgrna", "guide_id", "guide_identity", "sgid_ab"), 3.0),
    **dict.fromkeys(("stim", "stimulation", "perturbation_raw", "group", "treatment_id", "agent"), 2.0),
}
_BATCH = {
    **dict.fromkeys(("batch", "batch_id", "batchid", "gem_group", "gemgroup", "lane", "dataset_batch_num"), 6.0),
    **dict.fromkeys(("plate", "plate_id", "det_plate", "rna_plate", "pert_plate", "library", "library_id"), 6.0),
    **dict.fromkeys(("channel", "gem", "gem_well", "pool", "run", "run_id", "10x_run", "seq_run", "chip"), 5.0),
    **dict.fromkeys(("bio_rep", "replicate", "rep", "replicate_id", "orig_ident", "experiment", "batch_name"), 4.0),
    **dict.fromkeys(("donor", "donor_id", "patient", "patient_id", "individual", "individual_id", "mouse"), 3.0),
    **dict.fromkeys(("subject", "subject_id", "sample", "sample_id", "mouse_id", "animal"), 2.5),
}
_CELL_LINE = {
    **dict.fromkeys(("cell_line", "cellline", "cell_lines", "cell_id", "cell_iname"), 6.0),
    **dict.fromkeys(("cell_type", "celltype", "cell_types", "cell", "cell_name", "line"), 4.0),
}
_SYMBOLS = ("gene_symbol", "symbol", "gene_name", "gene_names", "pr_gene_symbol", "gene_short_name", "feature_name")
_CONTROL_FLAGS = ("control", "is_control", "iscontrol", "is_ctrl", "ctrl", "negative_control", "is_negative_control")
_CONTROL_KINDS = ("pert_type", "xptype", "sample_type", "type", "perturbation_type", "guide_type", "feature_type")
_POSITIONS = ("well", "row", "col", "column", "well_id", "wells", "position", "quadrant", "plate_row", "plate_col")
_POSITION = re.compile(r"(?:^|_)(?:well|row|col|column|position|pos|coordinate)s?(?:_|$)")
_CLUSTER = re.compile(r"leiden|louvain|cluster|seurat|phase$|annotation|snn_res")
_MEASURE = re.compile(
    r"^(?:n|num|nr|total|log1p|pct|percent|frac|fraction|mean|median|sum)[_.]?|umi|count|ngene|ncount|nfeature|mito|ribo"
    r"|score|depth|quality|support|pval|p_value|size_factor|doublet"
)
_DOSE_TIME = re.compile(r"dose|conc|time|duration|day|hour|age|^dox")
#: Symbols of human genes, without those that could as well be codes of compounds.
_HUMAN = re.compile(r"^[A-Z][A-Z0-9]{1,11}(?:-[A-Z0-9]{1,2})?$|^C[0-9XY]+orf[0-9]+$")
_CONSTANT_KINDS = re.compile(r"^(?:species|organism|tissue|organ|sex|gender|disease|diagnosis|location|ethnicity|test)")


@dataclass(frozen=True)
class Proposal:
    """What a role should be, and why.

    Attributes
    ----------
    role
        Name as in the YAML of a run: perturbation, control, batch, layer, min_counts, ...
    value
        The proposal; None where nothing can be proposed.
    why
        What it rests on; for None, what is missing and what the user can do.
    others
        Other values that could be meant, each with a remark.
    rejected
        Values that it can hardly be, though a name may say so, each with the reason.
    """

    role: str
    value: Any
    why: str
    others: tuple[tuple[str, str], ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at before running.

    Attributes
    ----------
    text
        What was found, with numbers and examples.
    remedy
        What can be done, "" where nothing needs to be.
    """

    text: str
    remedy: str = ""


@dataclass
class Column:
    """A column of `obs` as labels.

    Attributes
    ----------
    kind
        "labels", "numbers", "flag", "constant", "unique" or "empty".
    codes
        (n,) int64 into `labels`, -1 where the label is missing.
    counts
        (k,) samples of each label.
    """

    name: str
    kind: str
    codes: Ints
    labels: Strings
    counts: Ints
    missing: int = 0
    note: str = ""

    @property
    def n(self) -> int:
        """Number of distinct labels."""
        return len(self.labels)

    def shown(self, number: int = 3) -> str:
        """The most frequent labels with their counts, for people."""
        order = np.argsort(-self.counts, kind="stable")[:number]
        text = ", ".join(f"{_short(str(self.labels[i]))} ({int(self.counts[i]):,})" for i in order)
        return text + (", ..." if self.n > number else "")


@dataclass
class Description:
    """What a file seems to hold.

    Attributes
    ----------
    proposals
        Role -> proposal, in the order in which they are shown.
    findings
        What a person should look at.
    columns
        Every column of `obs`.
    n_targets
        Number of perturbed genes.
    levels
        Name of a level -> "" where the file has what it needs, else what is missing. Level 5 also needs known
        relationships among the genes, which the databases tell, not the file.
    """

    path: Path
    kind: str
    shape: tuple[int, int]
    where: str
    stored: str
    scale: str
    scale_why: str
    layers: list[str]
    obsm: dict[str, int]
    genes: str
    labels: Path | None = None
    n_targets: int = 0
    proposals: dict[str, Proposal] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    levels: dict[str, str] = field(default_factory=dict)

    def value(self, role: str) -> Any:
        """The proposed value of a role, None where there is none."""
        found = self.proposals.get(role)
        return None if found is None else found.value

    @property
    def complete(self) -> bool:
        """Whether perturbation and controls are known, so that a run can be made of it."""
        return self.value("perturbation") is not None and bool(self.value("control") or self.value("control_column"))


def describe(path: str | Path, *, labels: str | Path | None = None) -> Description:
    """Look at a file and propose what its columns are, on what scale its values are, and what could be run.

    Reads all labels, and a sample of the values spread over the file.

    Parameters
    ----------
    path
        A file or folder of any format that `txeval.data.matrix.open_store` opens.
    labels
        Table of labels to join by the names of the samples.

    Raises
    ------
    InputError
        The file cannot be used at all.
    """
    path, labels = Path(path), None if labels is None else Path(labels)
    store = open_store(path, labels=labels)
    try:
        return _Look(store, labels).describe()
    finally:
        store.close()


class _Look:
    """One look at an open file."""

    def __init__(self, store: Store, labels: Path | None) -> None:
        self.store = store
        self.findings: list[Finding] = []
        self.proposals: dict[str, Proposal] = {}
        self.separator = ""
        self.names = store.names("obs")
        self.genes = store.names("var")
        where, matrix = self._values()
        self.matrix = matrix
        n, g = matrix.shape
        if (n, g) != (len(self.names), len(self.genes)):
            raise InputError(
                f"{store.path}: {where} is {n:,} x {g:,}, but there are {len(self.names):,} samples and"
                f" {len(self.genes):,} genes",
                remedy="the parts of the file do not fit together: write it again",
            )
        if not n or not g:
            raise InputError(
                f"{store.path}: {n:,} samples and {g:,} genes: nothing to look at", remedy="check the file"
            )
        obsm = {}
        for key in store.keys("obsm"):
            table = store.table(f"obsm/{key}")
            obsm[key] = int(table.shape[1] if table is not None else store.matrix(f"obsm/{key}").shape[1])
        self.about = Description(
            path=store.path,
            kind=store.kind,
            shape=(n, g),
            where=where,
            stored=matrix.stored,
            scale="",
            scale_why="",
            layers=store.layers(),
            obsm=obsm,
            genes="",
            labels=labels,
        )

    def _values(self) -> tuple[str, Matrix]:
        layers = self.store.layers()
        try:
            return "X", self.store.matrix("X")
        except InputError:
            if not layers:
                raise
        self.findings.append(Finding("there is no X", "the values have to come from a layer"))
        where = self.store.place(layers[0])
        self.genes = self.store.names(var_of(where))
        return where, self.store.matrix(where)

    def describe(self) -> Description:
        about = self.about
        if self.names.size and pd.Index(self.names).has_duplicates:
            same = len(self.names) - pd.Index(self.names).nunique()
            self.findings.append(
                Finding(f"{same:,} samples have the name of another sample", "embeddings cannot be aligned by name")
            )
        columns = [_column(self.store, name, len(self.names)) for name in self.store.columns("obs")]
        about.columns = [column for column in columns if column is not None]
        self._scale()
        self._genes()
        self._landmarks()
        self._perturbation()
        self._controls()
        self._odd_labels()
        self._batch()
        self._other_roles()
        self._is_map()
        self._embeddings()
        self._levels()
        about.proposals = {role: self.proposals[role] for role in ORDER if role in self.proposals}
        # What the reader says comes first, and is complete only now.
        about.findings = [*map(Finding, self.store.notes), *self.findings]
        return about

    # Genes

    def _genes(self) -> None:
        names = [str(name) for name in self.genes]
        ensembl = looks_like_ensembl(names)
        versioned = [name for name in names if without_version(name) != name]
        kind = "Ensembl ids" if ensembl else "symbols" if looks_like_symbols(names) else "names of no known kind"
        example = ", ".join(names[:3])
        self.about.genes = f"{kind} such as {example}"
        self.measured = {*names, *(without_version(name) for name in versioned)}
        same = len(names) - len(set(names))
        bare = len(names) - len({without_version(name) for name in names})
        if same:
            repeated = [str(name) for name in pd.Index(names)[pd.Index(names).duplicated()].unique()[:3]]
            self.findings.append(Finding(f"{same:,} genes have the name of another gene ({', '.join(repeated)})"))
        if versioned:
            text = f"{len(versioned):,} Ensembl ids carry a version (such as {versioned[0]})"
            self.findings.append(
                Finding(
                    text + (f"; without it {bare - same:,} of them are the same gene" if bare > same else ""),
                    "models that want Ensembl ids strip it; relationships are listed by symbols",
                )
            )
        var = var_of(self.about.where)
        symbols = [
            name
            for name in self.store.columns(var)
            if _plain(name) in _SYMBOLS
            and (column := self.store.optional_column(var, name)) is not None
            and looks_like_symbols(map(str, column[:2000]))
        ]
        if kind == "symbols":
            return
        if symbols:
            values = [str(value) for value in self.store.column(var, symbols[0])]
            self.measured |= set(values)
            self.proposals["gene_symbol"] = Proposal(
                "gene_symbol",
                symbols[0],
                f"the genes are named by {kind} ({names[0]}); var column {symbols[0]!r} holds symbols"
                f" ({values[0]}, ...)",
            )
        elif ensembl:
            self.findings.append(
                Finding(
                    "the genes are Ensembl ids and no column of var holds symbols",
                    "targets named by symbols will not be found among the measured genes (level 3), and level 5 knows"
                    " symbols only: add a column of symbols, and name it as gene_symbol",
                )
            )

    def _landmarks(self) -> None:
        var = var_of(self.about.where)
        for name in self.store.columns(var):
            if _plain(name) not in (
                "pr_is_lm",
                "pr_is_lmark",
                "pr_is_landmark",
                "landmark",
                "is_landmark",
                "feature_space",
            ):
                continue
            values = self.store.column(var, name).astype(str).str.lower()
            measured = int(values.isin(["1", "1.0", "true", "landmark", "y"]).sum())
            if measured < len(values):
                self.findings.append(
                    Finding(
                        f"var column {name!r}: {measured:,} of {len(values):,} genes are measured landmarks, the others"
                        " are inferred from them",
                        "scores of reconstruction over inferred genes count the same information several times",
                    )
                )
            else:
                self.about.genes += f"; all measured landmarks ({name})"
            return

    # Values

    def _scale(self) -> None:
        about = self.about
        evidence, looked = look_at(self.matrix)
        if evidence.nonfinite is not None:
            p = evidence.nonfinite
            self.findings.append(
                Finding(
                    f"{about.where} holds {p.value:g} for sample {self.names[p.row]!r} and gene"
                    f" {self.genes[p.column]!r}",
                    "a run refuses missing values: take them out or fill them in; as an embedding, X@nan=0 reads them"
                    " as 0",
                )
            )
        about.scale, why = determine(evidence)
        about.scale_why = f"{why}; looked at {looked}"
        counts = [
            layer
            for layer in about.layers
            if self.store.place(layer) != about.where and about.scale != "counts" and holds_counts(self.store, layer)
        ]
        if counts:
            layer = counts[0]
            self.proposals["layer"] = Proposal(
                "layer",
                layer,
                f"it holds counts, which X does not ({about.scale}: {why}); quality control and most models want them",
                (("X", f"{about.scale} values"),),
            )
            about.where = self.store.place(layer)
            self.matrix = self.store.matrix(about.where)
            self.genes = self.store.names(var_of(about.where))
            about.shape, about.stored = self.matrix.shape, self.matrix.stored
            evidence, looked = look_at(self.matrix)
            about.scale, why = determine(evidence)
            about.scale_why = f"{why}; looked at {looked}"
        elif about.where != "X":
            self.proposals["layer"] = Proposal("layer", about.layers[0], "there is no X")
        totals = np.array(evidence.totals)
        if about.scale == "counts" and len(totals):
            self._min_counts(totals)

    def _min_counts(self, totals: Any) -> None:
        g = self.about.shape[1]
        passed = float((totals > MIN_COUNTS).mean())
        median = float(np.median(totals))
        seen = f"{passed:.0%} of the samples looked at have more than {MIN_COUNTS:,} counts (median {median:,.0f})"
        if g < PANEL_GENES and passed < 0.95:
            self.proposals["min_counts"] = Proposal(
                "min_counts",
                0,
                f"{seen}: the threshold is for whole transcriptomes, and this is a panel of {g:,} genes",
            )
        elif passed < 0.95:
            self.findings.append(
                Finding(f"{seen}: quality control of the protocols drops the others", "min_counts sets the threshold")
            )

    # What was done to the samples

    def _perturbation(self) -> None:
        candidates = [(self._score(column), column) for column in self.about.columns]
        ranked = sorted(((s, c) for s, c in candidates if s > 0), key=lambda pair: -pair[0])
        self.perturbation: Column | None = None
        if not ranked or ranked[0][0] < 3:
            held = ", ".join(column.name for column in self.about.columns[:12]) or "none"
            self.proposals["perturbation"] = Proposal(
                "perturbation",
                None,
                f"no column of obs says what was done to each sample (columns: {held}); "
                + (
                    "join a table with --labels FILE, or name the column that does"
                    if self.about.labels is None
                    else "name the column that does"
                ),
                tuple((column.name, column.shown()) for _, column in ranked[:3]),
            )
            return
        chosen = ranked[0][1]
        reasons = []
        if _plain(chosen.name) in _PERTURBATION:
            reasons.append("the name")
        spelled = [label for label in chosen.labels.tolist() if control_spelling(label) is not None]
        if spelled:
            reasons.append(f"spells controls ({', '.join(map(_short, spelled[:3]))})")
        targets = [label for label in chosen.labels.tolist() if label in self.measured]
        if len(targets) >= 2:
            reasons.append(f"{len(targets):,} labels are measured genes")
        value, guide = chosen.name, None
        guide = find_guide_pattern(chosen.labels.tolist()) if chosen.n > 3 else None
        if guide is not None and not self._is_target_level(chosen, guide):
            value, chosen = self._by_target(chosen, guide)
            reasons.append(
                f"labels are guides, of which the pattern reads {guide.targets:,} targets ("
                + ", ".join(f"{a} -> {b}" for a, b in guide.examples[:2])
                + ")"
            )
        self.perturbation = chosen
        others: list[tuple[str, str]] = []
        for _, column in ranked[1:]:
            remark = _relation(column, chosen)
            if remark or len(others) < 2:
                others.append((column.name, remark or f"{column.n:,} labels: {column.shown(2)}"))
        text = f"{chosen.n:,} labels: {chosen.shown()}; signs: " + ", ".join(reasons)
        self.proposals["perturbation"] = Proposal("perturbation", value, text, tuple(others[:3]))

    def _score(self, column: Column) -> float:
        name = _plain(column.name)
        n = len(self.names)
        if column.kind in ("constant", "empty", "flag") or (column.kind == "numbers" and name not in _PERTURBATION):
            return 0.0
        if _POSITION.search(name) or _CLUSTER.search(name) or _CONSTANT_KINDS.match(name):
            return 0.0
        if column.n > MANY_LABELS:
            return 0.0
        spelled = [control_spelling(label) for label in column.labels.tolist()]
        sure = any(found is not None and found.sure for found in spelled)
        if column.kind == "unique" and not (n <= 5000 and sure):
            return 0.0
        score = _PERTURBATION.get(name, 0.0)
        score += 3.0 if sure else 1.0 if any(found is not None for found in spelled) else 0.0
        share = sum(label in self.measured for label in column.labels.tolist()) / max(1, column.n)
        score += 2.0 * share if column.n > 2 else 0.0
        if column.n > 3 and find_guide_pattern(column.labels.tolist()) is not None:
            score -= 1.0
        for words, penalty in ((_BATCH, 4.0), (_CELL_LINE, 4.0)):
            if name in words and name not in _PERTURBATION:
                score -= penalty
        if name in _CONTROL_KINDS:
            score -= 4.0
        if _DOSE_TIME.search(name) and name not in _PERTURBATION:
            score -= 4.0
        return score

    def _is_target_level(self, column: Column, guide: GuidePattern) -> bool:
        """Whether labels that look like guides are genes after all (NKX2-1, HLA-A): most are measured as they are."""
        measured = sum(label in self.measured for label in column.labels.tolist())
        return measured > 0.3 * column.n

    def _by_target(self, column: Column, guide: GuidePattern) -> tuple[str, Column]:
        value = f"{column.name}~{guide.pattern}"
        labelled = read_labels(self.store.column("obs", value), value, self.store.path, role="perturbation")
        return value, _labelled(value, labelled.codes, labelled.labels)

    # Controls

    def _controls(self) -> None:
        column = self.perturbation
        self.is_control: Bools | None = None
        if column is None:
            return
        spelled = [(label, control_spelling(label)) for label in column.labels.tolist()]
        sure = [label for label, found in spelled if found is not None and found.sure]
        doubtful = [(label, found) for label, found in spelled if found is not None and not found.sure]
        by_label = np.isin(column.codes, np.flatnonzero(np.isin(column.labels, sure)))
        flagged = self._flags()
        # A flag that agrees with another, or with the labels, says the same thing once more.
        tellers: list[tuple[str, Bools]] = [(f"obs column {name!r}", flags) for name, flags in flagged]
        if sure:
            tellers.insert(0, (f"the label{'s' if len(sure) > 1 else ''} {', '.join(map(repr, sure[:4]))}", by_label))
        if not tellers:
            self.proposals["control"] = Proposal(
                "control",
                None,
                f"none of the labels of {column.name!r} spells a control, and no column marks them; name them with"
                " --control LABEL or --control-column COLUMN"
                if not doubtful
                else f"the labels {', '.join(repr(label) for label, _ in doubtful[:5])} may be controls"
                f" ({doubtful[0][1].what if doubtful[0][1] else ''}), but may be perturbations: name those that are",
            )
            return
        first_name, first = tellers[0]
        for name, flags in tellers[1:]:
            if not np.array_equal(flags, first):
                only, other = int((first & ~flags).sum()), int((flags & ~first).sum())
                marked = column.labels[np.unique(column.codes[flags & ~first & (column.codes >= 0)])].tolist()
                weak = {label for label, _ in doubtful}
                if first_name.startswith("the label") and marked and not only and set(marked) <= weak:
                    continue  # what the labels leave open, the column tells
                self.findings.append(
                    Finding(
                        f"two sources of controls disagree: {first_name} and {name} differ for {only + other:,} samples"
                        f" ({only:,} only by the first, {other:,} only by the second)",
                        "look at those samples, and name the controls yourself",
                    )
                )
                self.proposals["control"] = Proposal(
                    "control",
                    None,
                    f"{first_name} and {name} do not mark the same samples ({int(first.sum()):,} and"
                    f" {int(flags.sum()):,}): which is right cannot be known from the file",
                    ((first_name, f"{int(first.sum()):,} samples"), (name, f"{int(flags.sum()):,} samples")),
                )
                return
        confirmed = [label for label, _ in doubtful if self._all_flagged(column, label, flagged)]
        chosen = [*sure, *confirmed]
        if chosen:
            self.is_control = np.isin(column.codes, np.flatnonzero(np.isin(column.labels, chosen)))
            kinds = sorted({found.what for label, found in spelled if label in chosen and found is not None})
            also = [name for name, _ in tellers[1:]]
            why = f"{int(self.is_control.sum()):,} samples; signs: spelled as {' / '.join(kinds)}"
            why += f", and {' and '.join(also)} mark{'s' if len(also) == 1 else ''} the same" if also else ""
            # A column that marks controls, and does not mark them, has answered for them.
            left = [label for label, _ in doubtful if label not in chosen and not flagged]
            others = tuple((label, f"may be a control too ({control_what(label)})") for label in left[:5])
            self.proposals["control"] = Proposal("control", chosen, why, others)
        else:
            name, flags = flagged[0]
            self.is_control = flags
            self.proposals["control_column"] = Proposal(
                "control_column", name, f"marks {int(flags.sum()):,} of {len(flags):,} samples"
            )

    def _all_flagged(self, column: Column, label: str, flagged: Sequence[tuple[str, Bools]]) -> bool:
        rows = column.codes == int(np.flatnonzero(column.labels == label)[0])
        return bool(flagged) and all(bool(flags[rows].all()) for _, flags in flagged)

    def _flags(self) -> list[tuple[str, Bools]]:
        """Columns that mark controls: true/false ones, and kinds of samples of which some spell controls."""
        found = []
        for column in self.about.columns:
            name = _plain(column.name)
            if column.kind == "flag" and name in _CONTROL_FLAGS:
                true = {"true", "1", "1.0"}
                marks = [label.strip().lower() in true for label in column.labels.tolist()]
                found.append((column.name, np.isin(column.codes, np.flatnonzero(marks))))
            elif name in _CONTROL_KINDS and column.kind == "labels":
                spelled = [label for label in column.labels.tolist() if _surely(label)]
                if spelled and len(spelled) < column.n:
                    pattern = "|".join(re.escape(label) for label in spelled)
                    flags = np.isin(column.codes, np.flatnonzero(np.isin(column.labels, spelled)))
                    found.append((f"{column.name}~^({pattern})$", flags))
        return [(name, flags) for name, flags in found if flags.any() and not flags.all()]

    # Labels that a person should see

    def _odd_labels(self) -> None:
        column = self.perturbation
        if column is None:
            return
        labels = column.labels.tolist()
        if column.missing:
            self.findings.append(
                Finding(
                    f"{column.missing:,} samples have no label in {column.name!r}{column.note}",
                    "they are left out, and counted",
                )
            )
        controls = set(self.value("control") or ())
        doubtful = [label for label in labels if label.strip().lower() in DOUBTFUL and label not in controls]
        if doubtful:
            rows = int(column.counts[np.isin(column.labels, doubtful)].sum())
            self.proposals["exclude"] = Proposal(
                "exclude",
                doubtful,
                f"{rows:,} samples: as a text it means that nothing is known; delete the line if it is a perturbation",
            )
        pools = [label for label in labels if is_guide_pool(label)]
        if pools:
            rows = int(column.counts[np.isin(column.labels, pools)].sum())
            self.findings.append(
                Finding(
                    f"{len(pools):,} labels of {column.name!r} ({rows:,} samples) are pools of guides, not targets:"
                    f" {', '.join(map(_short, pools[:2]))}",
                    "each counts as a perturbation of its own; a column of targets would be better",
                )
            )
        separator = find_separator([label for label in labels if label not in controls], self.measured)
        if separator is not None and not pools:
            self._combinations(column, separator)
        spelled: dict[str, list[str]] = {}
        for label in labels:
            spelled.setdefault(re.sub(r"[\s_\-]+", "", label.lower()), []).append(label)
        for same in spelled.values():
            if len(same) > 1:
                text = ", ".join(map(repr, same))
                self.findings.append(Finding(f"labels that differ only in case, spaces or hyphens: {text}"))

    def _combinations(self, column: Column, separator: Separator) -> None:
        self.separator = separator.text
        examples = ", ".join(separator.labels[:2])
        text = f"{len(separator.labels):,} labels are combinations joined by {separator.text!r} ({examples})"
        if separator.same:
            first = " and ".join(map(repr, separator.same[0]))
            self.proposals["separator"] = Proposal(
                "separator",
                separator.text,
                f"{text}; {len(separator.same):,} occur in several forms, such as {first}, which become one label",
            )
            return
        self.findings.append(
            Finding(text, "each is a perturbation of its own, without a single target; none occurs in another order")
        )

    # Batches

    def _batch(self) -> None:
        ranked: list[tuple[float, Column, str]] = []
        rejected: list[tuple[str, str]] = []
        for column in self.about.columns:
            name = _plain(column.name)
            weight = _BATCH.get(name, 0.0)
            if not weight and re.search(r"(?:^|_)(?:batch|plate|lane|replicate|library|gem)(?:_|$)", name):
                weight = 4.0
            if _POSITION.search(name) or name in _POSITIONS:
                if column.kind in ("labels", "unique"):
                    rejected.append((column.name, "a position on a plate, not a batch"))
                continue
            if not weight:
                continue
            if column.kind == "constant":
                rejected.append((column.name, f"the same for all samples ({_short(str(column.labels[0]))})"))
            elif column.kind == "unique":
                rejected.append((column.name, "another one for each sample"))
            elif column.kind in ("labels", "numbers", "flag"):
                ranked.append((weight, column, ""))
        positions = [column for column in self.about.columns if _POSITION.search(_plain(column.name))]
        for found in find_name_patterns(self.names):
            labelled = read_labels(found.labels, "names", self.store.path, role="batch")
            column = _labelled(f"names~{found.pattern}", labelled.codes, labelled.labels)
            if column.n < 2:
                rejected.append((column.name, f"{found.what}, the same for all samples ({column.labels[0]})"))
            elif found.share < 0.99:
                rejected.append((column.name, f"{found.what}, found in {found.share:.0%} of the names only"))
            elif any(_same(column, other) for other in positions):
                rejected.append((column.name, "the same as a column of positions on a plate"))
            elif not any(_same(column, other) for _, other, _ in ranked):
                ranked.append((1.5, column, found.what))
        usable: list[tuple[float, Column, str]] = []
        for weight, column, what in sorted(ranked, key=lambda entry: -entry[0]):
            wrong = self._unusable(column, from_names=bool(what))
            if wrong:
                rejected.append((column.name, wrong))
            else:
                usable.append((weight, column, what))
        self.batch: Column | None = usable[0][1] if usable else None
        if self.batch is None:
            self.proposals["batch"] = Proposal(
                "batch",
                None,
                "no column and no part of the samples' names tells batches: all samples are one batch, and levels 1, 2,"
                " 4 and 6, which test in other batches than they learn from, have no score",
                rejected=tuple(rejected[:4]),
            )
            return
        weight, column, what = usable[0]
        why = f"{column.n:,} labels: {column.shown()}; signs: {what or 'the name'}"
        why += self._batch_facts(column)
        others = [(other.name, f"{other.n:,} labels") for _, other, _ in usable[1:3]]
        self.proposals["batch"] = Proposal("batch", column.name, why, tuple(others), tuple(rejected[:2]))

    def _unusable(self, column: Column, *, from_names: bool) -> str:
        """Why a column cannot be the batch; "" where it can."""
        if self.perturbation is not None and (
            _same(column, self.perturbation) or column.name == self.perturbation.name
        ):
            return "the same grouping as the perturbation"
        if self.is_control is None:
            return ""
        known = column.codes >= 0
        controls = np.bincount(column.codes[known & self.is_control], minlength=column.n)
        perturbed = np.bincount(column.codes[known & ~self.is_control], minlength=column.n)
        both = int(((controls > 0) & (perturbed > 0)).sum())
        if not both:
            return "each of its labels has either controls or perturbed samples, never both: it is part of the design"
        if from_names and both < column.n:
            return f"only {both:,} of its {column.n:,} labels have both controls and perturbed samples"
        if column.n > 0.5 * known.sum():
            return f"{column.n:,} labels for {int(known.sum()):,} samples are too many"
        return ""

    def _batch_facts(self, column: Column) -> str:
        if self.is_control is None or self.perturbation is None:
            return ""
        known = column.codes >= 0
        controls = np.bincount(column.codes[known & self.is_control], minlength=column.n)
        text = f", controls in {int((controls > 0).sum()):,} of {column.n:,}"
        rows = known & ~self.is_control & (self.perturbation.codes >= 0)
        pairs = np.unique(np.column_stack([self.perturbation.codes[rows], column.codes[rows]]), axis=0)
        per = np.bincount(pairs[:, 0], minlength=self.perturbation.n)
        alone, there = int((per == 1).sum()), int((per > 0).sum())
        if column.n > 1 and there and alone > 0.5 * there:
            self.findings.append(
                Finding(
                    f"{alone:,} of {there:,} perturbations occur in one batch of {column.name!r} only",
                    "levels 2 and 4 test in other batches than they learn from: such perturbations cannot be scored",
                )
            )
        return text

    # The rest

    def _other_roles(self) -> None:
        taken = {self.value(role) for role in ("perturbation", "batch")}
        lines = [
            (_CELL_LINE[_plain(column.name)], column)
            for column in self.about.columns
            if _plain(column.name) in _CELL_LINE and column.name not in taken
        ]
        several = sorted(((w, c) for w, c in lines if c.kind in ("labels", "flag")), key=lambda pair: -pair[0])
        if several:
            column = several[0][1]
            self.proposals["cell_line"] = Proposal(
                "cell_line", column.name, f"{column.n:,} labels: {column.shown()}; signs: the name"
            )
        elif lines and lines[0][1].kind == "constant":
            column = lines[0][1]
            self.proposals["cell_line"] = Proposal(
                "cell_line", None, f"one only: {_short(str(column.labels[0]))} (obs column {column.name!r})"
            )
        self._target_gene()
        shown = {self.value(role) for role in ("perturbation", "batch", "cell_line", "target_gene", "control_column")}
        conditions = [
            column
            for column in self.about.columns
            if column.kind == "labels"
            and column.name not in shown
            and column.n <= 20
            and (
                _DOSE_TIME.search(_plain(column.name))
                or _plain(column.name) in ("stimulation", "treatment", "condition")
            )
            and not (
                self.perturbation is not None
                and (_same(column, self.perturbation) or _relation(column, self.perturbation))
            )
        ]
        for column in conditions[:4]:
            self.findings.append(
                Finding(
                    f"obs column {column.name!r} may be a further condition: {column.n:,} labels, {column.shown(4)}",
                    "samples of one perturbation are taken together, whatever it says",
                )
            )

    def _target_gene(self) -> None:
        column = self.perturbation
        if column is None or looks_like_symbols(column.labels.tolist()):
            return
        for other in self.about.columns:
            if _plain(other.name) not in ("target", "target_gene", "gene", "gene_symbol", "gene_name", "guide_target"):
                continue
            if other.name == column.name or other.kind not in ("labels", "unique"):
                continue
            if looks_like_symbols(other.labels.tolist()) and _nested(column, other):
                self.proposals["target_gene"] = Proposal(
                    "target_gene",
                    other.name,
                    f"the labels of {column.name!r} are no gene symbols; here each has one ({other.shown(2)})",
                )
                return

    def value(self, role: str) -> Any:
        found = self.proposals.get(role)
        return None if found is None else found.value

    def _is_map(self) -> None:
        column = self.perturbation
        self.is_map = column is not None and column.kind == "unique"
        self.is_distance = self.is_map and list(self.names) == list(self.genes)
        if not self.is_map or column is None:
            return
        self.findings.append(
            Finding(
                "a map: one sample for each perturbation",
                "only level 5, recall of known relationships, has something to compare",
            )
        )
        if self.is_distance:
            self.findings.append(
                Finding(
                    f"the columns of {self.about.where} are the samples themselves: pairwise values, such as distances",
                    "they are no features; use an embedding in obsm",
                )
            )
        if self.value("batch") is None:
            self.proposals["batch"] = Proposal("batch", None, "one sample for each perturbation has no batches")
        self.proposals["tasks"] = Proposal(
            "tasks", ["relationships"], "the other levels need several samples of each perturbation"
        )

    def _embeddings(self) -> None:
        chosen, reasons = [], []
        for key, width in self.about.obsm.items():
            if width <= 3 or re.search(r"umap|tsne|spatial|fa2|phate", key.lower()):
                reasons.append(f"obsm/{key} ({width} dimensions) is a drawing, not a representation")
            else:
                chosen.append(f"obsm:{key}")
        if self.is_map and not self.is_distance:
            nan = any("a run refuses missing values" in finding.remedy for finding in self.findings)
            chosen.insert(0, "map=X@nan=0" if nan else "map=X")
        elif not self.is_map:
            # PCA takes counts unless told what the values are.
            given = {"counts": "", "normalized": "@input=lognorm", "log1p": "@input=lognorm"}
            chosen.insert(0, "pca" + given.get(self.about.scale, "@input=as_is"))
        why = "the random baseline is added by itself" + "".join(f"; {reason}" for reason in reasons)
        self.proposals["embeddings"] = Proposal("embeddings", chosen or None, why)

    def _levels(self) -> None:
        levels = dict.fromkeys(LEVELS, "")
        column = self.perturbation
        if column is None or self.is_control is None:
            self.about.levels = dict.fromkeys(LEVELS, "perturbations and controls have to be known")
            return
        excluded = np.isin(column.codes, np.flatnonzero(np.isin(column.labels, self.value("exclude") or ())))
        rows = np.flatnonzero((column.codes >= 0) & ~excluded)
        batch = self.batch.codes if self.batch is not None else np.zeros(len(column.codes), dtype=np.int64)
        rows = rows[batch[rows] >= 0]
        control = self.is_control[rows]
        labels, batches = column.labels[column.codes[rows]], batch[rows].astype(str)
        n_batches = len(np.unique(batches))
        if self.is_map:
            levels = dict.fromkeys(LEVELS, "needs several samples of each perturbation")
            levels[RELATIONSHIPS] = ""
        elif n_batches < 2:
            for name in ("1 batch mixing", "2 linear separability", "4 kNN", "6 reconstruction"):
                levels[name] = "needs several batches"
        elif not control.any() or control.all():
            levels = dict.fromkeys(LEVELS, "needs controls and perturbed samples")
        else:
            parts = split(labels, batches, control, seed=0)
            perturbed = {name: int((~control[part]).sum()) for name, part in parts.items()}
            test = len(np.unique(batches[parts["test"]]))
            if test < 2:
                levels["1 batch mixing"] = f"the test split has {test} of the {n_batches} batches; two are needed"
            classes = len(np.unique(labels[parts["test"]][~control[parts["test"]]]))
            for name in ("2 linear separability", "4 kNN"):
                if not perturbed["test"]:
                    levels[name] = "no perturbation of the test batches is in the train batches"
            if not levels["2 linear separability"] and classes < 2:
                levels["2 linear separability"] = "needs two perturbations in the test split"
            if not perturbed["heldout"]:
                levels["6 reconstruction"] = "the heldout split has no perturbed samples"
        if not self.is_map and len(np.unique(labels[~control])) < 2:
            levels["3 consistency"] = "needs several perturbations"
        targets = self._targets(labels[~control])
        self.about.n_targets = len(targets)
        if len(targets) < 50:
            levels[RELATIONSHIPS] = f"needs 50 perturbed genes, there are {len(targets):,}"
        self.about.levels = levels

    def _targets(self, labels: Any) -> set[str]:
        """Labels that are one gene; none where they do not look like gene symbols as a whole (drugs, conditions)."""
        names = {str(label) for label in np.unique(labels)}
        separator = self.separator
        if self.value("target_gene") is not None:
            column = self.store.column("obs", self.value("target_gene"))
            return {str(value) for value in column.dropna().unique()}
        single = {name for name in names if not separator or len(parts_of(name, separator)) < 2}
        single = {
            name for name in single if control_spelling(name) is None and name.lower() not in (*DOUBTFUL, *MISSING)
        }
        known = sum(name in self.measured for name in single)
        spelled = sum(bool(_HUMAN.match(name)) for name in single)
        return single if known > 0.3 * len(single) or spelled > 0.8 * len(single) else set()


def control_what(label: str) -> str:
    """Kind of control that a label spells, "" for none."""
    found = control_spelling(label)
    return "" if found is None else found.what


def _surely(label: str) -> bool:
    found = control_spelling(label)
    return found is not None and found.sure


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _short(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _labelled(name: str, codes: Ints, labels: Strings, kind: str = "") -> Column:
    counts = np.bincount(codes[codes >= 0], minlength=len(labels))
    used = np.flatnonzero(counts)
    moved = np.full(len(labels) + 1, -1, dtype=np.int64)
    moved[used] = np.arange(len(used))
    codes, labels, counts = moved[codes], labels[used], counts[used]
    known = int((codes >= 0).sum())
    if not kind:
        kind = "labels"
        if not len(labels):
            kind = "empty"
        elif len(labels) == 1:
            kind = "constant"
        elif len(labels) == known and known > 2:
            kind = "unique"
    return Column(name, kind, codes, labels, counts, missing=len(codes) - known)


def _column(store: Store, name: str, n: int) -> Column | None:
    """A column of `obs`, and what kind of column it is; None where it cannot be read."""
    column = store.optional_column("obs", name)
    if column is None:
        return None
    if len(column) != n:
        raise InputError(
            f"{store.path}: obs column {name!r} has {len(column):,} values for {n:,} samples",
            remedy="the parts of the file do not fit together: write it again",
        )
    plain = _plain(name)
    numeric = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
    distinct = int(column.nunique())
    if numeric:
        values = pd.to_numeric(column, errors="coerce")
        whole = bool((values.dropna() % 1 == 0).all())
        # Numbers are labels where they are few and whole, or where the name says what they are.
        named = plain in _BATCH or plain in _PERTURBATION
        if not whole or (_MEASURE.search(plain) and not named) or (distinct > max(20, 0.02 * n) and not named):
            known = int(column.notna().sum())
            kind = "constant" if distinct == 1 else "empty" if not known else "numbers"
            labels = np.array([f"{float(values.dropna().iloc[0]):g}"] if kind == "constant" else [], dtype=str)
            codes = np.where(column.notna(), 0 if kind == "constant" else -1, -1).astype(np.int64)
            return Column(
                name, kind, codes, labels, np.array([known] if len(labels) else [], dtype=np.int64), n - known
            )
    # A text such as "none" may be the control: what nobody has named yet is proposed, not dropped.
    labelled = read_labels(
        column, name, store.path, role="column", never_missing=lambda label: control_spelling(label) is not None
    )
    made = _labelled(name, labelled.codes, labelled.labels)
    spelled = {label.strip().lower() for label in made.labels.tolist()}
    if made.n == 2 and (
        pd.api.types.is_bool_dtype(column.dtype) or spelled <= {"true", "false", "1", "0", "1.0", "0.0"}
    ):
        made.kind = "flag"
    if labelled.missing_texts:
        texts = ", ".join(f"{count:,} as {text!r}" for text, count in labelled.missing_texts.items())
        made.note = f" ({texts})"
    return made


def _same(a: Column, b: Column) -> bool:
    """Whether two columns group the samples in the same way."""
    if a.n != b.n or not a.n:
        return False
    pairs = np.unique(np.column_stack([a.codes, b.codes]), axis=0)
    return len(pairs) == len(np.unique(a.codes)) == len(np.unique(b.codes))


def _nested(fine: Column, coarse: Column) -> bool:
    """Whether each label of one column goes with one label of another only."""
    rows = (fine.codes >= 0) & (coarse.codes >= 0)
    pairs = np.unique(np.column_stack([fine.codes[rows], coarse.codes[rows]]), axis=0)
    return len(pairs) == len(np.unique(pairs[:, 0])) and len(pairs) > 0


def _relation(column: Column, chosen: Column) -> str:
    """How another column relates to the chosen one; "" where it does not."""
    if column.kind not in ("labels", "flag", "unique"):
        return ""
    if _same(column, chosen):
        return "the same grouping under other labels" if set(column.labels) != set(chosen.labels) else "the same labels"
    if _nested(column, chosen):
        return f"finer: {column.n:,} labels, each within one of {chosen.n:,}"
    return ""
