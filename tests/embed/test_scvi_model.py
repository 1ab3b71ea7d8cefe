"""The training loop and the saved model: against scvi-tools itself, killed and resumed, damaged and hostile files."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

scvi = pytest.importorskip("scvi", reason="scvi-tools is an extra", exc_type=ImportError)

from txeval.compute.random import stream_seed  # noqa: E402
from txeval.embed.scvi_model import (  # noqa: E402
    Architecture,
    ScVIModel,
    SparseRows,
    Training,
    build,
    default_epochs,
    fit,
    kl_weight,
    minibatches,
    partition,
)
from txeval.errors import InputError, NotComputable  # noqa: E402

G = 40
SMALL = {"latent": 8, "layers": 2, "hidden": 16}


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    made = rng.poisson(rng.gamma(0.5, 3.0, (150, G))).astype(np.float32)
    made[:, 0] += 1
    return sp.csr_matrix(made)


@pytest.fixture(scope="module")
def batch():
    return np.arange(150, dtype=np.int64) % 3


def weights(module):
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


class Minibatches:
    """Our minibatches, as Lightning wants them: another order in each epoch."""

    def __init__(self, matrix, batch, rows, size, seed):
        self.args = (matrix, batch, rows, size, seed)
        self.epoch = 0

    def __iter__(self):
        matrix, batch, rows, size, seed = self.args
        epoch, self.epoch = self.epoch, self.epoch + 1
        for part in minibatches(rows, size, seed, epoch):
            codes = torch.from_numpy(batch[part])[:, None]
            x = torch.from_numpy(matrix[part].toarray())
            yield {"X": x, "batch": codes, "labels": torch.zeros_like(codes)}

    def __len__(self):
        _, _, rows, size, _ = self.args
        return (len(rows) + size - 1) // size


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_training_is_that_of_scvi_tools(counts, batch, likelihood):
    """The same minibatches and the same noise give the same weights in scvi-tools' own training."""
    import lightning.pytorch as pl
    from scvi.train import Trainer, TrainingPlan

    seed, epochs, size = 3, 4, 32
    shape = Architecture(G, 3, likelihood=likelihood, **SMALL)
    ours, history = fit(
        shape, SparseRows.of(counts), batch, Training(max_epochs=epochs, batch_size=size, kl_warmup=3), seed=seed
    )

    class Noise(pl.Callback):
        def on_train_epoch_start(self, trainer, plan):
            torch.manual_seed(stream_seed(seed, "scvi", "noise", trainer.current_epoch))

    torch.manual_seed(stream_seed(seed, "scvi", "weights"))
    theirs = build(shape)
    rows, _ = partition(150, size, 0.9, seed)
    plan = TrainingPlan(theirs, n_epochs_kl_warmup=3)
    plan.n_obs_training = len(rows)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, enable_progress_bar=False, callbacks=[Noise()], barebones=False
    )
    trainer.fit(plan, Minibatches(counts, batch, rows, size, seed))
    # One step of Adam moves a weight by about the learning rate, 1e-3; 20 steps were taken.
    for (name, one), other in zip(weights(ours).items(), weights(theirs).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6, err_msg=name)
    recorded = trainer.logger.history["elbo_train"]["elbo_train"].astype(float)
    np.testing.assert_allclose(history.elbo_train, recorded, rtol=1e-5)


