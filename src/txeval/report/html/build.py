"""Makes the report of a results folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from txeval.compute.random import stream
from txeval.data.samples import Samples
from txeval.destination import check_destination
from txeval.errors import InputError, NotComputable
from txeval.report.html.data import Model, View, make_views, view_data
from txeval.report.html.details import Cells, Details, Key
from txeval.report.html.maps import (
    cluster_order,
    cosines_between,
    distributions,
    layout_of,
    nearest,
    perturbation_means,
    perturbation_table,
    sample_of_cells,
)
from txeval.report.html.packing import Block, Packer, plain_text
from txeval.report.html.page import page
from txeval.report.results import ResultsFolder
from txeval.run.files import write_atomically
from txeval.run.store import Store, read_scores
from txeval.run.stored import StoredEmbeddings

__all__ = ["LAYOUTS", "ReportOptions", "write_report"]

LAYOUTS = ("pca", "umap")

#: Above so many rows (perturbations x embeddings x post-processings), only the post-processing that is best on most
#: scores is kept of every embedding.
MOST_ROWS = 250_000

#: Known relationships that are listed (more are drawn from, seeded), and where the rows are many.
MOST_RELATIONS, FEW_RELATIONS = 20_000, 10_000

#: Perturbations in the map, and where the rows are many.
MOST_IN_MAP, FEW_IN_MAP = 200, 120

#: Most similar others that are listed per perturbation, and where the rows are many.
NEIGHBOURS, FEW_NEIGHBOURS = 5, 3


@dataclass(frozen=True)
class ReportOptions:
    """What a report contains.

    Attributes
    ----------
    cells
        Samples in the 2-D view; 0 for none.
    layout
        "pca" or "umap" (needs umap-learn).
    embeddings
        Whether stored embeddings are read: neighbours, map and 2-D view need them.
    """

    cells: int = 3000
    layout: str = "pca"
    embeddings: bool = True

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(f"the layout is {self.layout!r}", remedy=f"give one of {', '.join(LAYOUTS)}")
        if not 0 <= self.cells <= 20_000:
            raise InputError(f"cells is {self.cells}", remedy="give 0 to 20,000")


def write_report(
    folder: Path | str,
    out: Path | str | None = None,
    options: ReportOptions | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write one self-contained HTML file about a results folder.

    Parameters
    ----------
    folder
        Results folder of a run or a merge.
    out
        File to write; None: `report.html` in the folder.
    progress
        Told what is being made.

    Returns
    -------
    Path of the file.

    Raises
    ------
    InputError
        The folder holds no scores, or the file cannot be written.
    """
    source = Path(folder)
    target = check_destination(source / "report.html" if out is None else out, parents=False)
    content = render_report(source, options or ReportOptions(), progress)
    write_atomically(target, lambda handle: _write(handle, content.encode("utf-8", "backslashreplace")))
    return target


def _write(handle: Any, content: bytes) -> None:
    handle.write(content)


def render_report(folder: Path, options: ReportOptions, progress: Callable[[str], None] = lambda text: None) -> str:
    """The HTML of a report."""
    scores = read_scores(folder)
    results = ResultsFolder.open(folder, scores)
    if scores.empty:
        raise InputError(f"{folder} holds no scores", remedy="run `txeval run` with this folder as --out")
    manifest = Store(folder).manifest()
    packer, details = Packer(), Details(folder)
    views = make_views(scores, results)
    data = []
    for view in views:
        progress(f"{view.dataset}, protocol {view.protocol}: scores and details")
        data.append(_Part(folder, view, manifest, details, packer, options, progress).data())
    progress("writing the page")
    return page(folder, views, data, manifest, packer, _digest(scores))


def _digest(scores: pd.DataFrame) -> str:
    return hashlib.sha256(scores.to_csv(index=False).encode()).hexdigest()[:16]


