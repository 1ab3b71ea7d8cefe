"""Specs, discovery and fingerprints."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from small_screen import small_adata

from txeval.embed import (
    Embedder,
    EmbedderInfo,
    Embedding,
    EmbeddingSpec,
    check_options,
    embedding_fingerprint,
    list_embedders,
    make_embedding,
    parse_spec,
    rebase,
    registry,
    resolve,
)
from txeval.errors import InputError


@pytest.mark.parametrize(
    ("text", "label", "source", "options"),
    [
        ("pca", "pca", "pca", {}),
        ("PCA 50=pca@components=50", "PCA 50", "pca", {"components": 50}),
        ("pca@components=50,input=as_is", "pca", "pca", {"components": 50, "input": "as_is"}),
        ("obsm:X_scvi", "obsm:X_scvi", "obsm:X_scvi", {}),
        (" scVI = obsm:X_scvi ", "scVI", "obsm:X_scvi", {}),
        ("u=other.h5ad#obsm/X_uce@positional=true", "u", "other.h5ad#obsm/X_uce", {"positional": True}),
        ("data@v2/emb.npy@nan=0", "data@v2/emb.npy", "data@v2/emb.npy", {"nan": 0}),
        ("random@of=pca@components=7", "random", "random", {"of": "pca@components=7"}),
        ("m@a=-1.5,b=1e-3,c=False,d='7',e=x y", "m", "m", {"a": -1.5, "b": 1e-3, "c": False, "d": "7", "e": "x y"}),
        ("X", "X", "X", {}),
    ],
)
def test_parse(text, label, source, options):
    found = parse_spec(text)
    assert found == EmbeddingSpec(label, source, options)
    assert [type(value) for value in found.options.values()] == [type(value) for value in options.values()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no source"),
        ("label=", "no source"),
        ("=pca", "no label"),
        ("@components=3", "no source"),
        ("pca@components", "'components' is no option=value"),
        ("pca@", "no option=value"),
        ("pca@components=", "no option=value"),
        ("pca@components=3,", "no option=value"),
        ("pca@components=3,input", "'input' is no option=value"),
        ("pca@components=3,components=4", "given twice"),
    ],
)
def test_malformed(text, message):
    with pytest.raises(InputError, match=message):
        parse_spec(text)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("emb.npy", "/base/emb.npy"),
        ("a/emb.parquet", "/base/a/emb.parquet"),
        ("o.h5ad#obsm/X", "/base/o.h5ad#obsm/X"),
        ("o.zarr#X", "/base/o.zarr#X"),
        ("/abs/emb.npy", "/abs/emb.npy"),
        ("~/emb.npy", "~/emb.npy"),
        ("obsm:X_a/b", "obsm:X_a/b"),
        ("layer:log", "layer:log"),
        ("pca", "pca"),
        ("X", "X"),
    ],
)
def test_rebase(source, expected):
    found = rebase(EmbeddingSpec("l", source, {"nan": 0}), "/base")
    assert found == EmbeddingSpec("l", expected, {"nan": 0})


def test_built_in_embedders():
    infos = {info.name: info for info in list_embedders()}
    assert {"pca", "random", "random_uniform"} <= set(infos)
    assert infos["random"].stochastic
    assert infos["random_uniform"].stochastic
    assert not infos["pca"].stochastic
    for info in infos.values():
        assert info.summary
        for default, text in info.options.values():
            assert text
            assert default is None or check_options(info, {}) is not None
        assert isinstance(resolve(EmbeddingSpec("x", info.name)), Embedder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pac", "did you mean 'pca'"),
        ("scvii", "obsm:KEY"),
        ("rand", "did you mean 'random'"),
    ],
)
def test_unknown_embedder(source, message):
    with pytest.raises(InputError, match=message):
        resolve(EmbeddingSpec(source, source))


MODULE = """
import numpy as np
from txeval.embed import EmbedderInfo, Embedding

class Depth:
    info = EmbedderInfo(
        "depth", "Total counts.", stochastic=True, uses_train=True, options={"power": (1.0, "exponent")}
    )

    def fingerprint(self, screen, options):
        return {"by": "totals"}

    def embed(self, screen, options, context):
        total = np.concatenate([np.asarray(b.sum(axis=1)).ravel() for _, b in screen.blocks()])
        return Embedding(total[:, None] ** options["power"], {"note": "made outside"})

class Short(Depth):
    info = EmbedderInfo("short", "One row too few.")

    def embed(self, screen, options, context):
        return Embedding(np.zeros((screen.n - 1, 2)))

