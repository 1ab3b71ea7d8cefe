"""Every bad checkpoint says what is wrong with it, and none can run anything."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import GENES, MODELS, Tiny, embed, make_adata

from txeval.embed.checkpoints import (
    UNTRAINED,
    check_keys,
    find_file,
    load_json,
    load_safe_pickle,
    load_table,
    load_tensors,
    weights_folder,
)
from txeval.errors import InputError

ONE_OF_EACH = ["geneformer-v1", "geneformer-v2", "scgpt", "scgpt-finetuned", "uce-4l-bool", "uce-33l", "cellplm-argmax"]
TINY = {tiny.id: tiny for tiny in MODELS if tiny.id in ONE_OF_EACH}


@pytest.fixture(params=ONE_OF_EACH)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return TINY[request.param]


@pytest.fixture
def weights(tiny: Tiny, tmp_path: Path) -> Path:
    return tiny.make(tmp_path / "weights", GENES)


def tensor_file(folder: Path) -> Path:
    return next(
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".pt", ".torch", ".ckpt", ".safetensors") and path.parent.name != "protein_embeddings"
    )


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, Any]]) -> None:
    """Change the state dict in a file."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file, save_file

        state = {name: value.clone() for name, value in load_file(path).items()}
        save_file(change(state), path)
        return
    found = torch.load(path, weights_only=True)
    if "model_state_dict" in found:
        torch.save({**found, "model_state_dict": change(found["model_state_dict"])}, path)
    else:
        torch.save(change(found), path)


def run(tiny: Tiny, weights: Path, tmp_path: Path) -> Any:
    return embed(tiny, weights, make_adata(), tmp_path / "run")


