"""What every model with ready-made weights has to hold to."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from tiny_models import GENES, MODELS, ROLES, UNKNOWN, Tiny, embed, make_adata, make_counts

from txeval.data import open_screen
from txeval.embed import EmbeddingContext, EmbeddingSpec, embedding_fingerprint, list_embedders, resolve
from txeval.errors import InputError

CLOSE = 2e-5


@pytest.fixture(params=MODELS, ids=lambda tiny: tiny.id)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return request.param


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    return {}


@pytest.fixture
def weights(tiny: Tiny, checkpoints: dict[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if tiny.make not in checkpoints:
        folder = tmp_path_factory.mktemp("weights")
        before = time.process_time()
        checkpoints[tiny.make] = tiny.make(folder, GENES)
        assert time.process_time() - before < 1 or len(checkpoints) == 1  # the first one imports what it needs
    return checkpoints[tiny.make]


def info(tiny: Tiny) -> Any:
    return resolve(EmbeddingSpec(tiny.id, tiny.name)).info


def test_every_model_with_weights_is_in_this_suite() -> None:
    with_weights = {found.name for found in list_embedders() if "weights" in found.options}
    assert with_weights == {tiny.name for tiny in MODELS}


def test_one_row_per_sample_in_order_and_a_record(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    values, record = embed(tiny, weights, make_adata(), tmp_path)
    assert values.shape[0] == 30
    assert np.isfinite(values).all()
    assert len(np.unique(values.round(4), axis=0)) > 20
    json.dumps(record)
    assert record["genes"]["matched_genes"] == len(GENES)
    assert record["genes"]["unmatched"] == UNKNOWN
    assert record["genes"]["matched_fraction"] == pytest.approx(40 / 42, abs=1e-6)
    files = record["weights"]["files"]
    assert files and all(len(digest) == 64 for digest in files.values())
    assert record["weights"]["tensors"]["missing"] == record["weights"]["tensors"]["unexpected"] == []
    assert record["device"] == "cpu"
    assert record["seconds"] >= 0
    assert record["untrained"] and record["notes"][0].startswith("untrained")
    assert record["options"]["min_gene_overlap"] == 0.2
    assert bool(record.get("depends_on_batch_mates")) == (tiny.mates and tiny.name != "scgpt-finetuned")


def test_a_sample_without_known_genes_is_flagged_and_stays(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    values, record = embed(tiny, weights, make_adata(), tmp_path)
    assert record["unusable"]["count"] == 1
    assert record["unusable"]["rows"] == [4]
    if tiny.filled:
        assert "official" in record["unusable"]["filled_with"]
        assert values[4].any()
    else:
        assert record["unusable"]["filled_with"] == "zeros"
        assert not values[4].any()
    assert values[[row for row in range(30) if row != 4]].any(axis=1).all()


def test_nothing_but_known_genes_matters(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    values, _ = embed(tiny, weights, make_adata(), tmp_path / "a")
    x = make_counts()
    x[:, -2:] = 7
    again, _ = embed(tiny, weights, make_adata(x), tmp_path / "b")
    assert np.abs(values - again).max() < CLOSE


@pytest.mark.parametrize("max_elements", [42, 42 * 8, 42 * 1000])
def test_blocks_do_not_matter(tiny: Tiny, weights: Path, tmp_path: Path, max_elements: int) -> None:
    values, _ = embed(tiny, weights, make_adata(), tmp_path / "a")
    again, _ = embed(tiny, weights, make_adata(), tmp_path / "b", max_elements=max_elements)
    assert np.abs(values - again).max() < CLOSE


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batch_size_does_not_matter_or_is_said_to(tiny: Tiny, weights: Path, tmp_path: Path, batch_size: int) -> None:
    values, _ = embed(tiny, weights, make_adata(), tmp_path / "a")
    again, record = embed(tiny, weights, make_adata(), tmp_path / "b", batch_size=batch_size)
    if tiny.batch_size:
        assert np.abs(values - again).max() < CLOSE
    else:
        assert np.abs(values - again).max() > 100 * CLOSE
        assert record["depends_on_batch_mates"]
        assert any(str(batch_size) in note for note in record["notes"])


def test_micro_batches_do_not_matter(
    tiny: Tiny, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits in memory at once is no setting: it may not change a result, also where batch mates matter."""
    values, _ = embed(tiny, weights, make_adata(), tmp_path / "a")
    monkeypatch.setattr("txeval.embed.frozen.ACTIVATIONS", {"cpu": 3000, "cuda": 3000})
    monkeypatch.setattr("txeval.embed.frozen.WINDOW", 6)
    monkeypatch.setattr("txeval.embed.cellplm.BLOCK", 4)
    monkeypatch.setattr("txeval.embed.scgpt_finetuned._KEPT", 3000)
    if tiny.name == "scgpt-finetuned":
        tiny = Tiny(tiny.id, tiny.name, tiny.make, {**tiny.options, "dropout": 0.0})
        values, _ = embed(tiny, weights, make_adata(), tmp_path / "c")
    again, _ = embed(tiny, weights, make_adata(), tmp_path / "b")
    assert np.abs(values - again).max() < (CLOSE if tiny.name != "scgpt-finetuned" else 1e-3)


