from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from txeval.compute.intervals import interval
from txeval.errors import InputError, NotComputable
from txeval.metrics import relationship_recall
from txeval.metrics.relationships import RelationMap

DATABASES = ("CORUM", "HuMAP", "Reactome", "SIGNOR", "StringDB")


@pytest.fixture(scope="module")
def real(data_dir: Path) -> tuple[np.ndarray, np.ndarray, dict[str, pd.DataFrame]]:
    screen = ad.read_h5ad(data_dir / "ipsc_ec_perturbseq_298targets_x_120programs.h5ad")
    X = np.nan_to_num(np.asarray(screen.X, dtype=np.float64))
    relations = {
        name: pd.read_csv(data_dir / "relationships" / f"{name}.txt", keep_default_na=False) for name in DATABASES
    }
    return X, np.asarray(screen.obs_names), relations


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["as_is", "centred"])
def test_recall_is_the_golden_one(real: tuple, golden_dir: Path, kind: str, dtype: type) -> None:
    X, genes, relations = real
    answers = json.loads((golden_dir / "norman.json").read_text())["answers"][f"relationships/{kind}"]
    X = X - X.mean(axis=0) if kind == "centred" else X
    for name in DATABASES:
        for tail, key in ((0.05, "recall_05"), (0.1, "recall_10")):
            found = relationship_recall(X.astype(dtype), genes, relations[name], tail=tail)
            assert found["recall"] == pytest.approx(answers[name][key], rel=1e-9)
            assert found["n_relations"] == answers[name]["n"]
            assert found["n_pairs"] == 298 * 297 // 2


def test_a_real_map_is_above_chance_and_a_shuffled_one_is_not(real: tuple) -> None:
    X, genes, relations = real
    everything = pd.concat(relations.values())
    for values, low, high in ((X, 0.2, 1.0), (np.random.default_rng(0).permutation(X), 0.05, 0.15)):
        relation_map = RelationMap(values, genes)
        links = relation_map.links(everything)
        recall, chance = relation_map.recall(links, 0.05), relation_map.relabelled(links, 0.05, draws=300)
        assert low < recall < high
        assert chance.expected == pytest.approx(0.1, abs=1e-3)
        assert 0.05 < chance.low < 0.1 < chance.high < 0.15
        assert (recall > chance.high) == (values is X)


def made(seed: int = 0, g: int = 40, d: int = 5, m: int = 60) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    genes = np.array([f"G{i}" for i in range(g)])
    pairs = rng.integers(0, g + 5, (m, 2))
    return (
        rng.standard_normal((g, d)),
        genes,
        pd.DataFrame({"a": [f"G{i}" for i in pairs[:, 0]], "b": [f"G{i}" for i in pairs[:, 1]]}),
    )


def brute(X: np.ndarray, genes: np.ndarray, relations: pd.DataFrame, tail: float) -> tuple[float, int]:
    """The definition: every pair ranked in the sorted list of all pairs."""
    similarity = np.round(cosine_similarity(X), 12)
    ordered = np.sort(similarity[np.triu_indices(len(X), 1)])
    number = {gene: i for i, gene in enumerate(genes)}
    known = {frozenset((a, b)) for a, b in relations.itertuples(index=False) if a in number and b in number and a != b}
    hits = 0
    for pair in known:
        i, j = (number[gene] for gene in pair)
        left = np.searchsorted(ordered, similarity[i, j], side="left") / len(ordered)
        right = np.searchsorted(ordered, similarity[i, j], side="right") / len(ordered)
        hits += left >= 1 - tail or right <= tail
    return hits / len(known), len(known)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 25), st.sampled_from([0.05, 0.1, 0.2, 0.5]), st.booleans())