def test_latent_is_that_of_scvi_tools_also_for_an_unseen_batch(counts, batch, tmp_path):
    from scvi.model import SCVI

    shape = Architecture(G, 3, **SMALL)
    module, _ = fit(shape, SparseRows.of(counts), batch, Training(max_epochs=2), seed=0)
    model = ScVIModel(module, shape, "counts", tuple(f"G{i}" for i in range(G)), ("b0", "b1", "b2"))
    ours = model.latent(counts.toarray())

    def adata(labels, columns=slice(None)):
        names = pd.Index([f"G{i}" for i in range(G)])[columns]
        obs = pd.DataFrame({"batch": labels}, index=[f"c{i}" for i in range(150)])
        return ad.AnnData(counts[:, columns].copy(), obs=obs, var=pd.DataFrame(index=names))

    seen = adata([f"b{code}" for code in batch])
    SCVI.setup_anndata(seen, batch_key="batch")
    theirs = SCVI(seen, n_hidden=16, n_latent=8, n_layers=2, dropout_rate=0.0)
    theirs.module.load_state_dict(module.state_dict())
    theirs.module.eval()
    theirs.is_trained = True
    np.testing.assert_allclose(ours, theirs.get_latent_representation(), rtol=1e-5, atol=1e-6)

    theirs.save(str(tmp_path / "theirs"))
    # 30 of 40 genes, a batch that was not in the training: the way that scvi-tools documents.
    query = adata(["new"] * 150, slice(10, None))
    SCVI.prepare_query_anndata(query, str(tmp_path / "theirs"))
    asked = SCVI.load_query_data(query, str(tmp_path / "theirs"), accelerator="cpu")
    asked.is_trained = True
    filled = counts.toarray()
    filled[:, :10] = 0
    np.testing.assert_allclose(model.latent(filled), asked.get_latent_representation(), rtol=1e-5, atol=1e-6)

    # A folder of scvi-tools holds pickled objects: it is not read, and the message says so.
    with pytest.raises(InputError, match=r"model\.pt is of scvi-tools"):
        ScVIModel.load(tmp_path / "theirs")


def test_settings_are_those_of_scvi_tools():
    from scvi.model._utils import get_max_epochs_heuristic
    from scvi.train import TrainingPlan
    from scvi.train._trainingplans import _compute_kl_weight

    plan, ours = TrainingPlan(build(Architecture(5, **SMALL))), Training()
    assert (plan.lr, plan.eps, plan.weight_decay) == (ours.lr, ours.eps, ours.weight_decay)
    assert plan.n_epochs_kl_warmup == ours.kl_warmup
    for n in (1, 100, 20_000, 20_001, 123_456, 1_400_000, 10_000_000):
        assert default_epochs(n) == pytest.approx(get_max_epochs_heuristic(n), abs=0)
    for epoch in (0, 1, 399, 400, 1000):
        assert kl_weight(epoch, 400) == _compute_kl_weight(epoch, 0, 400, None)


@pytest.mark.parametrize(("n", "size"), [(150, 32), (143, 32), (10, 128), (3, 128), (145, 9)])
def test_partition(n, size):
    from scvi.dataloaders._data_splitting import validate_data_split

    train, others = partition(n, size, 0.9, 0)
    assert np.sort(np.concatenate([train, others])).tolist() == list(range(n))
    with pytest.warns(UserWarning) if len(train) != int(np.ceil(0.9 * n)) else _nothing():
        assert (len(train), len(others)) == validate_data_split(n, 0.9, None, size)
    assert len(train) % size not in (1, 2)


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_deterministic_and_leaves_the_generator_alone(counts, batch):
    data, training = SparseRows.of(counts), Training(max_epochs=2, batch_size=32)
    torch.manual_seed(7)
    first, _ = fit(Architecture(G, 3, **SMALL), data, batch, training, seed=0)
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.rand(1) == after
    again, _ = fit(Architecture(G, 3, **SMALL), data, batch, training, seed=0)
    assert_equal(weights(first), weights(again))
    other, _ = fit(Architecture(G, 3, **SMALL), data, batch, training, seed=1)
    assert not np.array_equal(weights(first)["px_r"], weights(other)["px_r"])


class Stop(BaseException):
    """As Ctrl-C: no Exception."""


def stop_after(epoch):
    def progress(done, total, text):
        if done == epoch:
            raise Stop

    return progress


def test_a_stopped_training_goes_on_to_the_same_weights(counts, batch, tmp_path):
    data, file = SparseRows.of(counts), tmp_path / "checkpoint.pt"
    shape, training = Architecture(G, 3, **SMALL), Training(max_epochs=6, batch_size=32, early_stopping=True)
    whole, told = fit(shape, data, batch, training, seed=0)
    for epoch in (3, 5):
        with pytest.raises(Stop):
            fit(shape, data, batch, training, seed=0, checkpoint=file, key="k", progress=stop_after(epoch))
    seen = []
    resumed, history = fit(
        shape, data, batch, training, seed=0, checkpoint=file, key="k", progress=lambda *what: seen.append(what[:2])
    )
    assert_equal(weights(whole), weights(resumed))
    assert history.elbo_train == told.elbo_train and history.elbo_validation == told.elbo_validation
    assert history.resumed_at[-1] >= 2 and seen[-1] == (6, 6)
    assert not list(tmp_path.glob(".*partial"))