class _Part:
    """The data of one view."""

    def __init__(
        self,
        folder: Path,
        view: View,
        manifest: Mapping[str, Any],
        details: Details,
        packer: Packer,
        options: ReportOptions,
        progress: Callable[[str], None],
    ) -> None:
        self.view, self.details, self.packer, self.options, self.progress = view, details, packer, options, progress
        protocols = [item for item in manifest.get("protocols", []) if item.get("name") == view.protocol]
        self.stored = StoredEmbeddings(folder, view.screen, protocols[-1] if protocols else {})
        self.samples, self.no_samples = self._samples()
        self.labels: pd.Index[Any] = self._labels()
        every = [(m, p) for m in range(len(view.models)) for p in range(len(view.posts))]
        self.every = {pair: self._key(*pair) for pair in every}
        self.reduced = len(every) * max(len(self.labels), 1) > MOST_ROWS
        usual = [(m, view.posts.index(view.usual_post(model))) for m, model in enumerate(view.models)]
        self.pairs = usual if self.reduced else every
        # Cosines are shown with three decimals.
        self.digits = 3 if self.reduced else None
        self.notes: list[str] = []
        if self.reduced:
            self.notes.append(
                "To keep this file small, numbers of single perturbations are here for the post-processing of each "
                "embedding that is best on most scores; details/ in the results folder has all of them."
            )

    def _key(self, model: int, post: int) -> Key:
        view = self.view
        return (view.dataset, view.protocol, view.models[model].name, view.posts[post])

    def _samples(self) -> tuple[Samples | None, str]:
        if not self.options.embeddings:
            return None, "this report was made without the stored embeddings (--no-embeddings)"
        try:
            return self.stored.samples, ""
        except NotComputable as why:
            return None, str(why)

    def _labels(self) -> Any:
        """Every perturbation, controls left out, sorted."""
        if self.samples is not None:
            used = np.unique(self.samples.perturbation[~self.samples.is_control])
            return pd.Index(sorted(self.samples.perturbations[used].tolist()), dtype=object)
        found: set[str] = set()
        # Level 4 has controls as one more class.
        for task in ("consistency", "linear_probe"):
            cells = self.details.get(task, "perturbations")
            for m in range(len(self.view.models)):
                frame = None if cells is None else cells.first(self._key(m, 0), ["perturbation"])
                if frame is not None:
                    found.update(frame["perturbation"])
                    break
        return pd.Index(sorted(found), dtype=object)

    def data(self) -> dict[str, Any]:
        """Everything for the page's script."""
        made = view_data(self.view)
        keys = self.every
        made["distributions"] = {}
        for task in dict.fromkeys(column.task for column in self.view.columns):
            found = distributions(self.details, task, keys)
            if found is not None:
                made["distributions"][task] = found
        made["pairs"] = [list(pair) for pair in self.pairs]
        made["perturbations"] = self._perturbations()
        made["relations"] = self._relations()
        maps = self._maps()
        made.update(maps)
        made["notes"] = self.notes
        return made

    # Perturbations

    def _perturbations(self) -> dict[str, Any] | None:
        if not len(self.labels):
            return None
        shared = Block()
        n_samples = np.full(len(self.labels), -1, dtype=np.int64)
        targets = [""] * len(self.labels)
        if self.samples is not None:
            samples = self.samples
            place = self.labels.get_indexer(pd.Index(samples.perturbations))
            counts = np.bincount(samples.perturbation[~samples.is_control], minlength=len(samples.perturbations))
            n_samples[place[place >= 0]] = counts[place >= 0]
            for i, gene in zip(place, samples.target_genes, strict=True):
                if i >= 0:
                    targets[i] = plain_text(gene)
        else:
            n_samples = self._sizes()
        shared.steps("n", np.where(n_samples < 0, np.nan, n_samples))
        tables = {}
        names: list[str] = []
        for m, p in self.pairs:
            columns = perturbation_table(self.details, self._key(m, p), self.labels)
            if not columns:
                continue
            block = Block()
            for name, values in columns.items():
                block.steps(name, values, digits=self.digits if name == "cosine" else None)
                if name not in names:
                    names.append(name)
            tables[f"{m},{p}"] = self.packer.add(block)
        return {
            "labels": [plain_text(text) for text in self.labels],
            "targets": targets if any(targets) else [],
            "shared": self.packer.add(shared),
            "columns": names,
            "tables": tables,
        }

    def _sizes(self) -> Any:
        """Samples per perturbation, from the table of level 3."""
        sizes = np.full(len(self.labels), -1, dtype=np.int64)
        cells = self.details.get("consistency", "perturbations")
        for m in range(len(self.view.models)):
            frame = None if cells is None else cells.first(self._key(m, 0), ["perturbation", "n_samples"])
            if frame is not None and len(frame):
                place = self.labels.get_indexer(pd.Index(frame["perturbation"]))
                sizes[place] = frame["n_samples"].to_numpy()
                break
        return sizes

    # Known relationships

    def _relations(self) -> dict[str, Any] | None:
        cells = self.details.get("relationships", "relations")
        if cells is None:
            return None
        names = ["database", "gene_a", "gene_b"]
        index: pd.MultiIndex | None = None
        every, rows = pd.DataFrame(), np.arange(0)
        total = 0
        tables: dict[str, Any] = {}
        for m, p in self.pairs:
            frame = self._related(cells, (m, p))
            if frame is None or frame.empty:
                continue
            if index is None:
                total, every = len(frame), frame[names]
                rows = self._drawn(total)
                index = pd.MultiIndex.from_frame(every.iloc[rows])
            # Embeddings of one screen have the same relationships, as a rule; looking each of them up takes long.
            same = frame[names].equals(every)
            found: pd.DataFrame = frame.iloc[rows] if same else frame.set_index(names).reindex(index)
            block = Block()
            block.steps("cosine", found["cosine"], digits=self.digits)
            if not self.reduced:
                block.steps("rank", found["rank"])
            link = next((name for name in found.columns if name.startswith("link_")), "")
            block.codes("link", found[link].map({"": 0, "high": 1, "low": 2}).fillna(-1).astype(int))
            tables[f"{m},{p}"] = self.packer.add(block)
        if index is None:
            return None
        genes = sorted({*index.get_level_values(1), *index.get_level_values(2)})
        databases = sorted(set(index.get_level_values(0)))
        shared = Block()
        shared.codes("database", pd.Index(databases).get_indexer(index.get_level_values(0)))
        shared.codes("a", pd.Index(genes).get_indexer(index.get_level_values(1)))
        shared.codes("b", pd.Index(genes).get_indexer(index.get_level_values(2)))
        if len(index) < total:
            self.notes.append(
                f"{len(index):,} of {total:,} known relationships are listed here, drawn at random; "
                "details/relationships.relations.parquet has all of them."
            )
        return {
            "genes": [plain_text(gene) for gene in genes],
            "databases": [plain_text(name) for name in databases],
            "total": total,
            "shared": self.packer.add(shared),
            "tables": tables,
        }

    def _related(self, cells: Cells, pair: tuple[int, int]) -> pd.DataFrame | None:
        links = [name for name in cells.columns if name.startswith("link_")]
        links = sorted(links, key=lambda name: float(name.removeprefix("link_")))[:1]
        frame = cells.first(self.every[pair], ["database", "gene_a", "gene_b", "cosine", "rank", *links])
        if frame is None:
            return None
        return frame.drop_duplicates(["database", "gene_a", "gene_b"], ignore_index=True)

    def _drawn(self, n: int) -> Any:
        """Numbers of the relationships that are listed, of n."""
        most = FEW_RELATIONS if self.reduced else MOST_RELATIONS
        if n <= most:
            return np.arange(n)
        return np.sort(stream(0, "report", "relations").choice(n, size=most, replace=False))

    # What needs the embeddings

    def _maps(self) -> dict[str, Any]:
        made: dict[str, Any] = {"neighbours": {}, "map": None, "cells2d": None, "no_maps": self.no_samples}
        if self.samples is None or not len(self.labels):
            return made
        samples = self.samples
        in_map = self._in_map()
        rows = sample_of_cells(samples, self.options.cells)
        k = FEW_NEIGHBOURS if self.reduced else NEIGHBOURS
        maps: dict[str, Any] = {}
        views: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        last = None
        for m, p in self.pairs:
            model, post = self.view.models[m], self.view.posts[p]
            if m != last:
                self.progress(f"embedding {model.label}")
                last = m
            try:
                embedding = self._open(model, post)
            except NotComputable as why:
                reasons[model.label] = str(why)
                continue
            means = perturbation_means(embedding, samples, np.asarray(self.labels))
            found = nearest(means, k)
            block = Block()
            block.codes("index", found.index)
            block.steps("cosine", found.cosine, digits=self.digits)
            made["neighbours"][f"{m},{p}"] = {"k": found.index.shape[1], **self.packer.add(block)}
            if len(in_map) > 2:
                maps[f"{m},{p}"] = self._map_block(means[in_map])
            if len(rows):
                views[f"{m},{p}"] = self._cells_block(embedding, rows)
        if maps:
            made["map"] = {"labels": in_map.tolist(), "of": len(self.labels), "how": self._how_in_map, "tables": maps}
        if views:
            made["cells2d"] = self._cells_shared(rows, views)
        if reasons:
            made["no_maps"] = "; ".join(dict.fromkeys(reasons.values()))
        return made

    def _open(self, model: Model, post: str) -> Any:
        if not model.fingerprints:
            raise NotComputable(f"the scores do not say which embedding {model.label} is")
        return self.stored.open(model.fingerprints[0], post)

    def _in_map(self) -> Any:
        """Numbers of the perturbations in the map: all, or those with most known relationships (then most samples)."""
        n = len(self.labels)
        self._how_in_map = ""
        most = FEW_IN_MAP if self.reduced else MOST_IN_MAP
        if n <= most:
            return np.arange(n)
        assert self.samples is not None  # asked for only where there are samples
        samples = self.samples
        place = self.labels.get_indexer(pd.Index(samples.perturbations))
        sizes = np.zeros(n)
        counts = np.bincount(samples.perturbation[~samples.is_control], minlength=len(samples.perturbations))
        sizes[place[place >= 0]] = counts[place >= 0]
        degree = np.zeros(n)
        cells = self.details.get("relationships", "relations")
        for pair in self.pairs:
            frame = None if cells is None else cells.first(self.every[pair], ["gene_a", "gene_b"])
            if frame is not None and len(frame):
                links = pd.concat([frame["gene_a"], frame["gene_b"]]).value_counts()
                gene_of = pd.Series(samples.target_genes, index=samples.perturbations).reindex(self.labels)
                degree = gene_of.map(links).fillna(0).to_numpy(dtype=float)
                break
        self._how_in_map = "with the most known relationships" if degree.any() else "with the most samples"
        return np.sort(np.lexsort((np.arange(n), -sizes, -degree))[:most])

    def _map_block(self, means: Any) -> dict[str, Any]:
        cosines = cosines_between(means)
        block = Block()
        block.codes("order", cluster_order(cosines))
        above = np.triu_indices(len(cosines), 1)
        block.steps("cosine", cosines[above])
        return self.packer.add(block)

    def _cells_block(self, embedding: Any, rows: Any) -> dict[str, Any]:
        layout = layout_of(np.ascontiguousarray(embedding[rows]), self.options.layout)
        block = Block()
        block.steps("x", layout.xy[:, 0])
        block.steps("y", layout.xy[:, 1])
        return {"axes": list(layout.axes), **self.packer.add(block)}

    def _cells_shared(self, rows: Any, views: Mapping[str, Any]) -> dict[str, Any]:
        assert self.samples is not None  # asked for only where there are samples
        samples = self.samples
        place = self.labels.get_indexer(pd.Index(samples.perturbations))
        shared = Block()
        # Controls have no perturbation; their own label is not one.
        shared.codes("perturbation", np.where(samples.is_control[rows], -1, place[samples.perturbation[rows]]))
        used, batch = np.unique(samples.batch[rows], return_inverse=True)
        shared.codes("batch", batch)
        return {
            "n": len(rows),
            "of": samples.n,
            "layout": self.options.layout,
            "batches": [plain_text(text) for text in samples.batches[used]],
            "shared": self.packer.add(shared),
            "tables": dict(views),
        }
