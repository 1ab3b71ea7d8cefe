"""scVI on real screens: what it learns from, what it embeds, and what it refuses; transfer from one to another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from small_screen import ROLES, small_adata

from txeval.data import Roles, open_screen, split
from txeval.embed import EmbeddingContext, embedding_fingerprint, list_embedders, make_embedding, parse_spec
from txeval.errors import InputError, NotComputable

pytest.importorskip("scvi", reason="scvi-tools is an extra", exc_type=ImportError)

from txeval.embed import scvi as module
from txeval.embed.scvi import align, embed_with, load_scvi, train_scvi

NORMAN = Roles("perturbation", control_column="control", batch="gem_group")
PAPALEXI = Roles("perturbation", control=("non-targeting",), batch="bio_rep")
TINY = "latent=6,layers=1,hidden=16,max_epochs=2"


@pytest.fixture(scope="module")
def norman_file(data_dir):
    return data_dir / "norman2019_k562_crispra_500hvg.h5ad"


@pytest.fixture
def norman(norman_file):
    with open_screen(norman_file, NORMAN, layer="counts") as screen:
        yield screen


@pytest.fixture(scope="module")
def papalexi_file(data_dir, tmp_path_factory):
    """Every tenth cell."""
    path = tmp_path_factory.mktemp("papalexi") / "papalexi.h5ad"
    ad.read_h5ad(data_dir / "papalexi2021_thp1_ecciteseq_299genes.h5ad")[::10].copy().write_h5ad(path)
    return path


@pytest.fixture
def papalexi(papalexi_file):
    with open_screen(papalexi_file, PAPALEXI) as screen:
        yield screen


def train_rows(screen):
    samples = screen.samples
    labels = samples.perturbations[samples.perturbation], samples.batches[samples.batch]
    return split(*labels, samples.is_control, seed=42)["train"]


@pytest.fixture
def new_context(tmp_path):
    """Makes contexts with folders of their own."""

    def make(name="embedding", **what):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return EmbeddingContext(folder=folder, **what)

    return make


def made(text, screen, context):
    return make_embedding(parse_spec(text), screen, context)


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("kind", ["lognorm", "counts"])
def test_a_real_screen(norman, new_context, likelihood, kind, capfd):
    said = []
    context = new_context(train_rows=train_rows(norman), progress=lambda *what: said.append(what))
    found = made(f"scvi@likelihood={likelihood},input={kind},{TINY}", norman, context)
    values = found.values[:]
    assert values.shape == (3375, 6) and values.dtype == np.float32
    assert np.isfinite(values).all() and (values.std(axis=0) > 0).all()
    assert [what[:2] for what in said if "training, ELBO" in what[2]] == [(1, 2), (2, 2)]
    assert said[-1][:2] == (3375, 3375)
    told = json.loads(json.dumps(found.provenance))
    assert told["model"]["trained_on"]["samples"].endswith("(the train split)")
    known, unseen = told["batches"]["told_to_the_decoder"], told["batches"]["not_in_the_training"]
    assert len(known) == 5 and len(unseen) == 3 and not set(known) & set(unseen)
    assert told["seed"] == 0 and told["genes"]["found_fraction"] == 1
    # Nothing but the results of the program goes to standard output.
    assert capfd.readouterr() == ("", "")


def test_the_defaults_are_those_of_the_paper():
    options = {name: default for name, (default, _) in module.ScVI.info.options.items()}
    expected = {"latent": 256, "layers": 2, "hidden": 512, "dropout": 0.0, "dispersion": "gene", "likelihood": "zinb"}
    assert expected.items() <= options.items()
    assert options["genes"] == 8000 and options["input"] == "lognorm" and options["batch_size"] == 128
    names = [info.name for info in list_embedders()]
    assert {"scvi", "transfer-scvi"} <= set(names)


def test_variable_genes_are_those_of_scanpy_on_the_train_split(papalexi, papalexi_file, new_context):
    sc = pytest.importorskip("scanpy")
    rows = train_rows(papalexi)
    model = train_scvi(papalexi, rows, {"genes": 60, "max_epochs": 1, "hidden": 8, "latent": 4}, new_context())
    adata = ad.read_h5ad(papalexi_file)[rows].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=60)
    assert list(model.genes) == adata.var_names[adata.var["highly_variable"]].tolist()
    assert model.about["training_matrix"]["genes"] == 60
    # What it read for the training is what scanpy makes of the counts.
    profiles = module._Profiles(papalexi, align(papalexi, model.genes), "lognorm")
    read = sp.vstack([block for _, block in profiles.blocks(rows)]).toarray()
    np.testing.assert_allclose(read, adata[:, list(model.genes)].X.toarray(), rtol=1e-5)
    assert model.about["training_matrix"]["values"] == np.count_nonzero(read)


def test_same_seed_same_embedding(papalexi, new_context):
    rows = train_rows(papalexi)
    text = f"scvi@{TINY}"
    first = made(text, papalexi, new_context("a", train_rows=rows)).values[:]
    # Blocks of another size, rows of the split in another order: nothing of the training changes.
    other = new_context("b", train_rows=rows[::-1], max_elements=299 * 7)
    np.testing.assert_allclose(made(text, papalexi, other).values[:], first, rtol=1e-5, atol=1e-6)
    assert np.abs(made(text, papalexi, new_context("c", train_rows=rows, seed=1)).values[:] - first).max() > 1e-3
    half = made(text, papalexi, new_context("d", train_rows=rows[: len(rows) // 2])).values[:]
    assert np.abs(half - first).max() > 1e-3


def test_the_order_of_the_file_does_not_matter(papalexi_file, papalexi, new_context, tmp_path):
    adata = ad.read_h5ad(papalexi_file)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    adata[order].copy().write_h5ad(tmp_path / "other.h5ad")
    rows = train_rows(papalexi)
    first = made(f"scvi@{TINY}", papalexi, new_context("a", train_rows=rows))
    assert first.provenance["model"]["training_matrix"]["ordered_by"] == "sample name"
    with open_screen(tmp_path / "other.h5ad", PAPALEXI) as other:
        again = made(f"scvi@{TINY}", other, new_context("b", train_rows=train_rows(other))).values[:]
    np.testing.assert_allclose(again, first.values[:][order], rtol=1e-5, atol=1e-6)


def test_training_from_a_file_gives_the_same(papalexi, new_context, monkeypatch):
    options = {"latent": 6, "layers": 1, "hidden": 16, "max_epochs": 2, "genes": 100}
    one = train_scvi(papalexi, None, options, new_context("a"))
    monkeypatch.setattr(module, "TRAINING_IN_MEMORY_BYTES", 0)
    context = new_context("b")
    other = train_scvi(papalexi, None, options, context)
    assert one.about["training_matrix"]["held_in"] == "memory"
    assert other.about["training_matrix"]["held_in"] == "a memory-mapped file"
    for name, value in one.module.state_dict().items():
        assert (value == other.module.state_dict()[name]).all(), name
    assert not list(context.folder.iterdir())


def test_fingerprint(norman, papalexi):
    def digest(text, seed=0, rows=None):
        return embedding_fingerprint(parse_spec(text), papalexi, seed, train_rows=rows)

    rows = train_rows(papalexi)
    same = digest("scvi", rows=rows)
    assert same == digest("x=scvi@genes=8000", rows=rows)
    others = [digest("scvi@genes=50", rows=rows), digest("scvi", 1, rows), digest("scvi", rows=rows[1:])]
    assert len({same, *others}) == 4


class Stop(BaseException):
    """As Ctrl-C."""


def test_a_stopped_embedding_goes_on(papalexi, new_context):
    rows = train_rows(papalexi)
    text = "scvi@latent=6,layers=1,hidden=16,max_epochs=4"
    whole = made(text, papalexi, new_context("whole", train_rows=rows)).values[:]

    def stop(word):
        def progress(done, total, said):
            if word in said and done >= min(3, total):
                raise Stop

        return progress

    for word in ("variable", "reading", "ELBO", "embedding"):
        with pytest.raises(Stop):
            made(text, papalexi, new_context(train_rows=rows, progress=stop(word)))
    said = []
    context = new_context(train_rows=rows, progress=lambda *what: said.append(what[2]))
    found = made(text, papalexi, context)
    # The model was complete when the embedding was stopped: it is read, not trained again.
    assert set(said) == {"scvi: embedding"}
    np.testing.assert_array_equal(found.values[:], whole)
    assert found.provenance["model"]["training"]["resumed_after_epochs"]
    # Another training in the same folder is another model, and is not mixed up with it.
    with pytest.raises(InputError, match="holds another model"):
        made(text, papalexi, replace(context, seed=1))


def test_scales(write_screen, context):
    tiny = TINY.replace("max_epochs=2", "max_epochs=1")
    for scale in ("normalized", "log1p"):
        screen = write_screen(small_adata(scale=scale), name=f"{scale}.h5ad", scale=scale)
        values = made(f"scvi@{tiny}", screen, replace(context, folder=context.folder / scale)).values[:]
        assert np.isfinite(values).all()
        with pytest.raises(InputError, match=rf"needs counts.* holds {scale}") as why:
            embedding_fingerprint(parse_spec("scvi@input=counts"), screen, 0)
        assert "input=lognorm" in why.value.remedy
    screen = write_screen(small_adata(scale="continuous"), name="continuous.h5ad")
    for text in ("scvi", "scvi@input=counts"):
        with pytest.raises(InputError, match="holds continuous values"):
            embedding_fingerprint(parse_spec(text), screen, 0)


def test_the_same_expression_on_any_scale_gives_the_same(write_screen, new_context):
    found = {}
    for scale in ("counts", "normalized", "log1p"):
        screen = write_screen(small_adata(scale=scale), name=f"{scale}.h5ad", scale=scale)
        found[scale] = made(f"scvi@{TINY},genes=12", screen, new_context(scale)).values[:]
    for scale in ("normalized", "log1p"):
        np.testing.assert_allclose(found[scale], found["counts"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("likelihood=gauss", "likelihood called 'gauss'"),
        ("input=raw", "input called 'raw'"),
        ("dispersion=gene-label", "dispersion called"),
        ("genes=-1", "genes is -1"),
        ("latent=0", "latent is 0"),
        ("batch_size=2", "batch_size is 2"),
        ("dropout=1.0", "dropout is 1"),
        ("lr=0.0", "lr is 0"),
        ("max_epochs=many", "option max_epochs is 'many'"),
        ("n_latent=3", "no option called 'n_latent'"),
        ("device=tpu", "the device is 'tpu'"),
    ],
)
def test_bad_options(screen, context, options, match):
    with pytest.raises(InputError, match=match) as why:
        made(f"scvi@{options}", screen, context)
    assert why.value.remedy


def test_a_sample_without_expression_is_embedded_and_flagged(write_screen, context):
    adata = small_adata()
    empty = np.ones((120, 1), dtype=np.float32)
    empty[[4, 17]] = 0
    adata.X = sp.csr_matrix(adata.X.multiply(empty))
    screen = write_screen(adata)
    found = made(f"scvi@{TINY},likelihood=poisson", screen, context)
    assert np.isfinite(found.values[:]).all() and found.values.shape == (120, 6)
    assert found.provenance["unusable"]["rows"] == [4, 17]
    np.testing.assert_array_equal(found.values[4], found.values[17])
    assert found.provenance["model"]["trained_on"]["left_out_without_expression"] == 2
    assert "2 of 120 samples" in found.provenance["warnings"][0]


def test_too_few_samples(screen, context):
    with pytest.raises(NotComputable, match="2 samples"):
        made("scvi", screen, replace(context, train_rows=np.array([3, 5])))


def test_columns_of_one_gene_are_added(write_screen, new_context):
    adata = small_adata()
    parts = ad.AnnData(sp.csr_matrix(np.round(adata.X.toarray() / 3)), adata.obs, adata.var)
    rest = ad.AnnData(sp.csr_matrix(adata.X - parts.X), adata.obs, adata.var)
    with pytest.warns(UserWarning, match="not unique"):
        split_up = ad.AnnData(
            sp.hstack([parts.X, rest.X]).tocsr(),
            adata.obs,
            pd.DataFrame(index=pd.Index([*adata.var_names, *adata.var_names])),
        )
        double = write_screen(split_up, name="double.h5ad")
    single = write_screen(adata, name="single.h5ad")
    found = made(f"scvi@{TINY}", double, new_context("double"))
    assert len(found.provenance["genes"]["summed"]) == 30
    np.testing.assert_allclose(
        found.values[:], made(f"scvi@{TINY}", single, new_context("single")).values[:], rtol=1e-4, atol=1e-5
    )


def test_batch_key(write_screen, new_context):
    told = made(f"scvi@{TINY}", write_screen(), new_context("told")).provenance["batches"]
    assert told["told_to_the_decoder"] == ["l1", "l2"] and told["not_in_the_training"] == []
    without = made(f"scvi@{TINY},batch_key=false", write_screen(), new_context("without")).provenance
    assert without["batches"]["told_to_the_decoder"] == []
    assert without["model"]["training"]["architecture"]["batches"] == 1
    one = replace(ROLES, batch=None)
    with open_screen(write_screen().path, one) as screen:
        assert made(f"scvi@{TINY}", screen, new_context("one")).provenance["batches"]["told_to_the_decoder"] == []


# Transfer


@pytest.fixture
def trained(papalexi, new_context, tmp_path):
    """A model of Papalexi, saved."""
    options = {"latent": 6, "layers": 1, "hidden": 16, "max_epochs": 2}
    train_scvi(papalexi, None, options, new_context("training"), save=tmp_path / "saved")
    return tmp_path / "saved"


def test_a_model_on_its_own_screen_gives_what_it_gave(papalexi, trained, new_context):
    found = made(f"transfer-scvi@model={trained}", papalexi, new_context())
    model = load_scvi(trained)
    values, empty = embed_with(model, papalexi, align(papalexi, model.genes), new_context("again"))
    np.testing.assert_array_equal(found.values[:], values[:])
    assert found.provenance["same_screen_as_in_training"] and not len(empty)
    assert found.provenance["model"]["name"].startswith("scvi-papalexi-")


def test_rows_and_genes_in_any_order_and_missing_genes(papalexi_file, papalexi, trained, new_context, tmp_path):
    model = load_scvi(trained)
    adata = ad.read_h5ad(papalexi_file)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)[:200]
    adata[rows][:, columns].copy().write_h5ad(tmp_path / "part.h5ad")
    with open_screen(tmp_path / "part.h5ad", PAPALEXI) as part:
        found = made(f"transfer-scvi@model={trained},min_gene_overlap=0.6", part, new_context())
    # The same by hand: totals over the genes that are there, zeros for the others.
    counts = adata.X.toarray()[rows]
    counts[:, np.setdiff1d(np.arange(299), columns)] = 0
    lognorm = np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e4)
    place = [adata.var_names.get_loc(gene) for gene in model.genes]
    np.testing.assert_allclose(found.values[:], model.latent(lognorm[:, place]), rtol=1e-4, atol=1e-5)
    told = found.provenance["genes"]
    assert (told["found_in_the_screen"], told["missing_read_as_0"]) == (200, 99)
    assert not found.provenance["same_screen_as_in_training"]


def test_from_papalexi_to_norman(norman, trained, new_context):
    """They share 3 genes: too few, unless the user says otherwise."""
    spec = parse_spec(f"transfer-scvi@model={trained}")
    for run in (
        lambda: embedding_fingerprint(spec, norman, 0),
        lambda: make_embedding(spec, norman, new_context()),
    ):
        with pytest.raises(InputError, match=r"has 3 of the 299 genes of scvi-papalexi-\w+ \(1\.0%; at least 50\.0%"):
            run()
    found = made(f"transfer-scvi@model={trained},min_gene_overlap=0.01", norman, new_context())
    assert found.values.shape == (3375, 6) and np.isfinite(found.values[:]).all()
    assert found.provenance["genes"]["found_in_the_screen"] == 3
    assert found.provenance["unusable"]["count"] > 1000
    # Nothing can be accepted that shares no gene at all.
    with pytest.raises(InputError, match="0 of the"):
        align_nothing = f"transfer-scvi@model={trained},min_gene_overlap=0.0"
        made(align_nothing, _renamed(norman, new_context), new_context())


def _renamed(screen, new_context):
    adata = ad.read_h5ad(screen.path)
    adata.var_names = [f"other{i}" for i in range(adata.n_vars)]
    path = new_context().folder / "renamed.h5ad"
    adata.write_h5ad(path)
    return open_screen(path, NORMAN, layer="counts")


def test_other_gene_names_by_a_table(papalexi_file, trained, new_context, tmp_path):
    adata = ad.read_h5ad(papalexi_file)
    names = [f"ENSG{i:011d}.2" for i in range(adata.n_vars)]
    lines = [f"{name.split('.')[0]}\t{gene}" for name, gene in zip(names, adata.var_names, strict=True)]
    (tmp_path / "table.tsv").write_text("alias\tgene\n" + "\n".join(lines))
    with open_screen(papalexi_file, PAPALEXI) as screen:
        expected = made(f"transfer-scvi@model={trained}", screen, new_context()).values[:]
    adata.var_names = names
    adata.write_h5ad(tmp_path / "ensembl.h5ad")
    with open_screen(tmp_path / "ensembl.h5ad", PAPALEXI) as screen:
        with pytest.raises(InputError, match="0 of the 299"):
            made(f"transfer-scvi@model={trained}", screen, new_context("none"))
        text = f"transfer-scvi@model={trained},aliases={tmp_path / 'table.tsv'}"
        np.testing.assert_array_equal(made(text, screen, new_context("table")).values[:], expected)


def test_a_reference_is_trained_on_once(papalexi_file, new_context, tmp_path, monkeypatch):
    """The screen is one half of Papalexi, the reference the other."""
    monkeypatch.setenv("TXEVAL_CACHE", str(tmp_path / "cache"))
    adata = ad.read_h5ad(papalexi_file)
    adata[:1000].copy().write_h5ad(tmp_path / "one.h5ad")
    other = adata[1000:].copy()
    other.obs = other.obs.rename(columns={"perturbation": "target"})
    other.write_h5ad(tmp_path / "other.h5ad")
    columns = "reference_perturbation=target,reference_batch=bio_rep"
    text = f"transfer-scvi@reference={tmp_path / 'other.h5ad'},{columns},{TINY}"
    with open_screen(tmp_path / "one.h5ad", PAPALEXI) as screen:
        assert embedding_fingerprint(parse_spec(text), screen, 0) == embedding_fingerprint(parse_spec(text), screen, 1)
        first = made(text, screen, new_context("a"))
        said = []
        again = made(text, screen, new_context("b", progress=lambda *what: said.append(what[2])))
        assert set(said) == {"transfer-scvi: embedding"}
        assert not first.provenance["trained_before"] and again.provenance["trained_before"]
        np.testing.assert_array_equal(first.values[:], again.values[:])
        kept = Path(first.provenance["trained_model"])
        assert kept.is_relative_to(tmp_path / "cache") and kept.name.startswith("scvi-other-")
        # What is kept is a model like any other.
        text = f"transfer-scvi@model={kept}"
        np.testing.assert_array_equal(made(text, screen, new_context("c")).values[:], first.values[:])
        with pytest.raises(InputError, match=r"the reference of transfer-scvi: .*'perturbation'") as why:
            embedding_fingerprint(parse_spec(f"transfer-scvi@reference={tmp_path / 'other.h5ad'}"), screen, 0)
        assert "reference_perturbation" in why.value.remedy


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("", "neither is given"),
        ("@model=a,reference=b", "both are given"),
        ("@model=nowhere", "no folder nowhere"),
        ("@reference=nowhere.h5ad", "the reference of transfer-scvi: .*nowhere"),
        ("@model=a,latent=3,seed=2", "seed, latent would have no effect"),
        ("@model=a,min_gene_overlap=2.0", "min_gene_overlap is 2"),
        ("@model=a,aliases=none.tsv", "none.tsv"),
    ],
)
def test_bad_transfer(screen, options, match):
    with pytest.raises(InputError, match=match) as why:
        embedding_fingerprint(parse_spec(f"transfer-scvi{options}"), screen, 0)
    assert why.value.remedy


def test_a_model_of_counts_is_not_given_logarithms(write_screen, new_context, tmp_path):
    options = {"latent": 6, "layers": 1, "hidden": 16, "max_epochs": 1, "input": "counts"}
    train_scvi(write_screen(), None, options, new_context("training"), save=tmp_path / "saved")
    screen = write_screen(small_adata(scale="log1p"), name="log.h5ad", scale="log1p")
    with pytest.raises(InputError, match=r"transfer-scvi with input=counts needs counts") as why:
        embedding_fingerprint(parse_spec(f"transfer-scvi@model={tmp_path / 'saved'}"), screen, 0)
    assert "input=lognorm" in why.value.remedy
