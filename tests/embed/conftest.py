"""A small screen on disk, and what an embedder is given."""

from __future__ import annotations

import pytest
from small_screen import ROLES, small_adata

from txeval.data import open_screen
from txeval.embed import EmbeddingContext


@pytest.fixture
def write_screen(tmp_path):
    """Writes an AnnData (by default the small one) and opens it as a screen."""

    def write(adata=None, *, name="screen.h5ad", **options):
        path = tmp_path / name
        (small_adata() if adata is None else adata).write_h5ad(path)
        return open_screen(path, ROLES, **options)

    return write


@pytest.fixture
def screen(write_screen):
    """The small screen, all samples kept."""
    return write_screen()


@pytest.fixture
def context(tmp_path):
    """A folder to keep files in."""
    folder = tmp_path / "embedding"
    folder.mkdir()
    return EmbeddingContext(folder=folder)
