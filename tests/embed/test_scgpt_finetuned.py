"""Fine-tuning of scGPT: it learns, on the train split only, and can be interrupted."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import GENES, MODELS, embed, make_adata, make_counts

from txeval.embed import scgpt, scgpt_finetuned
from txeval.errors import InputError

TINY = next(tiny for tiny in MODELS if tiny.id == "scgpt-finetuned")
TRAIN = np.arange(0, 30, 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY.make(tmp_path_factory.mktemp("weights"), GENES)


def structured(n: int = 30) -> np.ndarray:
    """Counts whose genes go together, so that there is something to learn."""
    rng = np.random.default_rng(0)
    factor = np.repeat(np.exp(rng.normal(0, 1.5, (n, 4))), [10, 10, 10, 12], axis=1)
    x = rng.poisson(5 * factor).astype(np.float32)
    x[:, -1] += 1
    return x


def run(weights: Path, folder: Path, x: np.ndarray | None = None, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    rows = options.pop("train_rows", TRAIN)
    return embed(TINY, weights, make_adata(structured() if x is None else x), folder, train_rows=rows, **options)


def test_the_defaults_are_the_papers() -> None:
    defaults = {name: default for name, (default, _) in scgpt_finetuned.FinetunedScGPT.info.options.items()}
    assert {name: defaults[name] for name in ("max_length", "n_hvg", "epochs", "train_batch_size", "decay")} == {
        "max_length": 1536,
        "n_hvg": 5000,
        "epochs": 15,
        "train_batch_size": 32,
        "decay": 0.9,
    }
    assert (defaults["learning_rate"], defaults["mask_ratio"], defaults["clip"]) == (1e-5, 0.4, 1.0)
    assert scgpt_finetuned.Training() == scgpt_finetuned.Training(15, 32, 1e-5, 0.9, 0.4, 1.0, 0.1)


def test_it_learns(weights: Path, tmp_path: Path) -> None:
    _, record = run(weights, tmp_path, epochs=12, dropout=0.0, learning_rate=3e-3, decay=1.0, valid_fraction=0.2)
    history = record["history"]
    assert len(history["train"]) == len(history["valid"]) == 12
    assert history["train"][-1] < 0.8 * history["train"][0]
    assert history["valid"][history["best"]] == min(history["valid"])
    assert history["valid"][history["best"]] < history["valid"][0]


def test_only_the_train_split_is_learned_from(weights: Path, tmp_path: Path) -> None:
    x = structured()
    values, record = run(weights, tmp_path / "a", x)
    assert record["trained_on"] == len(TRAIN)
    changed = x.copy()
    others = np.setdiff1d(np.arange(30), TRAIN)
    changed[others] = np.random.default_rng(3).permuted(changed[others], axis=1)
    again, _ = run(weights, tmp_path / "b", changed)
    assert np.array_equal(values[TRAIN], again[TRAIN])
    assert not np.allclose(values[others], again[others])
    whole, record = run(weights, tmp_path / "c", x, train_rows=None)
    assert record["trained_on"] == 30
    assert "no train split" in record["trained_on_note"]
    assert not np.allclose(values, whole)


def test_variable_genes_are_chosen_on_the_train_split(weights: Path, tmp_path: Path) -> None:
    values, record = run(weights, tmp_path / "a", n_hvg=15)
    assert record["variable_genes"] == 15
    everything, record = run(weights, tmp_path / "b", n_hvg=0)
    assert record["variable_genes"] == len(GENES)
    assert not np.allclose(values, everything)
    silent = structured()
    silent[TRAIN, 30:40] = 0
    _, record = run(weights, tmp_path / "c", silent, n_hvg=15)
    assert record["variable_genes"] == 15


def test_an_interrupted_training_goes_on_to_the_same_result(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, record = run(weights, tmp_path / "whole", epochs=4)
    step, done = scgpt_finetuned.train_step, []

    def killed(*given: Any, **named: Any) -> tuple[float, float]:
        done.append(1)
        if len(done) == 6:  # in the third epoch, of two steps each
            raise KeyboardInterrupt
        return step(*given, **named)

    monkeypatch.setattr(scgpt_finetuned, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(weights, tmp_path / "killed", epochs=4)
    kept = list((tmp_path / "killed").rglob("training-*.pt"))
    assert len(kept) == 1
    steps = []
    monkeypatch.setattr(scgpt_finetuned, "train_step", lambda *given, **named: steps.append(1) or step(*given, **named))
    made, again = run(weights, tmp_path / "killed", epochs=4)
    assert len(steps) == 4
    assert np.array_equal(made, wanted)
    assert again["history"]["train"] == record["history"]["train"]
    assert not kept[0].exists()
    # A second call finds the trained model.
    steps.clear()
    repeated, _ = run(weights, tmp_path / "killed", epochs=4)
    assert not steps
    assert np.array_equal(repeated, wanted)
    run(weights, tmp_path / "killed", epochs=3)
    assert steps


def test_the_trained_model_is_a_checkpoint_of_scgpt(weights: Path, tmp_path: Path) -> None:
    values, record = run(weights, tmp_path / "a", save=str(tmp_path / "kept"))
    folder = tmp_path / "kept" / "seed-0"
    assert record["trained_model"] == str(folder)
    files = scgpt.find_files(folder)
    settings, vocabulary = scgpt.load_settings(files), scgpt.load_vocabulary(files)
    trained, _ = scgpt.load_model(files, settings, vocabulary, decoder=True)
    before, _ = scgpt.load_model(scgpt.find_files(weights), settings, vocabulary, decoder=True)
    moved = [
        not torch.equal(a, b) for a, b in zip(trained.state_dict().values(), before.state_dict().values(), strict=True)
    ]
    assert all(moved)
    zero_shot = next(tiny for tiny in MODELS if tiny.id == "scgpt")
    embed(zero_shot, folder, make_adata(), tmp_path / "b")
    assert json.loads((folder / "finetuning.json").read_text())["settings"]["learning_rate"] == 1e-3
    again, _ = run(weights, tmp_path / "c", save=str(tmp_path / "kept"))
    assert np.array_equal(values, again)
    with pytest.raises(InputError, match="trained with other data or settings"):
        run(weights, tmp_path / "d", save=str(tmp_path / "kept"), decay=0.5)


@pytest.mark.parametrize("options", [{}, {"n_hvg": 15, "max_length": 9, "include_zeros": True}])
def test_a_saved_model_embeds_as_it_was_trained(weights: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    values, record = run(weights, tmp_path / "a", save=str(tmp_path / "kept"), **options)
    kept = tmp_path / "kept" / "seed-0"
    shutil.rmtree(tmp_path / "a")
    again, told = reload(kept, tmp_path / "b")
    assert np.array_equal(values, again)
    assert told["history"] == record["history"] and told["trained_on"] == len(TRAIN)
    assert told["variable_genes"] == record["variable_genes"] and told["trained_model"] == str(kept)
    # On another screen the genes that it was trained on are read, wherever they stand.
    turned = make_adata(structured())[:, ::-1].copy()
    other, told = reload(kept, tmp_path / "c", turned)
    assert told["variable_genes"] == record["variable_genes"]
    assert other.shape == values.shape
    genes = json.loads((kept / "finetuning.json").read_text())["genes"]
    few = make_adata(structured())[:, [name not in genes[: len(genes) // 2 + 1] for name in turned.var_names[::-1]]]
    with pytest.raises(InputError, match=f"of the {len(genes)} genes that the model in .* was trained on"):
        reload(kept, tmp_path / "d", few.copy(), min_gene_overlap=0.6)


def reload(model: Path, folder: Path, adata: Any = None, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    plain = dataclasses.replace(TINY, options={})
    adata = make_adata(structured()) if adata is None else adata
    return embed(plain, None, adata, folder, train_rows=TRAIN[:5], model=str(model), **options)


def test_models_that_cannot_be_reloaded(weights: Path, tmp_path: Path) -> None:
    run(weights, tmp_path / "a", save=str(tmp_path / "kept"))
    kept = tmp_path / "kept" / "seed-0"
    with pytest.raises(InputError, match=r"epochs, save would have no effect: the model is trained already"):
        reload(kept, tmp_path / "b", epochs=3, save="elsewhere")
    record = kept / "finetuning.json"
    content = json.loads(record.read_text())
    for broken in ({**content, "genes": None}, {**content, "genes": [1]}, {**content, "max_length": "x"}, [1]):
        record.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"finetuning.json: "):
            reload(kept, tmp_path / "b")
    record.write_text(json.dumps(content))
    state = torch.load(kept / "best_model.pt", weights_only=True)
    torch.save({**state, "decoder.fc.0.bias": torch.zeros(16).int()}, kept / "best_model.pt")
    for load in (
        lambda: reload(kept, tmp_path / "b"),
        lambda: run(weights, tmp_path / "c", save=str(tmp_path / "kept")),
    ):
        with pytest.raises(InputError, match=r"best_model.pt: .*decoder.fc.0.bias is int32, not float32"):
            load()
    record.unlink()
    with pytest.raises(InputError, match=r"finetuning.json is missing, so this is no model that txeval fine-tuned"):
        reload(kept, tmp_path / "b")


def test_places_to_save_in_are_checked_before_the_training(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scgpt_finetuned, "train_step", lambda *given, **named: pytest.fail("training began"))
    (tmp_path / "file").write_text("mine")
    for place, said in (("file", "is a file"), ("file/below", "cannot write"), ("/proc/nowhere", "cannot write")):
        with pytest.raises(InputError, match=said):
            run(weights, tmp_path / "a", save=str(tmp_path / place))
    # Weights of somebody else are not written over.
    shutil.copytree(weights, tmp_path / "kept" / "seed-0")
    with pytest.raises(InputError, match=r"holds a best_model.pt that is not of this training"):
        run(weights, tmp_path / "b", save=str(tmp_path / "kept"))


def test_a_damaged_state_of_a_training(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, done = scgpt_finetuned.train_step, []

    def killed(*given: Any, **named: Any) -> tuple[float, float]:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return step(*given, **named)

    monkeypatch.setattr(scgpt_finetuned, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(weights, tmp_path / "a")
    [state] = (tmp_path / "a").rglob("training-*.pt")
    whole = state.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"x" * 100):
        state.write_bytes(content)
        with pytest.raises(InputError, match=rf"{state.name}: not a whole state of a training") as found:
            run(weights, tmp_path / "a")
        assert "remove it" in found.value.remedy


def test_unexpressed_genes_can_be_tokens(weights: Path, tmp_path: Path) -> None:
    x = make_counts()
    values, record = run(weights, tmp_path / "a", x)
    with_zeros, other = run(weights, tmp_path / "b", x, include_zeros=True)
    assert not np.allclose(values, with_zeros)
    # A sample without known genes stays unusable: its tokens would say nothing but zero.
    assert record["unusable"]["rows"] == other["unusable"]["rows"] == [4]
    assert not with_zeros[4].any()


def test_a_part_of_the_train_split(weights: Path, tmp_path: Path) -> None:
    _, record = run(weights, tmp_path / "a", max_train=6)
    assert record["trained_on"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"valid_fraction": -0.1}, "valid_fraction is -0.1"),
        ({"max_length": 1}, "max_length is 1"),
        ({"train_rows": np.array([3])}, "the train split has 1 samples"),
    ],
)
def test_options(weights: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(weights, tmp_path, **options)


def test_masking_spares_nothing_and_repeats() -> None:
    values = np.arange(1, 101, dtype=np.int16)
    first = [scgpt_finetuned.mask_values(values, np.random.default_rng(seed)) for seed in range(200)]
    assert all((made == -1).sum() == 40 for made in first)
    share = np.mean([made == -1 for made in first], axis=0)
    assert share[0] > 0.2  # <cls> is masked like the others
    assert np.abs(share - 0.4).max() < 0.2
    assert np.array_equal(first[7], scgpt_finetuned.mask_values(values, np.random.default_rng(7)))


def test_loss_and_gradient_do_not_depend_on_micro_batches(weights: Path) -> None:
    files = scgpt.find_files(weights)
    settings, vocabulary = scgpt.load_settings(files), scgpt.load_vocabulary(files)
    rng = np.random.default_rng(0)
    items = []
    for size in (3, 9, 5, 12, 7):
        tokens = np.concatenate([[vocabulary["<cls>"]], rng.permutation(40)[:size]]).astype(np.int32)
        values = np.concatenate([[0], rng.integers(1, 51, size)]).astype(np.int16)
        items.append((tokens, scgpt_finetuned.mask_values(values, rng), values))
    batch = scgpt_finetuned.make_batch(items, pad_token=vocabulary["<pad>"])
    found = []
    for micro in (0, 1, 2):
        model, _ = scgpt.load_model(files, settings, vocabulary, decoder=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        loss, norm = scgpt_finetuned.train_step(model, optimizer, batch, clip=1e9, micro_batch=micro)
        found.append((loss, norm, *(parameter.grad.clone() for parameter in model.parameters())))
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0], rel=1e-6)
        assert other[1] == pytest.approx(found[0][1], rel=1e-5)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found[0][2:], other[2:], strict=True))
