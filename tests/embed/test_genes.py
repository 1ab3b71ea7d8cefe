"""Which column is which gene."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from txeval.data.gene_names import looks_like_ensembl, without_version
from txeval.embed.checkpoints import load_table
from txeval.embed.genes import match_genes, read_aliases
from txeval.errors import InputError


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("ENSG00000141510.18", "ENSG00000141510"),
        ("ENSMUSG00000059552.3", "ENSMUSG00000059552"),
        ("ENSG00000141510", "ENSG00000141510"),
        ("AC009229.6", "AC009229.6"),
        ("HLA-A", "HLA-A"),
        # The copy on the Y chromosome is another gene.
        ("ENSG00000002586.20_PAR_Y", "ENSG00000002586.20_PAR_Y"),
        ("ENSG0000014151.2", "ENSG0000014151.2"),
    ],
)
def test_without_version(name: str, plain: str) -> None:
    assert without_version(name) == plain


def test_kind_of_names() -> None:
    assert looks_like_ensembl(["ENSG00000141510.18", "ENSMUSG00000059552", "TP53"])
    assert not looks_like_ensembl(["TP53", "MYC", "ENSG00000141510"])
    assert not looks_like_ensembl([])


def test_every_way_is_counted_and_the_rest_listed() -> None:
    names = ["ENSG00000000001", "ENSG00000000002.5", "B", "old", "ENSG00000000009", "b2", "ENSG00000000010.2", "what"]
    match = match_genes(
        names,
        ["ENSG00000000001", "ENSG00000000002", "ENSG00000000003", "ENSG00000000004", "ENSG00000000005"],
        tables={
            "symbol": {"B": "ENSG00000000003", "B2": "ENSG00000000009"},
            "retired": {"ENSG00000000009": "ENSG00000000004"},
        },
        aliases={"old": "B", "ENSG00000000010": "ENSG00000000005"},
        ignore_case=True,
    )
    assert match.genes == (
        "ENSG00000000001",
        "ENSG00000000002",
        "ENSG00000000003",
        "ENSG00000000004",
        "ENSG00000000005",
    )
    assert match.target.tolist() == [0, 1, 2, 2, 3, 3, 4, -1]
    assert match.ways == {
        "exact": 1,
        "version removed": 1,
        "symbol": 1,
        "alias": 2,
        "retired": 1,
        "upper case, retired": 1,
    }
    report = match.report()
    assert report["columns"] == 8
    assert report["matched_columns"] == 7
    assert report["matched_genes"] == 5
    assert report["matched_fraction"] == 7 / 8
    assert report["unmatched"] == ["what"]
    assert report["summed"] == {"ENSG00000000003": ["B", "old"], "ENSG00000000004": ["ENSG00000000009", "b2"]}
    json.dumps(report)


def test_an_alias_is_used_only_where_nothing_else_matches() -> None:
    """Former names of one gene are often names of another today."""
    match = match_genes(["A", "B"], ["A", "C"], aliases={"A": "C", "B": "C"})
    assert [match.genes[i] for i in match.target] == ["A", "C"]


def test_a_retired_id_is_replaced_even_where_the_model_still_knows_it() -> None:
    match = match_genes(["old"], ["old", "new"], tables={"retired": {"old": "new"}})
    assert match.genes == ("new",)
    # A table that leads out of the vocabulary loses the gene, as in the official tokenizer of Geneformer.
    assert match_genes(["old"], ["old"], tables={"retired": {"old": "new"}}).unmatched == ("old",)


def test_order_with_summed_genes_last() -> None:
    names = ["b1", "a", "c1", "b2", "d", "c2"]
    aliases = {"b1": "b", "b2": "b", "c1": "c", "c2": "c"}
    assert match_genes(names, "abcd", aliases=aliases).genes == ("b", "a", "c", "d")
    assert match_genes(names, "abcd", aliases=aliases, order="summed_last").genes == ("a", "d", "b", "c")


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12),
    st.sets(st.sampled_from("abcdefgh"), max_size=6),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_counts_of_known_genes_are_kept_and_summed(names: list[str], known: set[str], seed: int, dense: bool) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.poisson(1.0, (4, len(names)))).astype(np.float32)
    match = match_genes(names, known)
    made = match.collapse(x if dense else sp.csr_matrix(x))
    assert made.shape == (4, len(set(names) & known))
    assert made.dtype == np.float32
    assert made.has_sorted_indices and (made.data != 0).all()
    for number, gene in enumerate(match.genes):
        columns = [column for column, name in enumerate(names) if name == gene]
        assert np.array_equal(made.toarray()[:, number], x[:, columns].sum(axis=1))
    assert set(match.unmatched) == set(names) - known
    assert match.fraction == sum(name in known for name in names) / len(names)


def test_stored_zeros_are_no_expression() -> None:
    x = sp.csr_matrix((np.array([0.0, 2.0], dtype=np.float32), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert match_genes(["a", "b"], "ab").collapse(x).nnz == 1


def test_too_few_genes_name_the_likely_reason() -> None:
    symbols, ids = ["TP53", "MYC", "GAPDH"], ["ENSG00000141510", "ENSG00000136997", "ENSG00000111640"]
    with pytest.raises(InputError, match="do not look like Ensembl ids") as found:
        match_genes(symbols, ids).require(0.2, model="m", vocabulary=ids, wants="Ensembl ids")
    assert "aliases=FILE" in str(found.value)
    with pytest.raises(InputError, match="look like Ensembl ids"):
        match_genes(ids, symbols).require(0.2, model="m", vocabulary=symbols, wants="gene symbols")
    with pytest.raises(InputError, match="nearest gene of the model to 'Tp53' is 'TP53'"):
        match_genes(["Tp53", "Myc"], symbols).require(0.2, model="m", vocabulary=symbols, wants="gene symbols")
    match_genes(["TP53", "x"], symbols).require(0.5, model="m", vocabulary=symbols, wants="gene symbols")
    with pytest.raises(InputError, match=r"knows 1 of the 2 genes of the screen \(50\.0%; at least 60\.0%"):
        match_genes(["TP53", "x"], symbols).require(0.6, model="m", vocabulary=symbols, wants="gene symbols")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".json", ".pkl"])
def test_alias_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"aliases{suffix}"
    table = {"old": "new", "ENSG00000000001": "A-1"}
    if suffix == ".json":
        path.write_text(json.dumps(table))
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps(table))
    else:
        mark = "\t" if suffix == ".tsv" else ","
        lines = [mark.join(("source", "gene", "alias")), *(mark.join(("x", v, k)) for k, v in table.items()), ""]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    assert read_aliases(path) == table


def test_bad_alias_files(tmp_path: Path) -> None:
    path = tmp_path / "aliases.tsv"
    with pytest.raises(InputError, match="cannot be read"):
        read_aliases(path)
    path.write_text("from\tto\na\tb\n")
    with pytest.raises(InputError, match=r"no column 'alias' or 'gene'; it has: from, to"):
        read_aliases(path)
    path.write_text("alias\tgene\na\n")
    with pytest.raises(InputError, match="line 2 is not whole: a"):
        read_aliases(path)
    path.write_bytes(b"\x80\x81\x82")
    with pytest.raises(InputError, match="not a text file"):
        read_aliases(path)
    with pytest.raises(InputError, match=r"a table of gene aliases is a \.tsv"):
        read_aliases(tmp_path / "aliases.xlsx")


def test_the_real_geneformer_table_maps_symbols(data_dir: Path) -> None:
    """Symbols of a real screen through the real table of Geneformer V1, read without running anything."""
    table = read_aliases(data_dir / "model_assets" / "geneformer" / "gene_name_id_dict.pkl")
    assert len(table) == 40_248
    assert table["TP53"] == "ENSG00000141510"


def test_real_genes_are_found_in_the_real_vocabularies(data_dir: Path) -> None:
    """Symbols of two screens in the vocabularies of the released models, through the models' own tables."""
    assets = data_dir / "model_assets"
    scgpt = load_table(assets / "scgpt" / "scgpt_human_vocab.json", int)
    tokens = load_table(assets / "geneformer" / "token_dictionary.pkl", int)
    symbols = load_table(assets / "geneformer" / "gene_name_id_dict.pkl", str)
    config = json.loads((assets / "cellplm" / "20230926_85M.config.json").read_text())
    for screen, least in (("papalexi2021_thp1_ecciteseq_299genes", 0.8), ("norman2019_k562_crispra_500hvg", 0.88)):
        names = ad.read_h5ad(data_dir / f"{screen}.h5ad", backed="r").var_names
        assert match_genes(names, scgpt).fraction > 0.9
        assert match_genes(names, tokens, tables={"symbol": symbols}).fraction > least
        by_alias = match_genes(names, config["gene_list"], aliases=symbols)
        assert by_alias.fraction > least
        assert by_alias.ways == {"alias": len(by_alias.genes)}
        assert match_genes(names, config["gene_list"]).fraction == 0
