"""What labels mean: spellings of controls, combinations, guides and their targets, batches in sample names.

Everything here proposes, with the reason. Nothing is decided: the roles of a screen are what the user names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from txeval.data.gene_names import is_symbol, looks_like_symbols

__all__ = [
    "DOUBTFUL",
    "MISSING",
    "ControlSpelling",
    "GuidePattern",
    "NamePattern",
    "Separator",
    "canonical",
    "control_spelling",
    "find_guide_pattern",
    "find_name_patterns",
    "find_separator",
    "is_guide_pool",
    "parts_of",
]

#: Texts that stand for a missing label, compared without case and outer spaces: those of pandas and Python, R's NA and
#: its smallest integer, the Connectivity Map's -666. A label that the user names is none of them.
MISSING = ("", "nan", "<na>", "na", "n/a", "none", "null", "-666", "-666.0", "-2147483648", "-2147483648.0")

#: Texts that often stand for a missing label, but may be real: kept, and said.
DOUBTFUL = (
    *("unassigned", "unknown", "ambiguous", "multiplet", "doublet", "undetermined"),
    *("negative", "multi", "multiple", "not assigned", "no guide", "no grna", "no sgrna", "unmapped"),
)

#: What joins the genes of a combination, in the order in which it is looked for.
SEPARATORS = ("+", "|", "_", ";", ",", "&", "/", ":")


@dataclass(frozen=True)
class ControlSpelling:
    """A label that looks like a control.

    Attributes
    ----------
    what
        The kind of control that it spells.
    sure
        Whether the text means nothing else in this field; a reporter such as GFP or a locus such as AAVS1 may.
    """

    label: str
    what: str
    sure: bool


_NUMBER = r"(?: ?#?\d+)*"
_GUIDE = r"(?: ?(?:guides?|g ?rnas?|sg ?rnas?|sg|g|sh ?rnas?|si ?rnas?|controls?|ctrls?|ctl|oligo|cells?))*"
#: (kind, whether it is sure, pattern over the text in lower case with separators as single spaces)
_CONTROLS = tuple(
    (what, sure, re.compile(pattern))
    for what, sure, pattern in (
        ("non-targeting guide", True, r"(?:^|.*\b)non ?target(?:ing|ed)?.*"),
        ("non-targeting guide", True, rf"(?:sg ?)?ntc?{_GUIDE}{_NUMBER}"),
        ("scrambled guide", True, rf"(?:sh|si|sg)? ?(?:scr(?: ?#?\d+)?|scrambled?{_GUIDE}{_NUMBER})"),
        ("safe-targeting guide", True, r"(?:^|.*\b)safe ?(?:targeting|target|cutting|cutter|harbou?r).*"),
        (
            "control",
            True,
            rf"(?:neg(?:ative)? ?|pos(?:itive)? ?)?(?:ctrl|ctl|control)s?{_GUIDE}{_NUMBER}",
        ),
        ("control", False, r"cntrl|con|ctr"),
        ("negative control", True, rf"neg(?:ative)?{_GUIDE}{_NUMBER}"),
        ("control of the Connectivity Map", True, r"ctl (?:vehicle|vector|untrt)(?: cns)?"),
        (
            "vehicle",
            True,
            r"(?:[\d.]+ ?%? ?)?(?:dmso|vehicle|veh|mock|pbs|saline|placebo|sham|solvent)(?: ?\([^)]*\))?"
            r"(?: ?(?:control|ctrl|only|treated|dmso|vehicle|[\d.]+ ?%?))*",
        ),
        ("vehicle", False, r"(?:water|h2o|ethanol|etoh|methanol|meoh|medium|media|medium only|buffer)"),
        (
            "untreated sample",
            True,
            r"(?:un|non|not) ?(?:treated|trt|stimulated|stim|perturbed|edited|infected|transduced|transfected)",
        ),
        ("empty vector", True, rf"empty ?(?:vector|vec|plasmid|backbone){_NUMBER}"),
        ("reporter in place of a gene", False, r"e?(?:gfp|yfp|bfp)|rfp|mcherry|tdtomato|luc|luciferase|lacz|lac z"),
        ("cut at a safe locus", False, rf"(?:sg)?(?:aavs1|rosa ?26|clybl|hprt1?|ccr5|intergenic){_GUIDE}{_NUMBER}"),
        (
            "unperturbed cells",
            False,
            r"(?:wt|wild ?type|parental|naive|none|nothing|blank|baseline|no guide|no treatment)",
        ),
    )
)


def control_spelling(label: str) -> ControlSpelling | None:
    """What kind of control a label spells; None where it spells none.

    Examples
    --------
    >>> control_spelling("Non-Targeting_0017").what, control_spelling("vehicle (DMSO)").what, control_spelling("TP53")
    ('non-targeting guide', 'vehicle', None)
    >>> control_spelling("GFP").sure, control_spelling("NTg7").sure
    (False, True)
    """
    text = re.sub(r"nontarget", "non target", re.sub(r"[\s_\-]+", " ", label.strip().lower()))
    for what, sure, pattern in _CONTROLS:
        if pattern.fullmatch(text):
            if text.startswith("pos"):
                return None  # a positive control is a perturbation
            return ControlSpelling(label, what, sure)
    return None


@dataclass(frozen=True)
class Separator:
    """What joins the genes of combined perturbations.

    Attributes
    ----------
    text
        The separator itself.
    labels
        Labels that are combinations.
    same
        Labels that are one perturbation: a combination in several orders, or with a control ("A+ctrl" and "A").
    why
        What the finding rests on.
    """

    text: str
    labels: tuple[str, ...]
    same: tuple[tuple[str, ...], ...]
    why: str


def parts_of(label: str, separator: str) -> list[str]:
    """Parts of a label, outer spaces stripped, empty ones left out."""
    return [part.strip() for part in label.split(separator) if part.strip()]


def canonical(label: str, separator: str, controls: Collection[str] = ()) -> str:
    """A combination with its parts sorted, repeats and parts that are controls left out; other labels as they are.

    Parameters
    ----------
    controls
        Labels that are controls; a part that spells a control beyond doubt ("ctrl" in "KLF1+ctrl") counts as one.

    Examples
    --------
    >>> canonical("SPI1+CEBPA", "+"), canonical("KLF1+ctrl", "+"), canonical("ctrl+ctrl", "+"), canonical("HLA-A", "+")
    ('CEBPA+SPI1', 'KLF1', 'ctrl', 'HLA-A')
    """
    parts = parts_of(label, separator)
    if len(parts) < 2:
        return label
    targets = [part for part in parts if part not in controls and not _surely_control(part)]
    return separator.join(sorted(set(targets))) if targets else parts[0]


def _surely_control(label: str) -> bool:
    found = control_spelling(label)
    return found is not None and found.sure


def find_separator(labels: Sequence[str], genes: Collection[str] = ()) -> Separator | None:
    """Find what joins the genes of combinations: every part has to be known on its own.

    Known are the other labels, the measured genes and spellings of controls. Of a text such as "HLA_A" nothing
    tells that it is two genes, so it is none.

    Parameters
    ----------
    genes
        Names of the measured genes.
    """
    known = set(labels) | set(genes)
    for text in SEPARATORS:
        split = {label: parts_of(label, text) for label in labels if text in label}
        split = {label: parts for label, parts in split.items() if len(parts) > 1 and control_spelling(label) is None}
        every = {part for parts in split.values() for part in parts}
        sound = {part for part in every if part in known or _surely_control(part)}
        # Genes may occur in combinations only, and not be measured: then most parts must look like symbols.
        found = [label for label, parts in split.items() if all(part in sound for part in parts)]
        if len(found) < len(split) and text in "+|;&" and looks_like_symbols(every - sound):
            found = [label for label, parts in split.items() if all(is_symbol(part) for part in parts)]
        if not found or len(found) < 0.5 * len(split):
            continue
        groups: dict[str, list[str]] = {}
        for label in labels:
            groups.setdefault(canonical(label, text), []).append(label)
        same = tuple(
            tuple(group)
            for name, group in groups.items()
            if len(group) > 1 or len(parts_of(name, text)) < len(parts_of(group[0], text))
        )
        alone = sum(part in known for part in every)
        why = f"{alone:,} of the {len(every):,} parts are labels or genes on their own"
        return Separator(text, tuple(found), same, why)
    return None


@dataclass(frozen=True)
class GuidePattern:
    """How the target of a guide is read from its name.

    Attributes
    ----------
    pattern
        Regular expression whose first group is the target.
    targets
        Number of targets among the names.
    examples
        Some names with their targets.
    """

    pattern: str
    targets: int
    examples: tuple[tuple[str, str], ...]


#: Endings of guide names: coordinates of Horlbeck et al., then numbers and letters in their usual spellings.
_COORDINATES = r"_[+-]_[0-9.]+(?:-[A-Z0-9]+)?"
_ENDINGS = (
    _COORDINATES,
    r"[-_ .]?(?:sg|sh|guide|grna|sgrna|gRNA|sgRNA)[-_ ]?[0-9]+",
    r"g[0-9]+",
    r"[-_.][0-9]+",
    r"[-_][A-D]",
)


def find_guide_pattern(labels: Sequence[str]) -> GuidePattern | None:
    """Find how guide names are made of targets; None where the labels do not look like guides.

    At least 80 % of the labels have to end as guides do, and there have to be at most 0.7 targets for a label.

    Examples
    --------
    >>> find_guide_pattern(["TP53_1", "TP53_2", "MYC_1", "MYC_2"]).pattern
    '^(.+?)(?:[-_.][0-9]+)?$'
    """
    labels = [label for label in labels if label.strip().lower() not in (*MISSING, *DOUBTFUL)]
    if len(labels) < 4:
        return None
    prefix = _common_prefix(labels)
    bare = [label.removeprefix(prefix) for label in labels]
    ends = [re.compile(f"^.+?(?:{ending})$") for ending in _ENDINGS]
    first = [next((k for k, end in enumerate(ends) if end.match(label)), -1) for label in bare]
    used = [k for k in range(len(_ENDINGS)) if k in first]
    if sum(k >= 0 for k in first) < 0.8 * len(labels):
        return None
    pattern = (f"^(?:{re.escape(prefix)})?" if prefix else "^") + f"(.+?)(?:{'|'.join(_ENDINGS[k] for k in used)})?$"
    compiled = re.compile(pattern)
    targets = {label: match.group(1) for label in labels if (match := compiled.match(label))}
    distinct = Counter(targets.values())
    if len(distinct) > 0.7 * len(labels):
        return None
    chosen = [label for label in labels if control_spelling(targets[label]) is None][:3]
    return GuidePattern(pattern, len(distinct), tuple((label, targets[label]) for label in chosen))


def _common_prefix(labels: Sequence[str]) -> str:
    """What most labels begin with, up to a separator; "" where that is little."""
    starts = Counter(label[: label.rfind("_", 0, 24) + 1] for label in labels if "_" in label[:24])
    if not starts or starts.most_common(1)[0][1] < 0.3 * len(labels):
        return ""
    begun = [label for label in labels if label.startswith(starts.most_common(1)[0][0])]
    common = begun[0][: next((i for i, chars in enumerate(zip(*begun, strict=False)) if len(set(chars)) > 1), 0)]
    common = common[: common.rfind("_") + 1]
    return common if sum(label.startswith(common) for label in labels) >= 0.9 * len(labels) and len(common) > 2 else ""


def is_guide_pool(label: str) -> bool:
    """Whether a label names several guides rather than one target.

    Examples
    --------
    >>> is_guide_pool("AAAS_-_53715438.23-P1P2|AAAS_+_53715355.23-P1P2"), is_guide_pool("KLF1+MAP2K6")
    (True, False)
    """
    parts = re.split(r"[|;,]", label)
    ends = re.compile(rf"^\s*.+?(?:{_COORDINATES}|[-_ ](?:sg|sh|guide|grna|sgrna)[-_ ]?\d+|_\d+|g\d+)\s*$", re.I)
    return len(parts) > 1 and all(ends.match(part) for part in parts)


@dataclass(frozen=True)
class NamePattern:
    """A part of the samples' names that may be their batch.

    Attributes
    ----------
    pattern
        Regular expression whose first group is the label.
    what
        What that part of a name usually is.
    share
        Share of the names in which it is found.
    labels
        (n,) text, the label of each sample; missing where it is not found.
    """

    pattern: str
    what: str
    share: float
    labels: pd.Series[str]


_NAME_PATTERNS = (
    (r"-([0-9]+)$", "the number that Cell Ranger puts after the barcode of each library"),
    (r"^(.+?)[-_:#][ACGTN]{8,}(?:-[0-9]+)?$", "what stands before the barcode"),
    (r"[ACGTN]{8,}[-_:#](.*[A-Za-z].*)$", "what stands after the barcode"),
    (r"^(.+):[A-P][0-9]{1,2}$", "the plate before the well"),
    (r"^(.+)_[A-P][0-9]{2}$", "the plate before the well"),
)


def find_name_patterns(names: Iterable[str]) -> list[NamePattern]:
    """Find parts of the samples' names that are labels: present in some names, fewer distinct ones than samples."""
    series = pd.Series(list(names), dtype=object).astype(str)
    found = []
    some = series.iloc[:: max(1, len(series) // 20_000)]
    for pattern, what in _NAME_PATTERNS:
        if some.str.contains(re.compile(pattern).pattern.replace("(", "(?:", 1), regex=True).mean() <= 0.1:
            continue
        labels = series.str.extract(pattern, expand=False)
        share = float(labels.notna().mean()) if len(labels) else 0.0
        if share > 0.2 and labels.nunique() <= max(2, len(series) // 3):
            found.append(NamePattern(pattern, what, share, labels))
    return found