def test_every_missing_file_is_named(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    files = [path for path in sorted(weights.rglob("*")) if path.is_file() and path.name != UNTRAINED]
    optional = ("gene_name_id_dict", "ensembl_mapping_dict")  # symbols and retired ids are then not known
    unread = ("Mus_musculus",)
    for path in files:
        kept = path.read_bytes()
        path.unlink()
        if path.name.startswith(unread) or path.name.startswith("ensembl_mapping_dict"):
            run(tiny, weights, tmp_path)
        elif path.name.startswith(optional):
            with pytest.raises(InputError, match="knows 0 of the 42 genes"):
                run(tiny, weights, tmp_path)
        else:
            with pytest.raises(InputError) as found:
                run(tiny, weights, tmp_path)
            assert str(weights) in str(found.value)
            known_by = next(
                (name for name in ("config.json", "best.ckpt", "gene_symbol_to_embedding") if name in path.name),
                path.name.split("_gc")[0],
            )
            assert known_by in str(found.value)
        path.write_bytes(kept)
    run(tiny, weights, tmp_path)


def test_every_truncated_file_is_named(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    for path in [path for path in sorted(weights.rglob("*")) if path.is_file() and path.name != UNTRAINED]:
        if path.name.startswith("Mus_musculus"):
            continue
        whole = path.read_bytes()
        for share in (0.0, 0.3, 0.9, 0.999):
            path.write_bytes(whole[: int(len(whole) * share)])
            if path.suffix == ".csv" and share > 0.5:
                # A text table may end anywhere; that shows in the genes that are not found.
                continue
            with pytest.raises(InputError) as found:
                run(tiny, weights, tmp_path)
            assert path.name in str(found.value), (path.name, share, str(found.value))
        path.write_bytes(whole)
    run(tiny, weights, tmp_path)


def test_missing_unexpected_and_misshapen_tensors(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    path = tensor_file(weights)
    whole = path.read_bytes()
    encoder = {
        "geneformer-v1": "bert.encoder.layer.1.attention.self.key.bias",
        "geneformer-v2-104m": "bert.encoder.layer.2.output.LayerNorm.weight",
        "scgpt": "transformer_encoder.layers.1.norm1.bias",
        "scgpt-finetuned": "decoder.fc.2.weight",
        "uce-4l": "transformer_encoder.layers.0.self_attn.in_proj_weight",
        "uce-33l": "pos_encoder.pe",
        "cellplm": "encoder.layers.1.self_attn.query_projection.weight",
    }[tiny.name]

    def without(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in state.items() if name != encoder}

    rewrite(path, without)
    with pytest.raises(InputError, match=f"1 missing: {encoder}"):
        run(tiny, weights, tmp_path)
    path.write_bytes(whole)
    rewrite(path, lambda state: {**state, encoder: torch.cat([state[encoder], state[encoder]])})
    if encoder != "pos_encoder.pe":  # which may be of any length
        with pytest.raises(InputError, match=f"of another shape: {encoder} is"):
            run(tiny, weights, tmp_path)
    path.write_bytes(whole)
    extra = f"{encoder.split('.')[0]}.layers.77.extra"
    rewrite(path, lambda state: {**state, extra: torch.zeros(1)})
    with pytest.raises(InputError, match=f"1 unexpected: {extra}"):
        run(tiny, weights, tmp_path)
    path.write_bytes(whole)
    rewrite(path, lambda state: {**state, "somebody.elses.head": torch.zeros(1)})
    _, record = run(tiny, weights, tmp_path)
    assert record["weights"]["tensors"]["unexpected"] == ["somebody.elses.head"]


def test_vocabulary_of_another_model(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    other = tiny.make(tmp_path / "other", [*GENES, "MORE1", "MORE2"])
    table = {
        "geneformer-v1": "token_dictionary_gc30M.pkl",
        "geneformer-v2-104m": "token_dictionary_gc104M.pkl",
        "scgpt": "vocab.json",
        "scgpt-finetuned": "vocab.json",
        "cellplm": "20230926_85M.config.json",
        "uce-4l": "species_offsets.pkl",
        "uce-33l": "species_offsets.pkl",
    }[tiny.name]
    ours, theirs = (next(folder.rglob(table)) for folder in (weights, other))
    if tiny.name.startswith("uce"):
        ours.write_bytes(pickle.dumps({"human": 143_574, "mouse": 4}))
        message = r"do not reach to the gene with token 143,613"
    else:
        shutil.copyfile(theirs, ours)
        message = "|".join(["do not fit the model", "embeddings of .* tokens, but", "embeddings of .* genes, but"])
    with pytest.raises(InputError, match=message):
        run(tiny, weights, tmp_path)


def test_another_version(tmp_path: Path) -> None:
    """The files of one version under the name of another, and of one size under the settings of another."""
    v1, v2 = TINY["geneformer-v1"], TINY["geneformer-v2"]
    v1.make(tmp_path / "v1", GENES)
    v2.make(tmp_path / "v2", GENES)
    with pytest.raises(InputError, match=r"Geneformer-V1-10M of geneformer-v1 is missing; models there: Geneformer-V2"):
        run(v1, tmp_path / "v2", tmp_path)
    # Straight into the folder of the model.
    run(v1, tmp_path / "v1" / "Geneformer-V1-10M", tmp_path)
    with pytest.raises(InputError, match=r"token_dictionary_gc30M.pkl is missing"):
        run(v1, tmp_path / "v2" / "Geneformer-V2-104M", tmp_path)
    for path in sorted((tmp_path / "v2" / "geneformer").glob("*.pkl")):
        path.rename(path.with_name(path.name.replace("_gc104M", "")))
    with pytest.raises(InputError, match=r"tokens of Geneformer V2 \(with <cls> and <eos>\), not of V1"):
        run(v1, tmp_path / "v2" / "Geneformer-V2-104M", tmp_path)
    config = tmp_path / "v1" / "Geneformer-V1-10M" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 2}))
    with pytest.raises(InputError, match=r"unexpected: bert\.encoder\.layer\.2"):
        run(v1, tmp_path / "v1", tmp_path)
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3, "model_type": "gpt2"}))
    with pytest.raises(InputError, match="no configuration of a BERT model"):
        run(v1, tmp_path / "v1", tmp_path)

    scgpt = TINY["scgpt"]
    folder = scgpt.make(tmp_path / "scgpt", GENES)
    args = json.loads((folder / "args.json").read_text())
    for change, message in (
        ({"nlayers": 12}, "missing: transformer_encoder.layers.2"),
        ({"nlayers": 1}, "unexpected: transformer_encoder.layers.1"),
        ({"embsize": 512}, "of another shape: encoder.embedding.weight"),
        ({"input_emb_style": "category"}, "input_emb_style is 'category'"),
        ({"embsize": None}, "embsize is None"),
    ):
        (folder / "args.json").write_text(json.dumps({**args, **change}))
        with pytest.raises(InputError, match=message):
            run(scgpt, folder, tmp_path)

    uce = TINY["uce-4l-bool"]
    uce.make(tmp_path / "uce", GENES)
    with pytest.raises(InputError, match=r"33l_8ep_1024t_1280.torch.*\n.*4layer_model.torch"):
        run(TINY["uce-33l"], tmp_path / "uce", tmp_path)
    torch.save({"encoder.embedding.weight": torch.zeros(2, 2)}, tmp_path / "uce" / "4layer_model.torch")
    with pytest.raises(InputError, match=r"no checkpoint of UCE; it holds, for example, encoder.embedding.weight"):
        run(uce, tmp_path / "uce", tmp_path)

    cellplm = TINY["cellplm-argmax"]
    folder = cellplm.make(tmp_path / "cellplm", GENES)
    path = folder / "20230926_85M.config.json"
    config_now = json.loads(path.read_text())
    for change, message in (
        ({"latent_mod": "vae"}, "latent_mod is 'vae'"),
        ({"enc_layers": 4}, "missing: encoder.layers.2"),
        ({"num_clusters": 16}, "of another shape: latent"),
        ({"gene_list": None}, "no list of genes"),
    ):
        path.write_text(json.dumps({**config_now, **change}))
        with pytest.raises(InputError, match=message):
            run(cellplm, folder, tmp_path)
    path.write_text(json.dumps(config_now))
    shutil.copyfile(path, folder / "20231027_85M.config.json")
    with pytest.raises(InputError, match=r"several files could be the configuration.*20230926_85M.*20231027_85M"):
        run(cellplm, folder, tmp_path)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TINY["geneformer-v1"]
    folder = tiny.make(tmp_path / "weights", GENES)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="Geneformer needs the package transformers") as found:
        run(tiny, folder, tmp_path)
    assert "pip install txeval[geneformer]" in str(found.value)


