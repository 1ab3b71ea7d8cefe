"""scGPT, zero-shot and fine-tuning, against the answers of the official code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_embedders import Golden, check_embedding, load, roles, written

from txeval.compute.random import stream
from txeval.data import open_screen
from txeval.embed import scgpt, scgpt_finetuned
from txeval.embed.base import EmbeddingContext

RUNS = ["full", "short", "distinct"]


class Recorded:
    """Stands for a generator: gives the numbers that the official code drew."""

    def __init__(self, uniform: np.ndarray, order: np.ndarray | None = None) -> None:
        self.uniform = uniform
        self.order = order

    def random(self, size: int) -> np.ndarray:
        assert size == len(self.uniform)
        return self.uniform

    def permutation(self, size: int) -> np.ndarray:
        assert self.order is not None and size >= len(self.order)
        return self.order


@dataclass
class Case:
    golden: Golden
    files: scgpt.Files

    def __post_init__(self) -> None:
        self.settings = scgpt.load_settings(self.files)
        self.vocabulary = scgpt.load_vocabulary(self.files)
        self.match = scgpt.match(self.golden.adata.var_names, self.vocabulary)
        self.tokens = np.array([self.vocabulary[gene] for gene in self.match.genes])
        self.pads = {"pad_token": self.vocabulary["<pad>"], "pad_value": self.settings.pad_value}

    def samples(self, run: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Values and tokens of the known genes of each sample."""
        layer = "distinct" if run == "distinct" else None
        counts = self.match.collapse(self.golden.counts(layer))
        parts = zip(counts.indptr[:-1], counts.indptr[1:], strict=True)
        return [(counts.data[low:high], self.tokens[counts.indices[low:high]]) for low, high in parts]

    def uniform(self, run: str, row: int) -> np.ndarray:
        indptr = self.golden.arrays[f"{run}_bin_indptr"]
        return self.golden.arrays[f"{run}_bin_rand"][indptr[row] : indptr[row + 1]]


@pytest.fixture(scope="module")
def case(golden_dir: Path) -> Case:
    golden = load(golden_dir, "scgpt")
    return Case(golden, scgpt.find_files(golden.checkpoint))


def test_vocabulary(case: Case) -> None:
    expected = case.golden.expected
    assert len(case.vocabulary) == expected["vocab_size"]
    for name, token in expected["special_tokens"].items():
        assert case.vocabulary[name] == token
    assert np.array_equal(case.match.target >= 0, case.golden.adata.var["in_vocab"])


@pytest.mark.parametrize("run", RUNS)
def test_bins(case: Case, run: str) -> None:
    names = ("left", "right", "out")
    parts = [case.golden.ragged(f"{run}_bin_{name}", f"{run}_bin_indptr") for name in names]
    for row, (values, _) in enumerate(case.samples(run)):
        left, right = scgpt.bin_edges_digits(values, case.settings.n_bins)
        made = (left, right, scgpt.bin_values(values, case.uniform(run, row), case.settings.n_bins))
        for mine, official in zip(made, parts, strict=True):
            assert np.array_equal(mine, official[row]), f"sample {row}"
    if run == "distinct":
        assert (left - right).max() <= case.golden.expected["distinct_run"]["max_left_minus_right"]


@pytest.mark.parametrize("run", RUNS)
def test_tokens(case: Case, run: str) -> None:
    settings = case.golden.expected["runs"][run]
    tokens = case.golden.ragged(f"{run}_tokens")
    values = case.golden.ragged(f"{run}_values")
    cut = 0
    for row, (counts, own) in enumerate(case.samples(run)):
        order = None
        if len(own) > settings["max_length"] - 1:
            place = {token: number for number, token in enumerate(own.tolist())}
            order = np.array([place[token] for token in tokens[row][1:].tolist()])
            assert len(set(order.tolist())) == settings["max_length"] - 1
            cut += 1
        mine = scgpt.tokenize(
            counts,
            own,
            Recorded(case.uniform(run, row), order),
            cls=case.vocabulary["<cls>"],
            cls_value=case.settings.pad_value,
            n_bins=case.settings.n_bins,
            max_length=settings["max_length"],
        )
        assert np.array_equal(mine[0], tokens[row])
        assert np.array_equal(mine[1], values[row])
    assert bool(cut) == (run == "short")
    if run == "full":
        assert [len(own) for own in tokens] == case.golden.expected["lengths"]