def test_recall_is_the_definition_with_ties_and_small_maps(seed: int, g: int, tail: float, ties: bool) -> None:
    X, genes, relations = made(seed, g=g)
    if ties:
        X = np.sign(X[:, :2])
    # One link at least, so that there is something to recall.
    relations = pd.concat([relations, pd.DataFrame({"a": ["G1"], "b": ["G0"]})])
    found = relationship_recall(X, genes, relations, tail=tail)
    assert (found["recall"], found["n_relations"]) == brute(X, genes, relations, tail)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_rotation_scale_and_order_change_nothing(seed: int) -> None:
    X, genes, relations = made(1)
    rng = np.random.default_rng(seed)
    before = RelationMap(X, genes)
    links = before.links(relations)
    order = rng.permutation(len(X))
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    scales = np.exp(rng.standard_normal((40, 1)))
    after = RelationMap((scales * (X @ rotation))[order], genes[order])
    turned = after.links(relations.iloc[rng.permutation(len(relations)), ::-1])
    pd.testing.assert_frame_equal(before.table(links), after.table(turned), atol=1e-10)
    assert before.recall(links, 0.05) == after.recall(turned, 0.05)
    assert before.ranking(links) == after.ranking(turned)
    np.testing.assert_array_equal(
        before.relabelled(links, 0.05, draws=20).recalls, after.relabelled(turned, 0.05, draws=20).recalls
    )


def test_what_is_left_out_is_counted() -> None:
    X = np.eye(4) + 0.1
    links = RelationMap(X, ["A", "B", "C", "D"]).links(
        [("A", "B"), ("B", "A"), ("A", "B"), ("C", "C"), ("A", "x"), ("a", "B"), ("D", "C")]
    )
    assert links.first.tolist() == [0, 2]
    assert links.second.tolist() == [1, 3]
    assert links.left_out == {
        "relationships with a gene outside the map": 2,
        "self links": 1,
        "relationships listed before": 2,
    }
    assert links.n_given == 7 == len(links) + sum(links.left_out.values())


def test_two_columns_come_in_several_shapes() -> None:
    X, genes, relations = made(2)
    expected = relationship_recall(X, genes, relations)
    a, b = relations["a"], relations["b"]
    for shape in (
        relations.to_numpy(),
        relations.to_numpy().astype(str),
        (a, b),
        (list(a), list(b)),
        list(zip(a, b, strict=True)),
        relations.assign(source="x"),
    ):
        assert relationship_recall(X, genes, shape) == expected
    with_missing = pd.concat([relations, pd.DataFrame({"a": [np.nan, "G1"], "b": ["G1", None]})])
    assert relationship_recall(X, genes, with_missing) == expected


def test_table_says_why_a_link_is_predicted() -> None:
    X, genes, relations = made(3)
    relation_map = RelationMap(X, genes)
    links = relation_map.links(relations)
    table = relation_map.table(links, (0.05, 0.25))
    similarity = cosine_similarity(X)
    every = similarity[np.triu_indices(40, 1)]
    number = {gene: i for i, gene in enumerate(genes)}
    for row in table.itertuples():
        assert row.cosine == pytest.approx(similarity[number[row.gene_a], number[row.gene_b]], abs=1e-11)
        assert row.rank == pytest.approx(((every < row.cosine - 1e-11).sum() + 0.5) / len(every))
        assert row.link_25 == ("low" if row.rank <= 0.25 else "high" if row.rank >= 0.75 else "")
    assert (table["link_25"] != "").mean() == relation_map.recall(links, 0.25)
    assert set(table["link_25"]) == {"low", "", "high"}


def test_ranking_is_that_of_sklearn() -> None:
    X, genes, relations = made(4)
    relation_map = RelationMap(X, genes)
    links = relation_map.links(relations)
    every = cosine_similarity(X)[np.triu_indices(40, 1)]
    score = np.round(np.abs(rankdata(every) - 0.5 - len(every) / 2), 6)
    first, second = np.triu_indices(40, 1)
    name = {frozenset(pair) for pair in relations.itertuples(index=False)}
    known = np.array([frozenset((genes[i], genes[j])) in name for i, j in zip(first, second, strict=True)])
    auroc, precision = relation_map.ranking(links)
    assert auroc == pytest.approx(roc_auc_score(known, score), abs=1e-12)
    assert precision == pytest.approx(average_precision_score(known, score), abs=1e-12)


