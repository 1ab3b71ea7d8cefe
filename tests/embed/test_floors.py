"""What the floors and the ceiling hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from txeval.compute.arrays import take_rows
from txeval.data import Screen, open_screen
from txeval.embed import Embedding, EmbeddingContext, embedding_fingerprint, make_embedding, parse_spec
from txeval.errors import InputError
from txeval.testing.screens import ROLES, make_adata


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    path = tmp_path_factory.mktemp("floors") / "screen.h5ad"
    adata = make_adata(130, 30, n_batches=4, obsm={"X_e": 6})
    # A batch without controls.
    keep = ~((adata.obs["batch"] == adata.obs["batch"].iloc[-1]) & (adata.obs["perturbation"] == "non-targeting"))
    adata[keep.to_numpy()].copy().write_h5ad(path)
    return open_screen(path, ROLES)


def made(text: str, screen: Screen, tmp_path: Path, seed: int = 0) -> Embedding:
    return make_embedding(parse_spec(text), screen, EmbeddingContext(folder=tmp_path, seed=seed))


def test_shuffled_rows_stay_in_their_batch(screen: Screen, tmp_path: Path) -> None:
    original = take_rows(made("obsm:X_e", screen, tmp_path).values, np.arange(screen.n))
    values = take_rows(made("shuffled@of=obsm:X_e", screen, tmp_path).values, np.arange(screen.n))
    again = take_rows(made("shuffled@of=obsm:X_e", screen, tmp_path, seed=1).values, np.arange(screen.n))
    batch = screen.samples.batch
    for code in np.unique(batch):
        mine = batch == code
        np.testing.assert_array_equal(
            np.sort(original[mine].view("f4,f4,f4,f4,f4,f4"), axis=0),
            np.sort(values[mine].view("f4,f4,f4,f4,f4,f4"), axis=0),
        )
    assert (values != original).any(axis=1).mean() > 0.8
    assert (values != again).any()


def test_every_sample_gets_the_mean_of_the_controls_of_its_batch(screen: Screen, tmp_path: Path) -> None:
    samples = screen.samples
    original = take_rows(made("obsm:X_e", screen, tmp_path).values, np.arange(screen.n)).astype(float)
    found = made("control_mean@of=obsm:X_e", screen, tmp_path)
    values = take_rows(found.values, np.arange(screen.n))
    for code in np.unique(samples.batch):
        controls = (samples.batch == code) & samples.is_control
        mean = original[controls if controls.any() else samples.is_control].mean(axis=0)
        mine = samples.batch == code
        np.testing.assert_allclose(values[mine], np.tile(mean, (mine.sum(), 1)), rtol=1e-5, atol=1e-6)
    [note] = found.provenance["notes"]
    assert note.startswith("batches without controls got the mean of all controls: ")


def test_the_ceiling_is_the_embedding_itself_under_another_name(screen: Screen, tmp_path: Path) -> None:
    values = take_rows(made("ceiling@of=obsm:X_e", screen, tmp_path).values, np.arange(screen.n))
    np.testing.assert_array_equal(values, take_rows(made("obsm:X_e", screen, tmp_path).values, np.arange(screen.n)))
    texts = (
        "ceiling@of=obsm:X_e",
        "obsm:X_e",
        "shuffled@of=obsm:X_e",
        "control_mean@of=obsm:X_e",
        "random@of=obsm:X_e",
    )
    assert len({embedding_fingerprint(parse_spec(text), screen, 0) for text in texts}) == len(texts)


@pytest.mark.parametrize("text", ["shuffled@of=random", "ceiling@of=ceiling", "control_mean@of=shuffled"])
def test_floors_and_ceilings_are_not_built_on_each_other(screen: Screen, tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="cannot be built on"):
        made(text, screen, tmp_path)