def test_ties_are_spread_as_officially(case: Case) -> None:
    arrays, draws = case.golden.arrays, case.golden.expected["tie_distribution"]["draws"]
    row = arrays["tie_row"]
    counted = np.zeros(arrays["tie_bin_counts"].shape)
    place = np.searchsorted(arrays["tie_unique_values"], row)
    for draw in range(draws):
        np.add.at(counted, (place, scgpt.bin_values(row, stream(draw, "test").random(len(row)))), 1)
    official = arrays["tie_bin_counts"]
    assert np.array_equal(counted > 0, official > 0)
    # Two samples of one distribution: the difference of their counts has the variance of their sum.
    total = counted + official
    assert (((counted - official) ** 2)[total > 0] / total[total > 0]).mean() < 1.5


@pytest.mark.parametrize("size", [1, 8, 40])
@pytest.mark.parametrize("run", RUNS)
def test_forward(case: Case, run: str, size: int) -> None:
    arrays = case.golden.arrays
    model, _ = scgpt.load_model(case.files, case.settings, case.vocabulary)
    pairs = zip(case.golden.ragged(f"{run}_tokens"), case.golden.ragged(f"{run}_values"), strict=True)
    items = [(tokens.astype(np.int64), values.astype(np.float32)) for tokens, values in pairs]
    with torch.inference_mode():
        made = np.concatenate(
            [
                scgpt.forward(model, part, max(len(item[0]) for item in part), **case.pads)
                for part in (items[low : low + size] for low in range(0, len(items), size))
            ]
        )
        whole = model(*(torch.from_numpy(part)[None] for part in items[0]))[0].numpy()
    assert np.abs(made - arrays[f"{run}_emb"]).max() < 1e-5
    assert np.abs(whole - arrays[f"{run}_cell0_output"]).max() < 1e-5
    raw = arrays[f"{run}_cls_raw"]
    assert np.abs(whole[0] - raw[0]).max() < 1e-5
    assert np.abs(made - raw / np.linalg.norm(raw, axis=1, keepdims=True)).max() < 1e-5


def test_the_embedder_gives_the_official_rows(case: Case, tmp_path: Path) -> None:
    """`distinct`: no draw matters, so the whole way from the file to the embedding can be compared."""
    path = written(case.golden, tmp_path)
    options = {"weights": str(case.golden.checkpoint)}
    with open_screen(path, roles(), layer="distinct", scale="normalized") as screen:
        for seed, size in ((0, 0), (5, 3)):
            made = scgpt.EMBEDDERS[0].embed(
                screen, {**options, "batch_size": size}, EmbeddingContext(tmp_path, seed=seed)
            )
            check_embedding(made, case.golden.arrays["distinct_emb"])


def test_redrawing_matters_about_as_much_as_officially(case: Case, tmp_path: Path) -> None:
    with open_screen(written(case.golden, tmp_path), roles()) as screen:
        options = {"weights": str(case.golden.checkpoint)}
        made = scgpt.EMBEDDERS[0].embed(screen, options, EmbeddingContext(tmp_path))
        values = np.array(made.values[:])
    assert (
        np.abs(values - case.golden.arrays["full_emb"]).max()
        < 2 * case.golden.expected["full_run_redraw"]["max_abs_diff"]
    )


# ---------------------------------------------------------------------------------------------------
# fine-tuning


@pytest.fixture(scope="module")
def logged(case: Case) -> Any:
    return scgpt_finetuned.log_normalise(case.match.collapse(case.golden.counts()))


def training_item(case: Case, logged: Any, row: int, *, zeros: bool = False) -> tuple[np.ndarray, np.ndarray]:
    arrays = case.golden.arrays
    low, high = logged.indptr[row : row + 2]
    bins = arrays["mlm_bin_indptr"][row : row + 2]
    return scgpt_finetuned.tokenize_for_training(
        logged.data[low:high],
        case.tokens[logged.indices[low:high]],
        Recorded(arrays["mlm_bin_rand"][bins[0] : bins[1]]),
        cls=case.vocabulary["<cls>"],
        n_bins=case.settings.n_bins,
        all_tokens=case.tokens if zeros else None,
    )


@pytest.fixture
def batch(case: Case, logged: Any) -> scgpt_finetuned.Batch:
    """The first batch, with the recorded masks."""
    items = []
    for number, row in enumerate(case.golden.expected["mlm"]["cells"]):
        tokens, values = training_item(case, logged, row)
        items.append((tokens, case.golden.arrays["mlm_input_values"][number, : len(tokens)], values))
    mask_value = case.golden.expected["mlm"]["mask_value"]
    return scgpt_finetuned.make_batch(items, **case.pads, mask_value=mask_value)


