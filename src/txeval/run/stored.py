"""Post-processed embeddings of a finished run, opened again from its results folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from txeval.compute.arrays import Bools
from txeval.compute.groups import encode
from txeval.data.samples import Samples
from txeval.errors import NotComputable
from txeval.postprocess import PostProcessed, fit
from txeval.run.config import post_params
from txeval.run.plan import fit_key
from txeval.run.store import Store

__all__ = ["StoredEmbeddings"]


class StoredEmbeddings:
    """The embeddings of one screen in a results folder.

    Parameters
    ----------
    folder
        Results folder.
    screen
        Fingerprint of the screen.
    protocol
        A protocol as the manifest has it: its parameters of the post-processings are used.
    """

    def __init__(self, folder: Path, screen: str, protocol: Mapping[str, Any]) -> None:
        self.store = Store(folder)
        self.screen = screen
        self._post = protocol.get("post_processing", {})

    @cached_property
    def samples(self) -> Samples:
        """Roles of the samples; NotComputable where the folder does not have them."""
        table = self.store.load_samples(self.screen)
        if table is None:
            raise NotComputable(
                f"the results folder has no {self.store.samples_path(self.screen).relative_to(self.store.folder)}: "
                "which sample got which perturbation is not known; the run's command writes it again"
            )
        perturbation, labels = encode(table["perturbation"], len(table), name="perturbation")
        batch, batches = encode(table["batch"], len(table), name="batch")
        targets = np.empty(len(labels), dtype=object)
        targets[perturbation] = table["target_gene"].astype(str).to_numpy()
        control: Bools = table["is_control"].to_numpy(dtype=bool)
        return Samples(perturbation, labels, control, batch, batches, targets.astype(str))

    def open(self, fingerprint: str, post_processing: str) -> PostProcessed:
        """Open one embedding under one post-processing, rows on demand.

        Raises
        ------
        NotComputable
            The folder has no samples or no such embedding (merging leaves embeddings behind).
        """
        samples = self.samples
        values = self.store.load_embedding(fingerprint, samples.n)
        if values is None:
            raise NotComputable(
                f"the results folder does not hold the embedding {fingerprint[:12]}: merging leaves embeddings "
                "behind, or its file has changed since"
            )
        params = post_params(post_processing, self._post)
        fitted = self.store.load_fitted(fit_key(self.screen, fingerprint, post_processing, params))
        if fitted is None:
            fitted = fit(post_processing, values, samples.is_control, samples.batch, len(samples.batches), **params)
        return PostProcessed(values, fitted, samples.batch)
