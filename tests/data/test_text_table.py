"""Tables as text: what pandas, R and spreadsheets write, read back; what cannot be one table, refused with its line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import made
import numpy as np
import pandas as pd
import pytest

from txeval.data import Roles, open_screen
from txeval.data.readers import read_label_table
from txeval.data.text_table import open_table
from txeval.embed import EmbeddingContext, EmbeddingSpec, make_embedding
from txeval.errors import InputError

NAMES = [f"c{i}" for i in range(40)]
VALUES = np.random.default_rng(0).normal(size=(40, 3)).round(4)
FRAME = pd.DataFrame(VALUES, index=NAMES, columns=["d0", "d1", "d2"])


def r_table(separator: str) -> str:
    """As write.table writes it: row names without a heading."""
    lines = [separator.join(FRAME.columns)]
    lines += [separator.join([name, *map(str, row)]) for name, row in zip(NAMES, VALUES.tolist(), strict=True)]
    return "\n".join(lines) + "\n"


WRITTEN: dict[str, str | bytes] = {
    "commas": FRAME.to_csv(),
    "tabs": FRAME.to_csv(sep="\t", index_label="cell"),
    "semicolons": FRAME.to_csv(sep=";"),
    "decimal commas": FRAME.to_csv(sep=";", decimal=","),
    "decimal commas and tabs": FRAME.to_csv(sep="\t", decimal=","),
    "R, tabs": r_table("\t"),
    "R, commas": r_table(","),
    "R, blanks": r_table(" "),
    "a byte order mark and CRLF": b"\xef\xbb\xbf" + FRAME.to_csv().replace("\n", "\r\n").encode(),
    "quotes": FRAME.to_csv(quoting=1),
    "blank lines": "\n\n" + FRAME.to_csv() + "\n\n",
    "gzip": gzip.compress(FRAME.to_csv().encode()),
}


def write(folder: Path, content: str | bytes, name: str = "e.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("kind", list(WRITTEN))
def test_what_others_write_is_read_back(tmp_path: Path, kind: str) -> None:
    table = open_table(write(tmp_path, WRITTEN[kind]))
    assert table.n == 40 and table.fields[1:] == ("d0", "d1", "d2")
    assert table.column(0).tolist() == NAMES
    np.testing.assert_array_equal(np.concatenate(list(table.numbers([1, 2, 3], 7))), VALUES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        ("name,a\nc0,1\nc1,1,2\n", "line 3 has 3 fields, and the header 2"),
        ("name,a\nc0,1,2,3\nc1,1,2,3\n", "line 2 has 4 fields, and the header 2"),
        ("name,a,b\nc0,1,2\nc1,1\n", "line 3 has 2 fields, and the header 3"),
        ("name,a,a\nc0,1,2\n", "2 columns are called 'a'"),
        ("0.1,0.2\n0.3,0.4\n", "holds numbers"),
        ("name,a\nc0,1\nc\xe9,2\n".encode("latin-1"), "line 3 is not UTF-8 text (byte 0xe9)"),
        ("name,a\nc0,1\x00\n", "line 2 holds a null character"),
        (gzip.compress(FRAME.to_csv().encode())[:-20], "cannot be read"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(InputError) as why:
        open_table(write(tmp_path, content))
    assert said in why.value.problem and why.value.remedy


def test_a_field_that_is_no_number_is_named(tmp_path: Path) -> None:
    table = open_table(write(tmp_path, "name,a\nc0,1\nc1,x\n"))
    with pytest.raises(InputError, match="column 'a' holds 'x' in data row 2"):
        list(table.numbers([1], 10))


# Embeddings


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A screen whose samples have names, numbers as names, and numbers with leading zeros."""
    folder = tmp_path_factory.mktemp("screens")
    found = {}
    for kind, names in {
        "text": NAMES,
        "numbers": [str(100_000 + i) for i in range(40)],
        "zeros": [f"{i:05d}" for i in range(40)],
    }.items():
        a = made.adata(n=40)
        a.obs_names = names
        found[kind] = made.write(a, folder / f"{kind}.h5ad")
    return found


def embedded(screen: Path, source: Path, folder: Path, **options: Any) -> np.ndarray:
    with open_screen(screen, Roles("perturbation", ("control",), batch="batch")) as opened:
        context = EmbeddingContext(folder / "work", seed=0)
        values = make_embedding(EmbeddingSpec("e", str(source), options), opened, context).values
        return np.asarray(values[slice(0, 40)])


@pytest.mark.parametrize("kind", ["text", "numbers", "zeros"])
@pytest.mark.parametrize("format", ["csv", "tsv", "parquet", "parquet, typed"])
@pytest.mark.parametrize("place", [0, 3])
def test_names_are_found_by_their_values(
    screens: dict[str, Path], tmp_path: Path, kind: str, format: str, place: int
) -> None:
    """Whatever their type, heading and place among the columns, in any order of the rows."""
    with open_screen(screens[kind], Roles("perturbation", ("control",), batch="batch")) as screen:
        names = list(screen.sample_names)
    frame = pd.DataFrame(VALUES, columns=["d0", "d1", "d2"])
    typed = format.endswith("typed") and kind == "numbers"
    frame.insert(place, "which", [int(name) for name in names] if typed else names)
    frame = frame.sample(frac=1, random_state=1)
    path = tmp_path / f"e.{format.partition(',')[0]}"
    if "parquet" in format:
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, sep="," if format == "csv" else "\t", index=False)
    for options in ({}, {"positional": True}):
        np.testing.assert_array_equal(embedded(screens[kind], path, tmp_path, **options), VALUES.astype(np.float32))


@pytest.mark.parametrize("heading", ["cell_id", "", "index", "barcode"])
@pytest.mark.parametrize("positional", [False, True])
def test_identifiers_that_are_not_those_of_the_screen_are_no_dimension(
    screens: dict[str, Path], tmp_path: Path, heading: str, positional: bool
) -> None:
    frame = pd.DataFrame(VALUES, columns=["d0", "d1", "d2"])
    frame.insert(0, heading, np.arange(40) + 5)
    frame.to_csv(tmp_path / "e.csv", index=False)
    with pytest.raises(InputError, match="have no row in the embedding"):
        embedded(screens["numbers"], tmp_path / "e.csv", tmp_path, positional=positional)


def test_two_columns_of_names_are_asked_about(screens: dict[str, Path], tmp_path: Path) -> None:
    FRAME.assign(again=NAMES).to_csv(tmp_path / "e.csv", index_label="name")
    with pytest.raises(InputError, match="'name' and 'again' both hold names") as why:
        embedded(screens["text"], tmp_path / "e.csv", tmp_path)
    assert "@names=name" in why.value.remedy


def test_two_parquet_columns_of_one_name_are_refused(screens: dict[str, Path], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array(VALUES[:, 0])
    pq.write_table(pa.table([column, column], names=["d0", "d0"]), tmp_path / "e.parquet")
    with pytest.raises(InputError, match="2 columns are called 'd0'"):
        embedded(screens["text"], tmp_path / "e.parquet", tmp_path)


# Labels


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_labels_are_read_by_the_column_of_names(tmp_path: Path, separator: str) -> None:
    labels = pd.DataFrame({"gene": ["a", "b"] * 20, "cell": NAMES, "dose": np.arange(40) / 4})
    path = write(tmp_path, labels.to_csv(sep=separator, index=False), "labels.txt")
    found = read_label_table(path, np.array(NAMES, dtype=object))
    assert found.index.tolist() == NAMES
    assert found["gene"].tolist() == labels["gene"].tolist()
    assert found["dose"].tolist() == labels["dose"].tolist()
