"""The small real screens that benchmarks run on, cut to a size that two cores can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

#: Name -> file, roles and layer.
SCREENS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "Norman 2019": (
        "norman2019_k562_crispra_500hvg.h5ad",
        {"perturbation": "perturbation", "control": ["control"], "batch": "gem_group"},
        "counts",
    ),
    "Papalexi 2021": (
        "papalexi2021_thp1_ecciteseq_299genes.h5ad",
        {"perturbation": "perturbation", "control": ["non-targeting"], "batch": "bio_rep"},
        None,
    ),
    "TAP-seq 2020": (
        "schraivogel2020_k562_tapseq_72genes.h5ad",
        {
            "perturbation": "perturbation",
            "control": ["non-targeting"],
            "batch": "lane",
            "exclude": ["unassigned"],
        },
        None,
    ),
}


@dataclass(frozen=True)
class Cut:
    """A screen as benchmarks use it: arguments of `build_config`, and a line on it."""

    config: dict[str, Any]
    note: str


def cut(name: str, data: Path, folder: Path, samples: int) -> Cut:
    """Write a random part of a screen: the perturbations' and batches' shares stay.

    Parameters
    ----------
    name
        Key of `SCREENS`.
    data, folder
        Where the screens are; where the part is written.
    samples
        Cells to keep at most; 0: all.
    """
    file, roles, layer = SCREENS[name]
    source = anndata.read_h5ad(data / file)
    source = source[~source.obs[roles["perturbation"]].isin(roles.get("exclude", []))]
    n = source.n_obs
    path, note = data / file, f"{n:,} cells x {source.n_vars} genes, batch `{roles['batch']}`"
    if 0 < samples < n:
        group = source.obs[roles["perturbation"]].astype(str) + "/" + source.obs[roles["batch"]].astype(str)
        order = np.random.default_rng(0).permutation(n)
        place = pd.Series(order).groupby(group.to_numpy()[order]).cumcount()
        sizes = group.value_counts()
        rank = (place.to_numpy() + 0.5) / sizes.loc[group.to_numpy()[order]].to_numpy()
        kept = np.sort(order[np.argsort(rank, kind="stable")[:samples]])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name.split()[0].lower()}.h5ad"
        source[kept].copy().write_h5ad(path)
        note = f"{len(kept):,} of {note}"
        roles = {key: value for key, value in roles.items() if key != "exclude"}
    config: dict[str, Any] = {"screen": path, "roles": roles, "min_counts": 0, "relations": data / "relationships"}
    if layer:
        config["layer"] = layer
    return Cut(config, note)
