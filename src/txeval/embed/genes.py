"""Which column of a screen is which gene of a model, and what happens to the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from txeval.compute.arrays import Ints, Strings
from txeval.data.gene_names import looks_like_ensembl, without_version
from txeval.embed.checkpoints import load_columns, load_table
from txeval.errors import InputError, nearest

__all__ = ["GeneMatch", "match_genes", "read_aliases"]


@dataclass(frozen=True)
class GeneMatch:
    """Columns of a screen matched to the genes of a model.

    Attributes
    ----------
    target
        (g,) int64: number of the matched gene in `genes` for every column, -1 where there is none.
    genes
        The t matched genes, by their names in the model, in the order of the collapsed columns.
    ways
        How many columns matched each way.
    unmatched
        Names of the columns that did not.
    summed
        Gene of the model -> names of the several columns that are it.
    """

    target: Ints
    genes: tuple[str, ...]
    ways: Mapping[str, int]
    unmatched: tuple[str, ...]
    summed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Matched columns / columns of the screen."""
        return float((self.target >= 0).mean()) if len(self.target) else 0.0

    def report(self) -> dict[str, Any]:
        """Counts per way, every summed and every unmatched name, as plain data."""
        return {
            "columns": len(self.target),
            "matched_columns": int((self.target >= 0).sum()),
            "matched_fraction": round(self.fraction, 6),
            "matched_genes": len(self.genes),
            "ways": dict(self.ways),
            "summed": {gene: list(names) for gene, names in self.summed.items()},
            "unmatched": list(self.unmatched),
        }

    def require(self, minimum: float, *, model: str, vocabulary: Iterable[str], wants: str) -> None:
        """Refuse a screen of which too few genes are known to the model.

        Raises
        ------
        InputError
            The matched fraction is below `minimum`, or nothing matches.
        """
        if self.genes and self.fraction >= minimum:
            return
        shown = ", ".join(map(repr, self.unmatched[:5]))
        ensembl = looks_like_ensembl(self.unmatched)
        if wants == "Ensembl ids" and not ensembl:
            hint = "the genes of the screen do not look like Ensembl ids: name a var column that holds them"
            hint += " (genes=COLUMN), or give a table of symbols and ids (aliases=FILE)"
        elif wants == "gene symbols" and ensembl:
            hint = "the genes of the screen look like Ensembl ids: name a var column that holds symbols"
            hint += " (genes=COLUMN), or give a table of ids and symbols (aliases=FILE)"
        else:
            close = nearest(self.unmatched[0], vocabulary, n=2) if self.unmatched else []
            hint = f"the nearest gene of the model to {self.unmatched[0]!r} is {close[0]!r}; " if close else ""
            hint += "check the species and the kind of names, or give a table of aliases (aliases=FILE)"
        raise InputError(
            f"{model} knows {int((self.target >= 0).sum()):,} of the {len(self.target):,} genes of the screen"
            f" ({self.fraction:.1%}; at least {minimum:.1%} are wanted); it does not know, for example, {shown}",
            remedy=f"{hint}; to accept fewer genes set min_gene_overlap",
        )

    def collapse(self, block: Any) -> Any:
        """Counts of the matched genes: columns of one gene summed, unmatched columns left out.

        Parameters
        ----------
        block
            (m, g) CSR matrix or array.

        Returns
        -------
        scipy.sparse.csr_matrix
            (m, t) float32, indices sorted, no stored zeros.
        """
        block = sp.csr_matrix(block)
        columns = self.target[block.indices]
        keep = (columns >= 0) & (block.data != 0)
        filled = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])[block.indptr]
        out = sp.csr_matrix(
            (block.data[keep].astype(np.float32), columns[keep], filled), shape=(block.shape[0], len(self.genes))
        )
        out.sum_duplicates()
        return out