def test_log_normalised_expression_and_bins(case: Case, logged: Any) -> None:
    arrays = case.golden.arrays
    assert np.abs(logged.toarray() - arrays["mlm_log1p"]).max() < 1e-6
    made = np.zeros(logged.shape, dtype=np.int64)
    for row in range(logged.shape[0]):
        low, high = logged.indptr[row : row + 2]
        bins = arrays["mlm_bin_indptr"][row : row + 2]
        made[row, logged.indices[low:high]] = scgpt.bin_values(
            logged.data[low:high], arrays["mlm_bin_rand"][bins[0] : bins[1]]
        )
    assert np.array_equal(made, arrays["mlm_binned"])


def test_training_batch(case: Case, batch: scgpt_finetuned.Batch) -> None:
    arrays, expected = case.golden.arrays, case.golden.expected["mlm"]
    assert np.array_equal(batch.tokens.numpy(), arrays["mlm_gene_ids"])
    assert np.array_equal(batch.targets.numpy(), arrays["mlm_target_values"])
    assert np.array_equal(batch.inputs.numpy(), arrays["mlm_input_values"])
    assert batch.tokens.shape[1] == expected["padded_length"]
    assert int(batch.masked.sum()) == expected["n_masked"]
    assert (batch.targets[:, 0] == expected["cls_value"]).all()


def test_masks_have_the_official_number(case: Case, batch: scgpt_finetuned.Batch) -> None:
    expected = case.golden.expected["mlm"]
    for row in range(len(batch)):
        length = int((batch.targets[row] != expected["pad_value"]).sum())
        values = batch.targets[row, :length].numpy().astype(np.int16)
        masked = scgpt_finetuned.mask_values(values, stream(0, "test", row), ratio=expected["mask_ratio"])
        assert (masked == expected["mask_value"]).sum() == int(batch.masked[row].sum())
        assert np.array_equal(masked[masked != -1], values[masked != -1])


def test_tokens_with_unexpressed_genes(case: Case, logged: Any) -> None:
    arrays = case.golden.arrays
    for row in range(len(arrays["mlm_include_zero_gene_ids"])):
        tokens, values = training_item(case, logged, row, zeros=True)
        assert np.array_equal(tokens, arrays["mlm_include_zero_gene_ids"][row])
        assert np.array_equal(values, arrays["mlm_include_zero_values"][row])


def test_prediction_before_training(case: Case, batch: scgpt_finetuned.Batch) -> None:
    model, _ = scgpt.load_model(case.files, case.settings, case.vocabulary, decoder=True)
    with torch.inference_mode():
        made = model.decoder(model(batch.tokens, batch.inputs, batch.real)).numpy()
    # Where there is padding the official code predicts from zeros, and nobody reads it.
    real = batch.real.numpy()
    official = case.golden.arrays["mlm_output"]
    assert np.abs(made - official)[real].max() < 1e-5 * np.abs(official).max()


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_fine_tuning_steps(case: Case, batch: scgpt_finetuned.Batch, micro_batch: int) -> None:
    """Five steps of Adam: gradients, norms, weights after the first, losses.

    The norm of the fifth step is left out: a jitter of 1e-7 of the weights moves it by 3e-4, as does the order of sums
    of another processor.
    """
    arrays, expected = case.golden.arrays, case.golden.expected["mlm"]
    model, _ = scgpt.load_model(case.files, case.settings, case.vocabulary, decoder=True, dropout=expected["dropout"])
    model.train()
    names = [name for name, _ in model.named_parameters()]
    assert {f"mlm_grad/{name}" for name in names} == {name for name in arrays if name.startswith("mlm_grad/")}
    (scgpt_finetuned.masked_error(model, batch) / batch.masked.sum()).backward()
    gradients = {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}
    for name, gradient in gradients.items():
        official = arrays[f"mlm_grad/{name}"]
        assert np.abs(gradient - official).max() <= 1e-4 * np.abs(official).max(), name
    optimizer = torch.optim.Adam(model.parameters(), lr=expected["lr"], eps=expected["adam_eps"])
    losses, norms = [], []
    for step in range(len(expected["losses_5_steps"])):
        loss, norm = scgpt_finetuned.train_step(model, optimizer, batch, clip=expected["clip"], micro_batch=micro_batch)
        losses.append(loss)
        norms.append(norm)
        if step == 0:
            for name, parameter in model.named_parameters():
                official, gradient = arrays[f"mlm_after1/{name}"], np.abs(arrays[f"mlm_grad/{name}"])
                difference = np.abs(parameter.detach().numpy() - official)
                clear = gradient > 1e-4 * gradient.max()
                assert difference[clear].max(initial=0) < 1e-6, name
                assert difference.max() <= 2.1 * expected["lr"], name
    assert np.allclose(losses, expected["losses_5_steps"], rtol=1e-5, atol=0)
    assert np.allclose(norms[:4], expected["grad_norms_before_clipping"][:4], rtol=1e-5, atol=0)
