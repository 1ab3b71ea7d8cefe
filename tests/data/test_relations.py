from __future__ import annotations

import pickle
from pathlib import Path

import pandas as pd
import pytest

from txeval.data.relations import DATABASES, load_relations, read_relations, relation_files, relations_digest
from txeval.errors import InputError

# Lines of the published files without their header.
SIZES = {"CORUM": 75_298, "HuMAP": 117_076, "Reactome": 22_865, "SIGNOR": 12_177, "StringDB": 116_118}


@pytest.fixture
def users(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


def pairs(frame: pd.DataFrame) -> list[tuple[str, str]]:
    assert list(frame.columns) == ["entity1", "entity2"]
    return list(frame.itertuples(index=False, name=None))


def test_the_five_databases(data_dir, monkeypatch):
    monkeypatch.setenv("TXEVAL_DATA", str(data_dir))
    monkeypatch.setenv("TXEVAL_OFFLINE", "1")
    loaded = load_relations()
    assert tuple(loaded) == DATABASES
    assert {name: len(frame) for name, frame in loaded.items()} == SIZES
    assert pairs(loaded["SIGNOR"])[:2] == [("GOLGA2", "GORASP1"), ("PPARD", "CAT")]
    assert {name for name, frame in loaded.items() if frame.attrs["non_commercial"]} == {"CORUM", "SIGNOR"}
    assert loaded["Reactome"].attrs["licence"] == "CC0-1.0"
    assert Path(loaded["HuMAP"].attrs["source"]) == data_dir / "relationships" / "HuMAP.txt"
    assert pickle.loads(pickle.dumps(loaded["CORUM"])).attrs == loaded["CORUM"].attrs


def test_the_published_folder_as_ones_own(data_dir):
    """It holds a table of complexes and a licence beside the databases."""
    databases, left_out = relation_files(data_dir / "relationships")
    assert set(databases) == set(DATABASES)
    assert set(left_out) == {"CORUM_clusters.tsv"}
    loaded = load_relations(data_dir / "relationships", names=["SIGNOR"])
    assert {name: len(frame) for name, frame in loaded.items()} == {"SIGNOR": SIZES["SIGNOR"]}


def test_ones_own_databases_are_the_only_ones(users):
    (users / "b.csv").write_text("entity1,entity2\nTP53,MDM2\n")
    (users / "a.tsv").write_text("gene_1\tgene_2\r\nNA\tNULL\r\n")
    (users / "c.txt").write_text('score;Entity2;Entity1\n0.5;" X1 ";Y1\n')
    (users / "README.txt").write_text("what this is")
    (users / "table.csv").write_text("a,b,c\n1,2,3\n")
    (users / "notes.md").write_text("anything")
    loaded = load_relations(users)
    assert {name: pairs(frame) for name, frame in loaded.items()} == {
        "a": [("NA", "NULL")],
        "b": [("TP53", "MDM2")],
        "c": [("Y1", "X1")],
    }
    assert "licence" not in loaded["a"].attrs
    assert set(relation_files(users)[1]) == {"README.txt", "table.csv"}
    assert pairs(load_relations(users / "b.csv")["b"]) == [("TP53", "MDM2")]


def test_a_newer_database_of_a_known_name_has_no_licence_made_up(users):
    (users / "CORUM.txt").write_text("entity1,entity2\nA,B\n")
    loaded = load_relations(users, names=["CORUM"])
    assert pairs(loaded["CORUM"]) == [("A", "B")]
    assert "licence" not in loaded["CORUM"].attrs


def test_a_known_name_that_is_not_in_the_folder_is_looked_for(users, data_dir, monkeypatch):
    monkeypatch.setenv("TXEVAL_DATA", str(data_dir))
    (users / "mine.txt").write_text("entity1,entity2\nA,B\n")
    loaded = load_relations(users, names=["mine", "SIGNOR"])
    assert {name: len(frame) for name, frame in loaded.items()} == {"SIGNOR": SIZES["SIGNOR"], "mine": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"entity1,entity2\n", "a header and no pairs"),
        (b"entity1\nTP53\n", "one column, 'entity1'"),
        (b"TP53,MDM2\nA,B\n", "first line of .*'TP53,MDM2'"),
        (b"entity1,entity2\nA,B\nC,\n", "1 of 2 pairs lack a gene, the first is pair 2"),
        (b"entity1,entity2\nA,B\nC\n", "1 of 2 pairs lack a gene, the first is pair 2"),
        (b"entity1,entity2\nA,B\nC,D,E\n", "cannot be read as pairs.*line 3"),
        (b"entity1,entity2\nA,B,1\nC,D,2\n", "more fields than its header"),
        (b"entity1,entity2\n\xff\xfe\x00\n", "not a text file|cannot be read as pairs"),
        (b"a,b,c\n1,2,3\n", "3 columns and none are called"),
    ],
)
def test_files_that_are_no_pairs(users, content, message):
    (users / "mine.txt").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_relations(users / "mine.txt")
    assert str(users / "mine.txt") in caught.value.problem
    with pytest.raises(InputError):
        load_relations(users)


def test_nothing_to_load(users):
    with pytest.raises(InputError, match="has no file of pairs"):
        load_relations(users)
    with pytest.raises(InputError, match="does not exist"):
        load_relations(users / "absent")
    with pytest.raises(InputError, match="does not exist"):
        read_relations(users / "absent.txt")


def test_unknown_names_get_the_nearest(users):
    with pytest.raises(InputError, match="did you mean 'CORUM'"):
        load_relations(names=["Corun"])
    (users / "mine.txt").write_text("entity1,entity2\nA,B\n")
    with pytest.raises(InputError, match="did you mean 'mine'"):
        load_relations(users, names=["mime"])


def test_two_files_of_one_name(users):
    for suffix in ("csv", "tsv"):
        (users / f"mine.{suffix}").write_text("entity1,entity2\nA,B\n".replace(",", "," if suffix == "csv" else "\t"))
    with pytest.raises(InputError, match="two databases of one name"):
        load_relations(users)


def test_digest_follows_names_and_pairs_only(users):
    (users / "x.csv").write_text("entity1,entity2\nA,B\nC,D\n")
    (users / "y.csv").write_text("entity1,entity2\nA,B\n")
    loaded = load_relations(users)
    digest = relations_digest(loaded)
    assert relations_digest({"y": loaded["y"], "x": loaded["x"]}) == digest
    assert relations_digest({"x": loaded["x"].copy(), "y": pd.DataFrame(loaded["y"].to_dict("list"))}) == digest
    others = [
        {"x": loaded["x"]},
        {"x": loaded["y"], "y": loaded["x"]},
        {"x": loaded["x"], "y": loaded["y"][["entity2", "entity1"]].set_axis(["entity1", "entity2"], axis=1)},
        {"x": loaded["x"].iloc[::-1], "y": loaded["y"]},
    ]
    assert len({digest, *map(relations_digest, others)}) == 5