def test_species_of_uce(tmp_path: Path) -> None:
    tiny = TINY["uce-4l-bool"]
    folder = tiny.make(tmp_path / "uce", GENES)
    with pytest.raises(InputError, match="protein embeddings of zebrafish is missing"):
        embed(tiny, folder, make_adata(), tmp_path / "run", species="zebrafish")
    (folder / "protein_embeddings" / "Danio_rerio.x.gene_symbol_to_embedding_ESM2.pt").write_bytes(
        next(folder.rglob("Homo*")).read_bytes()
    )
    with pytest.raises(InputError, match="no species called 'zebrafish'"):
        embed(tiny, folder, make_adata(), tmp_path / "run", species="zebrafish")
    with pytest.raises(InputError, match="knows 0 of the 42 genes"):
        embed(tiny, folder, make_adata(), tmp_path / "run", species="mouse")


# ---------------------------------------------------------------------------------------------------
# files that want to run something


class Runs:
    """Unpickled, it creates a file."""

    def __init__(self, mark: Path, call: Callable[..., Any] = os.system) -> None:
        self.mark = mark
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, (f"touch {self.mark}",)


def hostile_files(mark: Path) -> dict[str, bytes]:
    """Pickles that run something when read without protection, in several spellings."""
    by_protocol = {f"protocol {protocol}": pickle.dumps({"a": Runs(mark)}, protocol) for protocol in range(6)}
    evaluated = pickle.dumps({"a": Runs(mark, eval)})
    return {
        **by_protocol,
        "eval": evaluated,
        "as a key": pickle.dumps({Runs(mark): 1}),
        "in a list": pickle.dumps([1, [Runs(mark)]]),
        "build": b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.",
        "inst": b"(S'touch " + str(mark).encode() + b"'\niposix\nsystem\n.",
        "numpy's own loader": b"cnumpy\nload\n(S'x'\ntR.",
        "attribute of numpy": b"cnumpy.core.multiarray\nfromfile\n(S'/etc/passwd'\ntR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x12dtype.__reduce_ex__\x93)R.",
        "object scalar": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'abcdefgh'\ntR.",
        "persistent": b"Pposix.system\n.",
        "extension": b"\x82\x01.",
    }


def test_hostile_pickles_are_refused_and_run_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name, data in hostile_files(mark).items():
        path = tmp_path / "table.pkl"
        path.write_bytes(data)
        with pytest.raises(InputError) as found:
            load_safe_pickle(path)
        assert str(path) in str(found.value), name
        assert not mark.exists(), name
    # The test would notice: without protection the first of them does run.
    pickle.loads(hostile_files(mark)["protocol 4"])
    assert mark.exists()


