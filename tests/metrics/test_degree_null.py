"""The null of degrees: it keeps them, reaches all networks evenly, and sees through hubs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txeval.errors import NotComputable
from txeval.metrics.degree_null import degree_null, swapped_links
from txeval.metrics.relationships import KnownLinks, RelationMap


def links_of(pairs: list[tuple[int, int]]) -> KnownLinks:
    first, second = np.asarray(sorted(pairs), dtype=np.int64).reshape(-1, 2).T
    return KnownLinks(first, second, len(pairs), 0, 0, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_every_network_has_the_degrees_and_no_repeats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 20))
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if rng.random() < 0.3]
    if not pairs:
        return
    links = links_of(pairs)
    degree = np.bincount(np.r_[links.first, links.second], minlength=n)
    for first, second in swapped_links(links, n, draws=5, seed=seed):
        assert (first < second).all()
        assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == len(pairs)
        np.testing.assert_array_equal(np.bincount(np.r_[first, second], minlength=n), degree)


def test_all_networks_of_the_degrees_are_equally_likely() -> None:
    # Six genes in a ring: 70 networks give every gene two links (60 rings and 10 pairs of triangles).
    ring = links_of([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5)])
    draws = 21_000
    seen = Counter(tuple(zip(a.tolist(), b.tolist(), strict=True)) for a, b in swapped_links(ring, 6, draws=draws))
    assert len(seen) == 70
    counts = np.asarray(list(seen.values()))
    # Successive networks depend on each other: the spread is that of a few times fewer draws.
    assert ((counts - draws / 70) ** 2).sum() / (draws / 70) < 5 * 69


def test_hubs_of_strong_effect_are_seen_through() -> None:
    rng = np.random.default_rng(0)
    n = 120
    X = rng.normal(size=(n, 30))
    # Ten hubs share a direction, so all their pairs are similar; the database names them often, with anybody.
    hubs = np.arange(10)
    X[hubs] += 6 * rng.normal(size=30)
    pairs = {(int(h), int(g)) for h in hubs for g in rng.choice(np.arange(10, n), 8, replace=False)}
    pairs |= {(int(a), int(b)) for a in hubs for b in hubs if a < b and rng.random() < 0.5}
    relation_map = RelationMap(X, [f"g{i:03d}" for i in range(n)])
    links = links_of(list(pairs))
    recall = relation_map.hits(links, 0.05, "high").mean()
    relabelled = relation_map.relabelled(links, 0.05, draws=200)
    null = degree_null(relation_map, links, (0.05,), draws=200, ranking_draws=20)
    high = np.quantile(null.high[0.05], 0.975)
    assert recall > np.quantile(relabelled.by_side[1], 0.975)
    assert null.high[0.05].mean() > 2 * 0.05
    assert recall < 2 * high
    assert null.auroc.mean() > 0.5 and len(null.average_precision) == 20 and null.moved > 0.3


def test_a_random_map_is_at_the_null() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(30):
        relation_map = RelationMap(rng.normal(size=(40, 5)), [f"g{i:02d}" for i in range(40)])
        pairs = {tuple(sorted(rng.choice(40, 2, replace=False).tolist())) for _ in range(60)}
        links = links_of(list(pairs))
        null = degree_null(relation_map, links, (0.05,), draws=100, ranking_draws=0, seed=seed)
        low, high = np.quantile(null.low[0.05] + null.high[0.05], [0.05, 0.95])
        inside += low <= relation_map.recall(links, 0.05) <= high
    assert inside >= 20


def test_sides_add_up_and_edges() -> None:
    rng = np.random.default_rng(2)
    relation_map = RelationMap(rng.normal(size=(30, 4)), [f"g{i:02d}" for i in range(30)])
    links = links_of([(i, j) for i in range(30) for j in range(i + 1, 30) if rng.random() < 0.2])
    low, high = (relation_map.hits(links, 0.1, side) for side in ("low", "high"))
    np.testing.assert_array_equal(low | high, relation_map.hits(links, 0.1))
    assert not (low & high).any()
    assert relation_map.n_predicted(0.1, "low") + relation_map.n_predicted(0.1, "high") == relation_map.n_predicted(0.1)
    found = relation_map.relabelled(links, 0.1, draws=30)
    np.testing.assert_allclose(found.by_side.sum(axis=0), found.recalls)
    with pytest.raises(NotComputable, match="none of the known"):
        degree_null(relation_map, links_of([]), (0.05,))
    # A star cannot be swapped: the null is the network itself.
    star = links_of([(0, i) for i in range(1, 30)])
    assert degree_null(relation_map, star, (0.05,), draws=5, ranking_draws=0).moved == 0
