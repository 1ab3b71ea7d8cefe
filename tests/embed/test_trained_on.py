"""Models trained on growing parts of the train split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from txeval.data import Roles, open_screen, simulate_screen
from txeval.embed import EmbeddingContext, embedding_fingerprint, make_embedding, parse_spec
from txeval.embed.base import EmbeddingSpec
from txeval.embed.trained_on import growing_part
from txeval.errors import InputError

ROLES = Roles(perturbation="perturbation", control=("non-targeting",), batch="batch", target_gene="gene")
SETTINGS = "latent=4,hidden=8,layers=1,max_epochs=1,kl_warmup=1,genes=0"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screen") / "s.h5ad"
    simulate_screen(path, n_samples=400, n_genes=60, n_perturbations=8, n_batches=5, unexpressed_targets=4)
    return path


def test_larger_parts_hold_smaller_ones_and_batches_are_whole_but_for_the_last(file: Path) -> None:
    with open_screen(file, ROLES) as screen:
        rows = np.flatnonzero(screen.samples.batch != 2)
        batch = screen.samples.batch
        before: set[int] = set()
        for size in (1, 30, 31, 100, 200, len(rows)):
            part = growing_part(screen, rows, size, seed=3)
            assert len(part) == size == len(set(part.tolist()))
            assert set(part.tolist()) <= set(rows.tolist())
            assert before <= set(part.tolist())
            before = set(part.tolist())
            partial = [code for code in set(batch[part]) if (batch[part] == code).sum() < (batch[rows] == code).sum()]
            assert len(partial) <= 1
        assert np.array_equal(growing_part(screen, rows, 0, seed=3), rows)
        first = {tuple(set(batch[growing_part(screen, rows, 20, seed=seed)])) for seed in range(8)}
        assert len(first) > 1, "another seed takes another batch first"
        with pytest.raises(InputError, match="train split has"):
            growing_part(screen, rows, len(rows) + 1, seed=0)


def test_the_order_of_the_file_does_not_matter(file: Path, tmp_path: Path) -> None:
    import anndata

    data = anndata.read_h5ad(file)
    order = np.random.default_rng(0).permutation(data.n_obs)
    data[order].copy().write_h5ad(tmp_path / "shuffled.h5ad")
    found = []
    for path in (file, tmp_path / "shuffled.h5ad"):
        with open_screen(path, ROLES) as screen:
            part = growing_part(screen, np.arange(screen.n), 120, seed=1)
            found.append(sorted(screen.sample_names[part].astype(str)))
    assert found[0] == found[1]


def test_it_is_the_same_model_as_with_that_part_as_its_train_split(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("scvi")
    with open_screen(file, ROLES) as screen:
        train = np.flatnonzero(screen.samples.batch < 4)
        spec = EmbeddingSpec("part", "trained-on", {"of": f"scvi@{SETTINGS}", "samples": 90})
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        made = make_embedding(spec, screen, EmbeddingContext(tmp_path / "a", seed=2, train_rows=train))
        part = growing_part(screen, train, 90, seed=2)
        plain = parse_spec(f"scvi@{SETTINGS}")
        other = make_embedding(plain, screen, EmbeddingContext(tmp_path / "b", seed=2, train_rows=part))
        assert made.shape == (screen.n, 4)
        assert np.array_equal(np.asarray(made.values[:]), np.asarray(other.values[:]))
        told = made.provenance["trained_on_part"]
        assert told["samples"] == 90 and 1 <= len(told["batches"]) <= 3


def test_what_determines_it_is_in_the_fingerprint(file: Path) -> None:
    pytest.importorskip("scvi")
    with open_screen(file, ROLES) as screen:
        train = np.arange(300)

        def digest(seed: int = 0, rows: np.ndarray = train, of: str = f"scvi@{SETTINGS}", samples: int = 50) -> str:
            spec = EmbeddingSpec("l", "trained-on", {"of": of, "samples": samples})
            return embedding_fingerprint(spec, screen, seed, train_rows=rows)

        same = digest()
        assert digest() == same
        assert len({same, digest(1), digest(samples=60), digest(rows=train[:200]), digest(of="scvi@latent=4")}) == 5


@pytest.mark.parametrize(("of", "said"), [("pca", "does not learn"), ("random", "does not learn"), ("scvy", "scvi")])
def test_what_cannot_be_trained_is_refused(file: Path, of: str, said: str) -> None:
    with open_screen(file, ROLES) as screen, pytest.raises(InputError) as why:
        embedding_fingerprint(EmbeddingSpec("l", "trained-on", {"of": of}), screen, 0)
    assert said in str(why.value)