@pytest.mark.parametrize("layout", ["zip", "legacy", "bare pickle"])
def test_hostile_checkpoints_are_refused_and_run_nothing(tmp_path: Path, layout: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "model.pt"
    content = {"weight": torch.zeros(2), "extra": Runs(mark)}
    if layout == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(InputError) as found:
        load_tensors(path)
    assert str(path) in str(found.value)
    assert "weights_only" not in str(found.value)  # torch's advice to read it without protection is not passed on
    if layout != "bare pickle":
        assert "system" in str(found.value)
    assert not mark.exists()
    torch.load(path, weights_only=False) if layout != "bare pickle" else pickle.loads(path.read_bytes())
    assert mark.exists()


def test_hostile_files_in_the_place_of_every_file(tiny: Tiny, weights: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for path in [path for path in sorted(weights.rglob("*")) if path.is_file() and path.name != UNTRAINED]:
        if path.name.startswith("Mus_musculus"):
            continue
        whole = path.read_bytes()
        if path.suffix == ".pkl":
            path.write_bytes(pickle.dumps({"a": Runs(mark)}))
        elif path.suffix in (".pt", ".ckpt", ".torch"):
            torch.save({"model_state_dict": Runs(mark)}, path)
        else:
            path.write_bytes(pickle.dumps(Runs(mark)))
        with pytest.raises(InputError) as found:
            run(tiny, weights, tmp_path)
        assert path.name in str(found.value)
        assert not mark.exists()
        path.write_bytes(whole)


# ---------------------------------------------------------------------------------------------------
# what may be read


def test_tables_of_numpy_numbers(tmp_path: Path) -> None:
    path = tmp_path / "table.pkl"
    for kind in (np.float64, np.float32, np.float16, np.int16, np.int64, np.uint8):
        table = {"a": kind(3), "b": kind(7)}
        for protocol in range(2, 6):
            path.write_bytes(pickle.dumps(table, protocol))
            # Written by numpy before version 2, the module has another name.
            for old, new in ((b"", b""), (b"numpy._core.multiarray", b"numpy.core.multiarray")):
                if protocol < 4 or not old:
                    path.write_bytes(pickle.dumps(table, protocol).replace(old, new) if old else path.read_bytes())
                assert load_table(path, float) == {"a": 3.0, "b": 7.0}
    path.write_bytes(pickle.dumps({"x": np.array(2.5, ">f8")[()], "y": 2}))
    assert load_table(path, float) == {"x": 2.5, "y": 2.0}


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ([1, 2], int, "not a dictionary but list"),
        ({}, int, "not a dictionary"),
        ({"a": "b"}, int, "'a': 'b' is not a name with a value of type int"),
        ({"a": 1.5}, int, "of type int"),
        ({"a": True}, int, "of type int"),
        ({1: 2}, int, "the entry 1"),
        ({"a": 1}, str, "of type str"),
    ],
)
def test_tables_of_something_else(tmp_path: Path, content: Any, kind: Any, message: str) -> None:
    path = tmp_path / "table.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=message):
        load_table(path, kind)


def test_json_tables(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text('{"a": 1, "b": 2}')
    assert load_table(path, int) == {"a": 1, "b": 2}
    path.write_text('{"a": 1, "b"')
    with pytest.raises(InputError, match="not a whole JSON file"):
        load_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a whole JSON file"):
        load_json(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_json(tmp_path / "none.json")


def test_state_dicts(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    state = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.float16)}
    for legacy in (False, True):
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        assert all(torch.equal(load_tensors(path)[name], value) for name, value in state.items())
    # A checkpoint may also hold the last loss as a number of numpy.
    torch.save({"epoch": 3, "loss": np.float64(0.5), "model_state_dict": state}, path)
    assert set(load_tensors(path, inside=("model_state_dict",))) == {"a", "b"}
    with pytest.raises(InputError, match=r"not a state dict .* 'epoch', 'loss'"):
        load_tensors(path)
    torch.save(torch.zeros(2), path)
    with pytest.raises(InputError, match=r"not a state dict .* but Tensor"):
        load_tensors(path)


def test_a_zip_bomb_of_another_kind_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("somewhere/else.txt", "hello")
    with pytest.raises(InputError, match="not a whole checkpoint"):
        load_tensors(path)
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_tensors(path)


def test_check_keys_reports() -> None:
    state = {"a.weight": torch.zeros(2), "head.x": torch.zeros(1), "foreign": torch.zeros(1)}
    report = check_keys(state, {"a.weight": (2,)}, path=Path("file"), unused=["head.*"])
    assert report.plain() == {"loaded": 1, "missing": [], "unexpected": ["foreign"], "unused": ["head"]}


def test_folders(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="is a file, not a folder"):
        weights_folder(str(file), "model", "somewhere")
    with pytest.raises(InputError, match=r"the weights is missing: looked for a.pt or b.pt") as found:
        find_file(tmp_path, ["a.pt", "b.pt"], "the weights")
    assert "the folder holds: file" in str(found.value)