class Broken(Depth):
    info = EmbedderInfo("broken", "NaN.")

    def embed(self, screen, options, context):
        x = np.zeros((screen.n, 2))
        x[5, 1] = np.nan
        return Embedding(x)

instance = Depth()
nothing = 3
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Entry points of another package, one of which is fine."""
    (tmp_path / "outside_embedders.py").write_text(MODULE)
    (tmp_path / "outside_failing.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    targets = {
        "depth": "outside_embedders:Depth",
        "instance": "outside_embedders:instance",
        "short": "outside_embedders:Short",
        "broken": "outside_embedders:Broken",
        "nothing": "outside_embedders:nothing",
        "failing": "outside_failing:Model",
        "missing": "outside_embedders:Missing",
    }
    entries = [EntryPoint(name, value, registry.GROUP) for name, value in targets.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.GROUP else [])
    yield
    sys.modules.pop("outside_embedders", None)


@pytest.mark.usefixtures("plugins")
class TestPlugins:
    @pytest.mark.parametrize("name", ["depth", "instance"])
    def test_is_used(self, screen, context, name):
        made = make_embedding(EmbeddingSpec("d", name, {"power": 2}), screen, context)
        totals = small_adata().X.sum(axis=1).A1.astype(np.float64)
        np.testing.assert_allclose(made.values[:, 0], totals**2, rtol=1e-6)
        assert made.provenance["note"] == "made outside"
        assert made.provenance["options"] == {"power": 2}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("failing", "cannot be loaded: ModuleNotFoundError"),
            ("missing", "cannot be loaded: AttributeError"),
            ("nothing", "is no embedder"),
            ("short", r"shape \(119, 2\)"),
            ("broken", "not finite for sample 'cell_5', column 1"),
        ],
    )
    def test_broken_ones_hurt_only_when_asked_for(self, screen, context, name, message):
        with pytest.raises(InputError, match=message):
            make_embedding(EmbeddingSpec("m", name), screen, context)
        assert resolve(EmbeddingSpec("p", "pca")).info.name == "pca"

    def test_listed_with_the_reason(self):
        infos = {info.name: info for info in list_embedders()}
        assert infos["depth"].summary == "Total counts."
        assert "cannot be loaded" in infos["failing"].summary

    def test_unknown_name_knows_them(self):
        with pytest.raises(InputError, match="did you mean 'depth'"):
            resolve(EmbeddingSpec("d", "dept"))

    def test_fingerprint_takes_in_split_and_seed(self, screen):
        def fingerprint(seed=0, rows=None, **options):
            return embedding_fingerprint(EmbeddingSpec("d", "depth", options), screen, seed, train_rows=rows)

        rows = np.arange(10)
        different = {
            fingerprint(),
            fingerprint(1),
            fingerprint(0, rows),
            fingerprint(0, rows + 1),
            fingerprint(power=2.0),
        }
        assert len(different) == 5
        assert fingerprint(power=1.0) == fingerprint()  # the default


def test_a_name_that_two_have(monkeypatch):
    entries = [EntryPoint("pca", "outside:Model", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    # What is installed is looked through once for every path.
    monkeypatch.setattr(registry, "_plugins_on", registry._plugins_on.__wrapped__)
    with pytest.raises(InputError, match="two embedders are called 'pca'"):
        resolve(EmbeddingSpec("p", "pca"))


@pytest.mark.parametrize(
    ("value", "default", "accepted"),
    [(1, 2.0, True), (1.0, 2, False), (True, 2, False), (True, 2.0, False), ("a", None, True), (1, False, False)],
)
def test_types_of_options(value, default, accepted):
    info = EmbedderInfo("m", "", options={"option": (default, "")})
    if accepted:
        assert check_options(info, {"option": value}) == {"option": value}
    else:
        with pytest.raises(InputError, match="option option is"):
            check_options(info, {"option": value})


def test_fingerprint_of_computed_embeddings(write_screen):
    adata = small_adata()
    screen = write_screen(adata)

    def fingerprint(text, of=screen):
        return embedding_fingerprint(parse_spec(text), of, 0)

    assert fingerprint("pca") == fingerprint("other label=pca@components=256")
    assert fingerprint("pca") != fingerprint("pca@components=255")
    adata.X[0, 0] += 1
    assert fingerprint("pca", write_screen(adata, name="changed.h5ad")) != fingerprint("pca")
    assert len(fingerprint("pca")) == 64


def test_embedding_shape():
    assert Embedding(np.zeros((4, 2))).shape == (4, 2)
