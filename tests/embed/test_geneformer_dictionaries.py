"""Which dictionaries belong to a Geneformer model, and what they have to hold."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import GENES, MODELS, embed, make_adata

from txeval.embed import geneformer
from txeval.errors import InputError

TINY = {tiny.id: tiny for tiny in MODELS}
SUFFIX = {"geneformer-v1": "_gc30M", "geneformer-v2": "_gc104M"}
MEDIANS, TOKENS = "gene_median_dictionary", "token_dictionary"


@pytest.fixture(params=["geneformer-v1", "geneformer-v2"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def weights(name: str, tmp_path: Path) -> Path:
    return TINY[name].make(tmp_path / "weights", GENES)


def tables(weights: Path) -> Path:
    return next(weights.rglob(f"{TOKENS}*")).parent


def change(path: Path, how: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_bytes(pickle.dumps(how(pickle.loads(path.read_bytes()))))


def run(name: str, weights: Path, tmp_path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    return embed(TINY[name], weights, make_adata(), tmp_path / "run")


def rename(weights: Path, kinds: str, old: str, new: str) -> None:
    for path in tables(weights).glob(f"{kinds}{old}.pkl"):
        path.rename(path.with_name(path.name.replace(f"{old}.pkl", f"{new}.pkl")))


# What the dictionaries hold


@pytest.mark.parametrize("value", [2.5, np.nan, 0.0, -1.0, np.inf])
def test_medians_of_genes_without_a_token_do_not_matter(name: str, weights: Path, tmp_path: Path, value: float) -> None:
    """V2 was published with about twice as many medians as tokens."""
    wanted, _ = run(name, weights, tmp_path)
    others = {f"ENSG{number:011d}": value for number in range(45)}
    change(tables(weights) / f"{MEDIANS}{SUFFIX[name]}.pkl", lambda own: {**others, **own, "ENSG9": value})
    made, _ = run(name, weights, tmp_path)
    np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0, np.inf, None])
def test_every_gene_with_a_token_has_a_median(name: str, weights: Path, tmp_path: Path, value: float | None) -> None:
    path = tables(weights) / f"{MEDIANS}{SUFFIX[name]}.pkl"
    gene = sorted(pickle.loads(path.read_bytes()))[7]
    change(path, lambda own: {key: (value if key == gene else median) for key, median in own.items()
                              if value is not None or key != gene})  # fmt: skip
    with pytest.raises(InputError) as found:
        run(name, weights, tmp_path)
    said = "is missing" if value is None else f"is {value}"
    assert f"{path.name}: the median of {gene} {said}" in str(found.value).replace("../geneformer/", "")
    assert f"{TOKENS}{SUFFIX[name]}.pkl" in str(found.value)


def test_special_tokens_are_no_genes(name: str, weights: Path, tmp_path: Path) -> None:
    """They have no median; one that has makes no gene of them."""
    wanted, record = run(name, weights, tmp_path)
    assert record["genes"]["matched_columns"] == len(GENES)
    tokens = pickle.loads((tables(weights) / f"{TOKENS}{SUFFIX[name]}.pkl").read_bytes())
    special = [token for token in tokens if token.startswith("<")]
    assert special == (["<pad>", "<mask>"] if name == "geneformer-v1" else ["<pad>", "<mask>", "<cls>", "<eos>"])
    change(tables(weights) / f"{MEDIANS}{SUFFIX[name]}.pkl", lambda own: {**dict.fromkeys(special, 1.0), **own})
    adata = make_adata(genes=[*GENES, *special[:2]])
    made, record = embed(TINY[name], weights, adata, tmp_path / "run")
    assert record["genes"]["matched_columns"] == len(GENES)
    np.testing.assert_array_equal(made, wanted)


def test_tokens_are_rows_of_the_model(name: str, weights: Path, tmp_path: Path) -> None:
    path = tables(weights) / f"{TOKENS}{SUFFIX[name]}.pkl"
    first = next(token for token in pickle.loads(path.read_bytes()) if not token.startswith("<"))
    for number in (-1, 3000):
        whole = path.read_bytes()
        change(path, lambda own, number=number: {**own, first: number})
        with pytest.raises(InputError, match=f"tokens from .*{number:,}.* do not fit the model"):
            run(name, weights, tmp_path)
        path.write_bytes(whole)


def test_the_dictionaries_of_v1(data_dir: Path, tmp_path: Path) -> None:
    """Those that were published, under their old names and under the present ones."""
    assets = data_dir / "model_assets" / "geneformer"
    if not assets.is_dir():
        pytest.skip("no assets of models")
    (tmp_path / "config.json").write_text((assets / "config_6L_30M.json").read_text())
    (tmp_path / "model.safetensors").touch()
    kinds = (TOKENS, MEDIANS, "gene_name_id_dict")
    found = []
    for suffix in ("", "_gc30M"):
        for kind in kinds:
            shutil.copyfile(assets / f"{kind}.pkl", tmp_path / f"{kind}{suffix}.pkl")
        files = geneformer.find_files(tmp_path, "geneformer-v1")
        assert {path.name for path in files.dictionaries.values()} == {f"{kind}{suffix}.pkl" for kind in kinds}
        found.append(geneformer.load_vocabulary(files, version=1))
        assert len(found[-1].medians) == 25_424 and len(found[-1].tables["symbol"]) == 40_248
    assert found[0] == found[1]

    # Under the name of V2, with tokens that all have a median in them: known by their content.
    genes = list(found[0].medians)[:60]
    folder = tmp_path / "v2"
    TINY["geneformer-v2"].make(folder, genes)
    (folder / "geneformer" / "gene_name_id_dict_gc104M.pkl").unlink()  # ids have no other names
    path = folder / "geneformer" / f"{MEDIANS}_gc104M.pkl"
    files = geneformer.find_files(folder, "geneformer-v2-104m")
    assert len(geneformer.load_vocabulary(files, version=2).medians) == 60
    shutil.copyfile(assets / f"{MEDIANS}.pkl", path)
    with pytest.raises(InputError, match=rf"{MEDIANS}_gc104M.pkl: these are the medians of V1"):
        geneformer.load_vocabulary(files, version=2)


# Which of them are taken


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("kind", [TOKENS, MEDIANS])
def test_versions_are_not_mixed(name: str, weights: Path, tmp_path: Path, kind: str, which: int) -> None:
    """One of the two dictionaries under the suffix of another version."""
    own = SUFFIX[name]
    old = [suffix for suffix in ("", "_gc30M", "_gc95M", "_gc104M") if suffix != own][which]
    rename(weights, kind, own, old)
    with pytest.raises(InputError) as found:
        run(name, weights, tmp_path)
    other = MEDIANS if kind == TOKENS else TOKENS
    assert f"{kind}{own}.pkl is missing" in str(found.value)
    assert f"{other}{own}.pkl" in str(found.value) and f"{kind}{old}.pkl" in str(found.value)


@pytest.mark.parametrize("ending", ["pkl", "json"])
def test_dictionaries_of_two_folders(name: str, weights: Path, tmp_path: Path, ending: str) -> None:
    home = next(weights.rglob("config.json")).parent
    path = tables(weights) / f"{MEDIANS}{SUFFIX[name]}.pkl"
    table = pickle.loads(path.read_bytes())
    path.unlink()
    new = home / f"{MEDIANS}{SUFFIX[name]}.{ending}"
    new.write_bytes(pickle.dumps(table) if ending == "pkl" else json.dumps(table).encode())
    with pytest.raises(InputError, match="the dictionaries are in different folders") as found:
        run(name, weights, tmp_path)
    assert str(new) in str(found.value) and str(path.with_name(f"{TOKENS}{SUFFIX[name]}.pkl")) in str(found.value)


def test_tables_of_names_are_of_the_same_version(name: str, weights: Path, tmp_path: Path) -> None:
    """A table of another version is not read."""
    rename(weights, "gene_name_id_dict", SUFFIX[name], "_gc95M")
    rename(weights, "ensembl_mapping_dict", SUFFIX[name], "")
    home = next(weights.rglob("config.json")).parent
    model = {"geneformer-v1": "geneformer-v1", "geneformer-v2": "geneformer-v2-104m"}[name]
    assert set(geneformer.find_files(home, model).dictionaries) == {TOKENS, MEDIANS}


def test_whole_sets_of_several_versions(tmp_path: Path) -> None:
    """Each model takes its own, whatever else is there."""
    for name in SUFFIX:
        TINY[name].make(tmp_path / "weights", GENES)
    for path in sorted((tmp_path / "weights" / "geneformer").glob("*_gc104M.pkl")):
        for suffix in ("_gc95M", "_gc30M", ""):
            path.with_name(path.name.replace("_gc104M", suffix)).write_bytes(b"not a dictionary")
    for name in SUFFIX:
        _, record = run(name, tmp_path / "weights", tmp_path)
        assert record["warnings"] == []
    # Without those of its own version the next whole set is taken, and said to be of other models.
    for path in sorted((tmp_path / "weights" / "geneformer").glob("*_gc104M.pkl")):
        path.replace(path.with_name(path.name.replace("_gc104M", "_gc95M")))
    _, record = run("geneformer-v2", tmp_path / "weights", tmp_path)
    assert "dictionaries of 95 M cells belong to earlier models than geneformer-v2-104m" in record["warnings"][0]


def test_a_set_without_suffix(name: str, weights: Path, tmp_path: Path) -> None:
    """As in old copies of V1, and in copies that were renamed; JSON files as well."""
    wanted, _ = run(name, weights, tmp_path)
    rename(weights, "*", SUFFIX[name], "")
    np.testing.assert_array_equal(run(name, weights, tmp_path)[0], wanted)
    for path in sorted(tables(weights).glob("*.pkl")):
        table = {key: value if isinstance(value, str | float) else int(value)
                 for key, value in pickle.loads(path.read_bytes()).items()}  # fmt: skip
        path.with_suffix(".json").write_text(json.dumps(table))
        path.unlink()
    np.testing.assert_array_equal(run(name, weights, tmp_path)[0], wanted)