def test_order_of_samples_does_not_matter(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(30)
    adata = make_adata()
    values, _ = embed(tiny, weights, adata, tmp_path / "a")
    again, record = embed(tiny, weights, adata[order].copy(), tmp_path / "b")
    chunked = tiny.mates and (tiny.options.get("batch_size") or tiny.name == "uce-4l")
    if chunked:
        assert record["depends_on_batch_mates"]
        # What was drawn for a sample is still the same: only its chunk is another one.
        assert np.abs(values[order] - again).max() > 10 * CLOSE
    else:
        assert np.abs(values[order] - again).max() < CLOSE
        assert record["unusable"]["rows"] == np.flatnonzero(order == 4).tolist()


@pytest.mark.parametrize("tiny", [tiny for tiny in MODELS if not tiny.mates], ids=lambda tiny: tiny.id, indirect=True)
def test_other_samples_do_not_matter(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    adata = make_adata()
    values, _ = embed(tiny, weights, adata, tmp_path / "a")
    rows = [0, 1, 4, 11, 17, 23]
    again, _ = embed(tiny, weights, adata[rows].copy(), tmp_path / "b")
    assert np.abs(values[rows] - again).max() < CLOSE


def test_seed(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    values, record = embed(tiny, weights, make_adata(), tmp_path / "a", seed=1)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    again, _ = embed(tiny, weights, make_adata(), tmp_path / "b", seed=1)
    other, _ = embed(tiny, weights, make_adata(), tmp_path / "c", seed=2)
    assert np.array_equal(values, again)
    assert np.array_equal(values, other) == (not tiny.draws)
    # A model that may draw says so; with options that keep it from drawing, seeds merely repeat.
    assert info(tiny).stochastic >= tiny.draws
    if tiny.draws:
        assert record["seed"] == 1
        assert "one for each sample" in record["random_stream"]


def test_samples_of_one_name_have_streams_of_their_own(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    adata = make_adata(np.repeat(make_counts()[:1], 8, axis=0))
    adata.obs.index = ["same"] * 8
    adata.obs["batch"] = "b0"
    values, record = embed(tiny, weights, adata, tmp_path)
    if tiny.draws and tiny.name != "cellplm":  # whose draws choose among few clusters
        assert len(np.unique(values, axis=0)) > 1
        assert "row of the file" in record["random_stream"]


@pytest.mark.parametrize("scale", ["normalized", "log1p", "continuous"])
def test_scale(tiny: Tiny, weights: Path, tmp_path: Path, scale: str) -> None:
    x = make_counts()
    x = x / x.sum(axis=1, keepdims=True) * 1e4
    x = np.log1p(x) if scale != "normalized" else x
    x = x - x.mean(axis=0) if scale == "continuous" else x
    if scale in tiny.scales:
        values, _ = embed(tiny, weights, make_adata(x.astype(np.float32)), tmp_path / "a", scale=scale)
        counted, _ = embed(tiny, weights, make_adata(), tmp_path / "b")
        # Only the ranks within a sample are read.
        assert np.abs(values - counted).max() < CLOSE
    else:
        with pytest.raises(InputError, match=f"needs .*counts.*{scale}"):
            embed(tiny, weights, make_adata(x.astype(np.float32)), tmp_path, scale=scale)


def test_too_few_known_genes(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    names = [f"strange-{number}" for number in range(38)] + [*GENES[:2], *UNKNOWN]
    adata = make_adata(genes=names)
    with pytest.raises(InputError, match=r"knows 2 of the 42 genes of the screen \(4\.8%.*strange-0"):
        embed(tiny, weights, adata, tmp_path)
    values, record = embed(tiny, weights, adata, tmp_path, min_gene_overlap=0.01)
    assert values.shape[0] == 30
    assert record["genes"]["matched_columns"] == 2
    with pytest.raises(InputError, match="knows 0 of the 42 genes"):
        adata.var_names = [f"strange-{number}" for number in range(42)]
        embed(tiny, weights, adata, tmp_path, min_gene_overlap=0.0)


def test_columns_of_one_gene_are_summed(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    """Half of the counts in a column with another name for the gene: the same embedding, and a report of it."""
    x = make_counts()
    values, _ = embed(tiny, weights, make_adata(x), tmp_path / "a")
    half = np.floor(x[:, 3] / 2)
    split = np.column_stack([x, half])
    split[:, 3] -= half
    aliases = tmp_path / "aliases.tsv"
    aliases.write_text("alias\tgene\nother-name\tGENE003\nnot-there\tGENE004\n")
    names = [*GENES, *UNKNOWN, "other-name"]
    again, record = embed(tiny, weights, make_adata(split, names), tmp_path / "b", aliases=str(aliases))
    # Geneformer sorts ties by the order of its columns, which summed genes end.
    if not tiny.name.startswith("geneformer"):
        assert np.abs(values - again).max() < CLOSE
    assert list(record["genes"]["summed"].values()) == [["GENE003", "other-name"]]
    assert record["genes"]["ways"]["alias"] == 1
    assert record["genes"]["unmatched"] == UNKNOWN


def test_names_from_a_column_of_var(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    adata = make_adata()
    values, _ = embed(tiny, weights, adata, tmp_path / "a")
    adata.var["symbol"] = adata.var_names
    adata.var_names = [f"ENSG{number:011d}" for number in range(adata.n_vars)]
    again, _ = embed(tiny, weights, adata, tmp_path / "b", genes="symbol")
    assert np.array_equal(values, again)
    with pytest.raises(InputError, match=r"genes=COLUMN|check the species"):
        embed(tiny, weights, adata, tmp_path / "c")
    with pytest.raises(InputError, match=r"'symbl'.*column of gene names"):
        embed(tiny, weights, adata, tmp_path / "c", genes="symbl")


def test_dense_and_sparse_screens_agree(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    adata = make_adata()
    values, _ = embed(tiny, weights, adata, tmp_path / "a")
    dense = ad.AnnData(sp.csr_matrix(adata.X).toarray(), obs=adata.obs, var=adata.var)
    again, _ = embed(tiny, weights, dense, tmp_path / "b")
    assert np.abs(values - again).max() < CLOSE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "the device cuda is asked for"),
        ({"device": "tpu"}, "tpu"),
        ({"device": "mps"}, "mps"),
        ({"precision": "float16"}, "precision float16 is for cuda only"),
        ({"precision": "int8"}, "choose one of: float32"),
        ({"min_gene_overlap": 1.5}, "min_gene_overlap is 1.5"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"aliases": "/nowhere.tsv"}, r"/nowhere\.tsv"),
        ({"layyer": 1}, "no option called 'layyer'"),
    ],
)
def test_options_are_checked(tiny: Tiny, weights: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=message):
        embed(tiny, weights, make_adata(), tmp_path, **options)
    with pytest.raises(InputError, match=r"weights folder of .* does not exist"):
        embed(tiny, tmp_path / "nowhere", make_adata(), tmp_path)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_devices(tiny: Tiny, weights: Path, tmp_path: Path, device: str) -> None:
    values, record = embed(tiny, weights, make_adata(), tmp_path / "a", device=device)
    assert record["device"] == ("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
    again, _ = embed(tiny, weights, make_adata(), tmp_path / "b")
    assert np.abs(values - again).max() < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU: the code path runs with device=cpu")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_cuda(tiny: Tiny, weights: Path, tmp_path: Path, precision: str) -> None:
    values, _ = embed(tiny, weights, make_adata(), tmp_path / "a")
    again, _ = embed(tiny, weights, make_adata(), tmp_path / "b", device="cuda", precision=precision)
    usable = np.flatnonzero(values.any(axis=1))
    cosine = (
        (values * again)[usable].sum(1) / np.linalg.norm(values, axis=1)[usable] / np.linalg.norm(again, axis=1)[usable]
    )
    if tiny.name not in ("scgpt-finetuned", "cellplm"):
        assert cosine.min() > 1 - (1e-5 if precision == "float32" else 1e-3)


def test_weights_are_found_in_the_folder_of_the_environment(
    tiny: Tiny, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "models"
    base.mkdir()
    (base / tiny.name.replace("-finetuned", "")).symlink_to(weights)
    monkeypatch.setenv("TXEVAL_WEIGHTS", str(base))
    values, _ = embed(tiny, None, make_adata(), tmp_path / "a")
    again, _ = embed(tiny, weights, make_adata(), tmp_path / "b")
    assert np.array_equal(values, again)
    monkeypatch.delenv("TXEVAL_WEIGHTS")
    with pytest.raises(InputError, match="TXEVAL_WEIGHTS is not set"):
        embed(tiny, None, make_adata(), tmp_path / "c")


def test_fingerprint(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    """Another file of weights or aliases, or another option, gives another fingerprint; the time does not."""
    make_adata().write_h5ad(tmp_path / "screen.h5ad")
    aliases = tmp_path / "aliases.json"
    aliases.write_text('{"unknown-1": "GENE001"}')
    copy = tiny.make(tmp_path / "copy", GENES)

    def digest(folder: Path = copy, **options: Any) -> str:
        spec = EmbeddingSpec("x", tiny.name, {**tiny.options, "weights": str(folder), **options})
        with open_screen(tmp_path / "screen.h5ad", ROLES) as screen:
            return embedding_fingerprint(spec, screen, 0)

    first = digest()
    assert digest() == first
    assert digest(min_gene_overlap=0.5) != first
    with_aliases = digest(aliases=str(aliases))
    assert with_aliases != first
    aliases.write_text('{"unknown-1": "GENE002"}')
    assert digest(aliases=str(aliases)) != with_aliases
    path = next(path for path in sorted(copy.rglob("*")) if path.suffix in (".pt", ".safetensors", ".torch", ".ckpt"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert digest() != first
    with open_screen(tmp_path / "screen.h5ad", ROLES) as screen, pytest.raises(InputError):
        embedding_fingerprint(EmbeddingSpec("x", tiny.name, {"weights": str(tmp_path / "none")}), screen, 0)


@pytest.mark.parametrize(
    "tiny",
    [tiny for tiny in MODELS if tiny.id in ("geneformer-v1", "scgpt", "uce-33l", "cellplm-argmax")],
    ids=lambda tiny: tiny.id,
    indirect=True,
)
def test_memory_does_not_grow_with_the_samples(
    tiny: Tiny, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("txeval.embed.frozen.WINDOW", 32)
    options: dict[str, Any] = {"batch_size": 16}

    def peak(n: int) -> int:
        make_adata(make_counts(n)).write_h5ad(tmp_path / f"{n}.h5ad")
        spec = EmbeddingSpec("x", tiny.name, {**tiny.options, "weights": str(weights), **options})
        with open_screen(tmp_path / f"{n}.h5ad", ROLES) as screen:
            context = EmbeddingContext(tmp_path / f"work-{n}", max_elements=42 * 32)
            embedder = resolve(spec)
            embedder.embed(screen, spec.options, context)
            tracemalloc.start()
            try:
                embedder.embed(screen, spec.options, context)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    small, large = peak(100), peak(500)
    # What grows is the list of sample names: their text, and the number of each.
    assert large < small + 400 * 600
