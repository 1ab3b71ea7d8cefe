"""A simulated screen beside the real one that it was made like: docs/simulator_*.png.

    python benchmarks/simulator_figure.py DATA_FOLDER [OUT_FOLDER]

DATA_FOLDER holds the two files named below. Needs the extra `plots`. Only summary curves are drawn.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure

from txeval.data import Roles, open_screen
from txeval.data.profile import fit_profile
from txeval.data.simulate import simulate_screen
from txeval.data.truth import Truth

SCREENS: dict[str, tuple[str, str, Roles, str | None]] = {
    "norman": (
        "Norman 2019, 500 variable genes",
        "norman2019_k562_crispra_500hvg.h5ad",
        Roles("perturbation", control=("control",), batch="gem_group"),
        "counts",
    ),
    "papalexi": (
        "Papalexi 2021, 299 genes",
        "papalexi2021_thp1_ecciteseq_299genes.h5ad",
        Roles("perturbation", control=("non-targeting",), batch="bio_rep"),
        None,
    ),
}
REAL, MADE = "#1b1b1b", "#d55e00"
BINS = 12


def load(path: Path, roles: Roles, layer: str | None) -> tuple[Any, np.ndarray]:
    """Counts (n, g) and batch codes (n,)."""
    with open_screen(path, roles, layer=layer) as screen:
        counts = sp.vstack([sp.csr_matrix(block) for _, block in screen.blocks()], format="csr").astype(np.float64)
        return counts, screen.samples.batch


def moments(counts: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and share of zeros of each gene."""
    mean = np.asarray(counts.mean(axis=0)).ravel()
    variance = np.asarray(counts.multiply(counts).mean(axis=0)).ravel() - mean**2
    zeros = 1 - np.bincount(counts.indices, minlength=counts.shape[1]) / counts.shape[0]
    return mean, variance, zeros


def shifts(counts: Any, batch: np.ndarray) -> np.ndarray:
    """Log2 ratio of the share of each gene in each batch to its share in all, genes with 50 counts in every batch."""
    member = sp.csr_matrix((np.ones(len(batch)), (batch, np.arange(len(batch)))))
    sums = (member @ counts).toarray()
    kept = (sums >= 50).all(axis=0)
    share = sums / sums.sum(axis=1, keepdims=True)
    return np.log2(share[:, kept] / share[:, kept].mean(axis=0))


def band(axes: Any, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """Median and middle 80 % of y in bins of x that are equally wide in logs and hold at least five genes."""
    edges = np.geomspace(x.min(), x.max() * 1.001, BINS + 1)
    parts = [np.flatnonzero((x >= low) & (x < high)) for low, high in itertools.pairwise(edges)]
    parts = [part for part in parts if len(part) >= 5]
    centre = [np.exp(np.log(x[part]).mean()) for part in parts]
    low, mid, high = (np.array([np.quantile(y[part], q) for part in parts]) for q in (0.1, 0.5, 0.9))
    axes.fill_between(centre, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(centre, mid, color=colour, label=label, linewidth=1.8)


def draw(name: str, real: tuple[Any, np.ndarray], made: tuple[Any, np.ndarray], out: Path) -> dict[str, float]:
    """Four panels; gives how far apart the curves are."""
    figure = Figure(figsize=(13, 3.3), layout="constrained")
    panels = figure.subplots(1, 4)
    apart: dict[str, float] = {}
    for (counts, batch), colour, label in ((real, REAL, "real"), (made, MADE, "simulated")):
        mean, variance, zeros = moments(counts)
        seen = mean > 0
        band(panels[0], mean[seen], variance[seen], colour, label)
        band(panels[1], mean[seen], zeros[seen], colour, label)
        totals = np.sort(np.asarray(counts.sum(axis=1)).ravel())
        panels[2].plot(np.maximum(totals, 0.5), np.linspace(0, 1, len(totals)), color=colour, label=label)
        moved = np.sort(np.abs(shifts(counts, batch)).ravel())
        panels[3].plot(moved, np.linspace(0, 1, len(moved)), color=colour, label=label)
    real_mean = moments(real[0])[0]
    means = np.geomspace(*np.quantile(real_mean[real_mean > 0], [0.02, 1]), 50)
    panels[0].plot(means, means, color="#999999", linewidth=0.8, linestyle=":", label="Poisson")
    panels[1].plot(means, np.exp(-means), color="#999999", linewidth=0.8, linestyle=":", label="Poisson")
    panels[0].set(
        xscale="log", yscale="log", xlabel="mean count of a gene", ylabel="variance", title="Mean and variance"
    )
    panels[1].set(xscale="log", xlabel="mean count of a gene", ylabel="share of cells without it", title="Dropout")
    panels[2].set(xscale="log", xlabel="total count of a cell", ylabel="share of cells below", title="Library size")
    panels[3].set(xlabel="|log2 shift| of a gene in a batch", ylabel="share below", title="Shifts of the batches")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.suptitle(name, fontsize=11)
    figure.savefig(out, dpi=110)
    apart["totals"] = gap(real[0].sum(axis=1), made[0].sum(axis=1))
    apart["zeros"] = float(np.mean(np.abs(moments(real[0])[2] - moments(made[0])[2])))
    apart["shifts"] = gap(np.abs(shifts(*real)), np.abs(shifts(*made)))
    return apart


def gap(a: Any, b: Any) -> float:
    """Kolmogorov-Smirnov distance of two samples."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(np.asarray(a).ravel(), np.asarray(b).ravel()).statistic)


def main() -> None:
    """Simulate like each real screen and draw both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parents[1] / "docs")
    args = parser.parse_args()
    mpl.rcParams.update({"font.size": 9, "svg.hashsalt": "txeval"})
    for key, (title, file, roles, layer) in SCREENS.items():
        profile = fit_profile(args.data / file, roles, layer=layer)
        with open_screen(args.data / file, roles, layer=layer) as screen:
            samples = screen.samples
            sizes = {
                "n_samples": screen.n,
                "n_genes": screen.n_genes,
                "n_perturbations": len(samples.perturbations) - 1,
                "n_batches": len(samples.batches),
                "control_fraction": float(samples.is_control.mean()),
            }
        with tempfile.TemporaryDirectory() as room:
            made: Truth = simulate_screen(
                Path(room) / "made.h5ad", like=profile, unexpressed_targets=0, effect=0.5, **sizes
            )
            roles_made = Roles("perturbation", control_column="control", batch="batch", target_gene="gene")
            apart = draw(
                title,
                load(args.data / file, roles, layer),
                load(made.path, roles_made, None),
                args.out / f"simulator_{key}.png",
            )
        print(title, {name: round(value, 3) for name, value in apart.items()})


if __name__ == "__main__":
    main()