def match_genes(
    names: Sequence[str] | Strings,
    vocabulary: Iterable[str],
    *,
    tables: Mapping[str, Mapping[str, str]] | None = None,
    aliases: Mapping[str, str] | None = None,
    ignore_case: bool = False,
    order: Literal["first", "summed_last"] = "first",
) -> GeneMatch:
    """Match the columns of a screen to the genes of a model.

    A name is tried as it is, then without its Ensembl version, then (`ignore_case`) in upper case. Each form
    passes through the model's own tables one after the other, where it is a key of them, and has to end in the
    vocabulary. Only a name for which all that fails is looked up in the user's aliases.

    Parameters
    ----------
    names
        (g,) names of the columns.
    vocabulary
        The model's genes.
    tables
        The model's own tables by name (symbol -> id, retired id -> id), in the order in which they apply.
    aliases
        The user's table, other name -> name the model may know.
    order
        Order of the matched genes: "first" by first column; "summed_last" genes of one column in column order,
        then those of several columns by the first of them.

    Examples
    --------
    >>> match = match_genes(["TP53", "ENSG00000141510.18", "X"], ["TP53"], aliases={"ENSG00000141510": "TP53"})
    >>> match.target.tolist(), match.ways
    ([0, 0, -1], {'exact': 1, 'alias': 1})
    """
    known = vocabulary if isinstance(vocabulary, (set, frozenset, dict)) else set(vocabulary)
    steps = dict(tables or {})

    def through(name: str) -> tuple[str, str] | None:
        route = ""
        for table, mapping in steps.items():
            other = mapping.get(name)
            if other is not None and other != name:
                name, route = other, table
        return (name, route) if name in known else None

    def resolve(name: str) -> tuple[str, str] | None:
        forms = {name: "exact"}
        forms.setdefault(without_version(name), "version removed")
        if ignore_case:
            for form, way in list(forms.items()):
                forms.setdefault(form.upper(), "upper case" if way == "exact" else f"{way}, upper case")
        for form, way in forms.items():
            found = through(form)
            if found is not None:
                return found[0], (found[1] if way == "exact" and found[1] else way) + (
                    f", {found[1]}" if way != "exact" and found[1] else ""
                )
        for form in forms:
            other = (aliases or {}).get(form)
            found = through(other) if other is not None else None
            if found is not None:
                return found[0], "alias"
        return None

    ways: Counter[str] = Counter()
    columns: dict[str, list[int]] = {}
    listed = [str(name) for name in names]
    unmatched = []
    for column, name in enumerate(listed):
        hit = resolve(name)
        if hit is None:
            unmatched.append(name)
            continue
        ways[hit[1]] += 1
        columns.setdefault(hit[0], []).append(column)
    genes = list(columns)
    if order == "summed_last":
        genes = [gene for gene in genes if len(columns[gene]) == 1] + [gene for gene in genes if len(columns[gene]) > 1]
    target = np.full(len(listed), -1, dtype=np.int64)
    for number, gene in enumerate(genes):
        target[columns[gene]] = number
    summed = {gene: tuple(listed[i] for i in columns[gene]) for gene in genes if len(columns[gene]) > 1}
    return GeneMatch(target, tuple(genes), dict(ways), tuple(unmatched), summed)


def read_aliases(path: Path) -> dict[str, str]:
    """Read a table of other gene names.

    A `.json` or `.pkl` file is one dictionary, other name -> name (as in Geneformer's `gene_name_id_dict.pkl`);
    a `.tsv` or `.csv` file has the columns `alias` and `gene`.

    Raises
    ------
    InputError
        The file is missing or is none of these.
    """
    suffix = path.suffix.lower()
    if suffix in (".json", ".pkl", ".pickle"):
        return {name: str(gene) for name, gene in load_table(path, str).items()}
    if suffix not in (".tsv", ".csv"):
        raise InputError(
            f"{path}: a table of gene aliases is a .tsv, .csv, .json or .pkl file",
            remedy="save it as .tsv with the columns alias and gene",
        )
    lines = load_columns(
        path, ["alias", "gene"], remedy="name the columns alias (as in the screen) and gene (as the model knows it)"
    )
    return {alias: gene for alias, gene in lines if alias and gene}