def test_relabelling_keeps_the_network_and_has_the_expected_recall() -> None:
    X, genes, relations = made(5, g=30, m=300)
    relation_map = RelationMap(X, genes)
    links = relation_map.links(relations)
    found = relation_map.relabelled(links, 0.1, draws=3000)
    assert found.expected == pytest.approx(relation_map.n_predicted(0.1) / 435)
    assert found.recalls.mean() == pytest.approx(found.expected, abs=0.002)
    assert found.low < found.expected < found.high
    rng = np.random.default_rng(0)
    direct = [relationship_recall(X, rng.permutation(genes), relations, tail=0.1)["recall"] for _ in range(1500)]
    np.testing.assert_allclose([found.low, found.high], np.quantile(direct, [0.025, 0.975]), atol=0.012)
    again = relation_map.relabelled(links, 0.1, draws=50)
    np.testing.assert_array_equal(again.recalls, found.recalls[:50])
    assert relation_map.relabelled(links, 0.1, draws=50, seed=1).recalls.tolist() != again.recalls.tolist()


def test_units_give_the_recall_back() -> None:
    X, genes, relations = made(6)
    relation_map = RelationMap(X, genes)
    links = relation_map.links(relations)
    units = relation_map.units(links, 0.2)
    recall = relation_map.recall(links, 0.2)
    assert units.value == pytest.approx(recall)
    found = interval(units, low=0, high=1)
    assert found.note == ""
    assert found.unit == "gene"
    assert found.low < recall < found.high
    for units, value in zip(relation_map.ranking_units(links), relation_map.ranking(links), strict=True):
        assert units.value == pytest.approx(value, rel=1e-12)


def test_a_collapsed_map_predicts_nothing() -> None:
    genes = [f"G{i}" for i in range(12)]
    for X in (np.zeros((12, 3)), np.full((12, 3), 0.1)):
        found = relationship_recall(X, genes, [("G1", "G2"), ("G3", "G4")])
        assert found["recall"] == found["n_predicted"] == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"genes": ["A", "B"]}, InputError, "2 entries for 4"),
        ({"genes": ["A", "B", "B", "D"]}, InputError, "'B' has 2 rows"),
        ({"genes": ["A", "B", None, "D"]}, InputError, "missing in row 2"),
        ({"tail": 0.0}, InputError, "tail is 0"),
        ({"tail": 0.51}, InputError, "tail is 0.51"),
        ({"X": np.full((4, 2), np.inf)}, InputError, "row 0, column 0"),
        ({"relations": [("A", "B", "C")]}, InputError, "two columns"),
        ({"relations": pd.DataFrame({"a": ["A"]})}, InputError, "two columns"),
        ({"relations": (["A"], ["B", "C"])}, InputError, "lengths 1 and 2"),
        ({"relations": []}, NotComputable, "none of the 0"),
        ({"relations": [("x", "y"), ("A", "A")]}, NotComputable, "none of the 2"),
        ({"X": np.ones((1, 2)), "genes": ["A"]}, NotComputable, "no pairs"),
    ],
)
def test_bad_input_is_refused(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"X": np.eye(4), "genes": ["A", "B", "C", "D"], "relations": [("A", "B")], **change}
    with pytest.raises(error, match=message):
        relationship_recall(**arguments)


def test_nothing_to_rank_against() -> None:
    relation_map = RelationMap(np.eye(3), ["A", "B", "C"])
    links = relation_map.links([("A", "B"), ("B", "C"), ("A", "C")])
    with pytest.raises(NotComputable, match="every pair"):
        relation_map.ranking(links)
