"""Tensors that are no weights: every model names the file and the tensor, and nothing is computed with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_bad_checkpoints import ONE_OF_EACH, TINY, rewrite, run, tensor_file
from tiny_models import GENES, Tiny

from txeval.embed.checkpoints import check_keys, float_values, load_tensors, tensor_fault, tensor_shape
from txeval.embed.scvi_model import Architecture, ScVIModel, build
from txeval.errors import InputError

#: A tensor whose sizes are not read beforehand, and the one that the sizes of the model are read from.
TENSORS = {
    "geneformer-v1": ("bert.encoder.layer.0.output.dense.weight", "bert.embeddings.word_embeddings.weight"),
    "geneformer-v2-104m": ("bert.embeddings.LayerNorm.bias", "bert.embeddings.position_embeddings.weight"),
    "scgpt": ("value_encoder.norm.bias", "encoder.embedding.weight"),
    "scgpt-finetuned": ("decoder.fc.0.weight", "encoder.embedding.weight"),
    "uce-4l": ("decoder.1.1.bias", "pe_embedding.weight"),
    "uce-33l": ("encoder.2.weight", "pos_encoder.pe"),
    "cellplm": ("encoder.layers.0.norm1.weight", "embedder.feat_enc.emb"),
}
#: Kinds that a file of safetensors can hold as well.
PLAIN: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "int32": (lambda value: value.int(), "is int32, not float32"),
    "uint8": (lambda value: value.byte(), "is uint8, not float32"),
    "bool": (lambda value: value > 0, "is bool, not float32"),
    "complex": (lambda value: value.to(torch.complex64), "is complex64, not float32"),
    "float8": (lambda value: value.to(torch.float8_e4m3fn), "is float8_e4m3fn, not float32"),
    "nan": (lambda value: torch.full_like(value, torch.nan), "holds nan, which is not finite"),
    "one infinity": (lambda value: value.index_fill(0, torch.tensor(0), -torch.inf), "holds -inf, which is not finite"),
    "too large": (lambda value: value.double() * 1e300, "holds -?inf, which is not finite"),
    "number": (lambda value: torch.tensor(1.0), r"is (float32 )?\(\)"),
    "empty": (lambda value: value[:0], r"is (float32 )?\(0"),
    "one more dimension": (lambda value: value[None], r"is (float32 )?\(1, "),
}
TORCH = {
    "meta": (lambda value: value.to("meta"), "is without values"),
    "sparse": (lambda value: value.to_sparse(), "is sparse_coo, not dense"),
    "quantised": (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), r"is quantised \(qint8\)"),
}


@pytest.fixture(params=ONE_OF_EACH)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return TINY[request.param]


def test_tensors_that_are_no_weights(tiny: Tiny, tmp_path: Path) -> None:
    weights = tiny.make(tmp_path / "weights", GENES)
    path = tensor_file(weights)
    whole = path.read_bytes()
    kinds = PLAIN if path.suffix == ".safetensors" else {**PLAIN, **TORCH}
    plain, measured = TENSORS[tiny.name]
    for name in (plain, measured):
        for kind, (how, said) in kinds.items():
            if name == measured and kind not in ("int32", "nan", "number", "empty", "sparse"):
                continue
            path.write_bytes(whole)
            rewrite(path, lambda state, name=name, how=how: {**state, name: how(state[name])})
            with pytest.raises(InputError) as found:
                run(tiny, weights, tmp_path)
            assert re.search(rf"{re.escape(path.name)}: .*{re.escape(name)} {said}", str(found.value)), (
                kind,
                str(found.value),
            )


def test_what_does_not_matter(tiny: Tiny, tmp_path: Path) -> None:
    """How the numbers are stored: layout, storage, precision where it holds them; and tensors that are unused."""
    weights = tiny.make(tmp_path / "weights", GENES)
    path = tensor_file(weights)
    half = {}

    def to_half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        half.update({name: value.half() for name, value in state.items()})
        return {name: value.half().float() for name, value in state.items()}

    rewrite(path, to_half)
    wanted, _ = run(tiny, weights, tmp_path)
    stored: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "float16": lambda value: value.half(),
        "float64": lambda value: value.double(),
    }
    if path.suffix != ".safetensors":
        stored["transposed"] = lambda value: value.t().contiguous().t() if value.ndim == 2 else value
        stored["part of a storage"] = lambda value: torch.cat([value.flatten(), value.flatten()]).view(2, *value.shape)[
            1
        ]
        stored["parameter"] = lambda value: torch.nn.Parameter(value)
    for kind, how in stored.items():
        rewrite(path, lambda _, how=how: {name: how(value.float()) for name, value in half.items()})
        values, _ = run(tiny, weights, tmp_path)
        np.testing.assert_array_equal(values, wanted, err_msg=kind)
    foreign = {"somebody.elses.head": torch.zeros(1, dtype=torch.int32)}
    rewrite(path, lambda _: {**{name: value.float() for name, value in half.items()}, **foreign})
    values, record = run(tiny, weights, tmp_path)
    np.testing.assert_array_equal(values, wanted)
    assert record["weights"]["tensors"]["unexpected"] == list(foreign)


def test_bfloat16_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    value = torch.randn(4, 3)
    torch.save({"a": value.bfloat16()}, path)
    state = load_tensors(path)
    check_keys(state, {"a": (4, 3)}, path=path)
    found = float_values(state["a"], "a", path=path)
    assert found.dtype == torch.float32 and torch.equal(found, value.bfloat16().float())


def test_several_faults_at_once() -> None:
    state = {"a.w": torch.zeros(2), "a.x": torch.zeros(2).int(), "a.y": torch.zeros(3), "a.z": torch.zeros(1)}
    with pytest.raises(InputError) as found:
        check_keys(state, {"a.v": (2,), "a.w": (2,), "a.x": (2,), "a.y": (2,)}, path=Path("file"))
    assert (
        "tensors 1 missing: a.v; 1 of another kind: a.x is int32, not float32; "
        "1 of another shape: a.y is float32 (3,), not (2,); 1 unexpected: a.z" in str(found.value)
    )


def test_the_parts_of_the_check() -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    assert tensor_fault(nested) == "is nested, not dense"
    assert tensor_fault(torch.tensor(3), integer=True) == "" and tensor_fault(torch.tensor(3.0), integer=True)
    assert tensor_shape({"a": torch.zeros(2, 3)}, "a", 2, path=Path("file")) == (2, 3)
    for state in ({}, {"a": nested}, {"a": torch.zeros(2)}, {"a": torch.zeros(0, 3)}):
        with pytest.raises(InputError, match="file: these are not the weights of this model; tensor a is"):
            tensor_shape(state, "a", 2, path=Path("file"))
    # A value anywhere in a large tensor is seen.
    large = torch.zeros((1 << 24) + 5)
    assert float_values(large, "a", path=Path("file")) is not None
    large[-1] = torch.nan
    with pytest.raises(InputError, match="tensor a holds nan"):
        float_values(large, "a", path=Path("file"))


def test_layers_of_uce_with_strange_names(tmp_path: Path) -> None:
    tiny = TINY["uce-4l-bool"]
    weights = tiny.make(tmp_path / "weights", GENES)
    path = tensor_file(weights)
    whole = path.read_bytes()
    for layer in ("x", "999999999", ""):
        path.write_bytes(whole)
        name = f"transformer_encoder.layers.{layer}"
        rewrite(path, lambda state, name=name: {**state, name: torch.zeros(1)})
        with pytest.raises(InputError, match=f"unexpected: {name}"):
            run(tiny, weights, tmp_path)


@pytest.mark.parametrize(
    ("model", "file", "changes"),
    [
        ("geneformer-v1", "config.json", {"hidden_size": 15, "num_attention_heads": 0, "hidden_act": "none such",
                                          "num_hidden_layers": -1, "intermediate_size": "many"}),
        ("scgpt", "args.json", {"embsize": 17, "nheads": 0, "nlayers": -2, "d_hid": 0}),
        ("cellplm-argmax", "20230926_85M.config.json", {"enc_hid": None, "enc_layers": 0, "post_latent_dim": "x",
                                                        "num_clusters": 2.5, "enc_head": 0}),
    ],
)  # fmt: skip
def test_sizes_that_make_no_model(tmp_path: Path, model: str, file: str, changes: dict[str, Any]) -> None:
    weights = TINY[model].make(tmp_path / "weights", GENES)
    path = next(weights.rglob(file))
    whole = json.loads(path.read_text())
    for name, value in changes.items():
        path.write_text(json.dumps({**whole, name: value}))
        with pytest.raises(InputError, match=re.escape(file)):
            run(TINY[model], weights, tmp_path)


def test_tensors_of_scvi(tmp_path: Path) -> None:
    pytest.importorskip("scvi", reason="scvi-tools is an extra", exc_type=ImportError)
    from txeval.embed.checkpoints import file_digest

    architecture = Architecture(6, latent=3, hidden=4)
    model = ScVIModel(build(architecture), architecture, "counts", tuple("abcdef"))
    model.save(tmp_path)
    path, record = tmp_path / "weights.npz", tmp_path / "model.json"
    whole = dict(np.load(path))
    text, digest = record.read_text(), file_digest(path)
    name = next(name for name, value in whole.items() if value.dtype == np.float32 and value.ndim == 2)
    counter = next(name for name, value in whole.items() if value.dtype.kind == "i")
    value = whole[name]
    bad = {
        "int32": ({name: value.astype(np.int32)}, name, "is int32, not float32"),
        "complex": ({name: value.astype(complex)}, name, "is complex128, not float32"),
        "bool": ({name: value > 0}, name, "is bool, not float32"),
        "text": ({name: value.astype(str)}, name, "is <U32, not numbers"),
        "nan": ({name: value * np.nan}, name, "holds nan, which is not finite"),
        "shape": ({name: value.T}, name, "not"),
        "counter": ({counter: np.float32(3)}, counter, "is float32, not int64"),
    }
    for kind, (changed, named, said) in bad.items():
        np.savez(path, **{**whole, **changed})
        record.write_text(text.replace(digest, file_digest(path)))
        with pytest.raises(InputError) as found:
            ScVIModel.load(tmp_path)
        assert f"{path}: tensor {named}" in str(found.value) and said in str(found.value), (kind, str(found.value))
    np.savez(path, **{**whole, name: value.astype(np.float64)})
    record.write_text(text.replace(digest, file_digest(path)))
    loaded = ScVIModel.load(tmp_path).module.state_dict()
    assert all(torch.equal(loaded[key], torch.from_numpy(whole[key])) for key in whole)