def test_a_killed_training_goes_on(counts, batch, tmp_path):
    """SIGKILL in a process of its own: nothing is cleaned up."""
    np.savez(tmp_path / "data.npz", x=counts.toarray(), batch=batch)
    script = f"""
        import os, signal
        import numpy as np
        from txeval.embed.scvi_model import *
        data = np.load({str(tmp_path / "data.npz")!r})

        def progress(done, total, text):
            if done == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        fit(Architecture({G}, 3, latent=8, layers=2, hidden=16), SparseRows.of(data["x"]), data["batch"],
            Training(max_epochs=5, batch_size=32), seed=0, checkpoint=__import__("pathlib").Path({str(tmp_path)!r})
            / "checkpoint.pt", key="k", progress=progress)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout == ""
    shape, training = Architecture(G, 3, **SMALL), Training(max_epochs=5, batch_size=32)
    data = SparseRows.of(counts)
    resumed, history = fit(shape, data, batch, training, seed=0, checkpoint=tmp_path / "checkpoint.pt", key="k")
    whole, _ = fit(shape, data, batch, training, seed=0)
    # The checkpoint of the second epoch is left out where writing the first took long.
    assert history.resumed_at in ([1], [2])
    for name, value in weights(whole).items():
        # Another process may take another path through the BLAS.
        np.testing.assert_allclose(weights(resumed)[name], value, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_something_else_or_cut_short_is_not_used(counts, batch, tmp_path):
    data, file = SparseRows.of(counts), tmp_path / "checkpoint.pt"
    shape, training = Architecture(G, 3, **SMALL), Training(max_epochs=3, batch_size=64)
    whole, _ = fit(shape, data, batch, training, seed=0)
    with pytest.raises(Stop):
        fit(shape, data, batch, training, seed=0, checkpoint=file, key="k", progress=stop_after(2))
    good = file.read_bytes()

    made, history = fit(shape, data, batch, training, seed=0, checkpoint=file, key="other")
    assert history.resumed_at == [] and history.notes == []
    assert_equal(weights(made), weights(whole))

    for bad in (good[: len(good) // 2], b"", hostile(tmp_path)):
        file.write_bytes(bad)
        made, history = fit(shape, data, batch, training, seed=0, checkpoint=file, key="k")
        assert history.resumed_at == [] and "damaged" in history.notes[0]
        assert_equal(weights(made), weights(whole))
    assert not (tmp_path / "executed").exists()


class Attack:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder / "executed"),))


def hostile(folder):
    return pickle.dumps({"key": "k", "module": Attack(folder)})


def test_early_stopping_and_divergence(counts, batch):
    data = SparseRows.of(counts)
    # With so high a rate the bound soon gets worse.
    _, history = fit(
        Architecture(G, **SMALL),
        data,
        0 * batch,
        Training(max_epochs=200, early_stopping=True, patience=2, lr=0.05),
        seed=0,
    )
    assert history.stopped_early and history.epochs < 200 and history.waited() == 2
    assert len(history.elbo_validation) == history.epochs
    with pytest.raises(NotComputable, match=r"diverged in epoch 1.*lower lr"):
        fit(Architecture(G, **SMALL), SparseRows.of(counts * 1e37), 0 * batch, Training(max_epochs=2), seed=0)
    with pytest.raises(NotComputable, match="cannot be trained on 2 samples"):
        fit(Architecture(G, **SMALL), SparseRows.of(counts[:2]), 0 * batch[:2], Training(), seed=0)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    shape = Architecture(4, 2, latent=3, layers=1, hidden=5)
    model = ScVIModel(
        build(shape).eval(), shape, "lognorm", ("A", "B", "C", "D"), ("x", "y"), {"name": "mine", "key": "k"}
    )
    model.save(tmp_path / "saved")
    return model, tmp_path / "saved"


def test_a_saved_model_is_the_same_model(saved):
    model, folder = saved
    found = ScVIModel.load(folder)
    assert_equal(weights(found.module), weights(model.module))
    assert (found.genes, found.batches, found.input, found.about) == (
        model.genes,
        model.batches,
        model.input,
        model.about,
    )
    x = np.random.default_rng(0).random((7, 4), dtype=np.float32)
    np.testing.assert_array_equal(found.latent(x), model.latent(x))
    np.testing.assert_allclose(found.latent(x[3:4]), model.latent(x)[3:4], rtol=1e-5, atol=1e-7)
    assert ScVIModel.digest(folder) == ScVIModel.digest(folder) and len(ScVIModel.digest(folder)) == 64
    with pytest.raises(InputError, match="holds a model already"):
        model.save(folder)
    model.save(folder, overwrite=True)
    # Nothing of it is a pickle.
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.npz"]
    with np.load(folder / "weights.npz", allow_pickle=False) as archive:
        assert all(archive[name].dtype.kind in "fi" for name in archive.files)


def rewrite(folder, **changes):
    """Write weights anew with other arrays, and their digest into the record."""
    import hashlib

    with np.load(folder / "weights.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update(changes)
    np.savez(folder / "weights.npz", **{name: value for name, value in arrays.items() if value is not None})
    record = json.loads((folder / "model.json").read_text())
    record["weights_sha256"] = hashlib.sha256((folder / "weights.npz").read_bytes()).hexdigest()
    (folder / "model.json").write_text(json.dumps(record))


def change(folder, **changes):
    record = json.loads((folder / "model.json").read_text())
    record.update(changes)
    (folder / "model.json").write_text(json.dumps(record))


def test_bad_files_are_refused(saved, tmp_path):
    _, folder = saved

    def refused(match, damage):
        import shutil

        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        damage(copy)
        with pytest.raises(InputError, match=match) as told:
            ScVIModel.load(copy)
        assert told.value.remedy

    refused("there is no folder", lambda f: __import__("shutil").rmtree(f))
    refused("weights.npz is missing", lambda f: (f / "weights.npz").unlink())
    refused("model.json is missing", lambda f: (f / "model.json").unlink())
    refused("not a whole JSON", lambda f: (f / "model.json").write_text("{"))
    refused("not the record", lambda f: (f / "model.json").write_text("[1]"))
    refused("version 9", lambda f: change(f, version=9))
    refused("digest", lambda f: (f / "weights.npz").write_bytes((f / "weights.npz").read_bytes()[:-100]))
    refused("not lognorm or counts", lambda f: change(f, input="raw"))
    refused("3 genes for 4 inputs", lambda f: change(f, genes=["A", "B", "C"]))
    refused("each once", lambda f: change(f, genes=["A", "A", "B", "C"]))
    refused("genes is", lambda f: change(f, genes="ABCD"))
    shape = json.loads((folder / "model.json").read_text())["architecture"]
    refused("hidden is", lambda f: change(f, architecture={**shape, "hidden": 10**12}))
    refused("hidden is", lambda f: change(f, architecture={**shape, "hidden": True}))
    refused("likelihood 'gauss'", lambda f: change(f, architecture={**shape, "likelihood": "gauss"}))
    refused("architecture:", lambda f: change(f, architecture={**shape, "code": "x"}))
    # Other sizes than those of the weights; a huge one takes no memory before it is refused.
    refused("not the weights|is float32", lambda f: change(f, architecture={**shape, "hidden": 9_000_000}))
    refused("missing: px_r", lambda f: rewrite(f, px_r=None))
    refused("unexpected: other", lambda f: rewrite(f, other=np.zeros(2)))
    refused("not finite", lambda f: rewrite(f, px_r=np.full(4, np.nan, dtype=np.float32)))
    refused("px_r is float32", lambda f: rewrite(f, px_r=np.zeros(5, dtype=np.float32)))
    attack = np.array([Attack(tmp_path)], dtype=object)
    refused("not a whole file of weights", lambda f: rewrite(f, px_r=attack))
    assert not (tmp_path / "executed").exists()


def test_rows_of_a_sparse_matrix(counts):
    rows = np.array([5, 0, 149, 5])
    data = SparseRows.of(counts)
    np.testing.assert_array_equal(data.dense(rows), counts[rows].toarray())
    assert data.shape == counts.shape and data.nbytes == 8 * counts.nnz + 16 * 150
    order = np.arange(150)[::-1]
    turned = SparseRows(counts.data, counts.indices, counts.indptr.astype(np.int64), G, order)
    np.testing.assert_array_equal(turned.dense(rows), counts[order[rows]].toarray())
