"""`txeval embed`, `txeval models`, `txeval weights`: what is written, what is used again, how they refuse."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from txeval.cli import main
from txeval.data import Roles, open_screen
from txeval.embed import list_embedders, make_embedding, parse_spec
from txeval.embed.base import EmbeddingContext
from txeval.embed.cards import SUPPORT, list_models
from txeval.embed.weights import list_weights
from txeval.protocol import load_protocol
from txeval.run import read_scores
from txeval.run.plan import split_screen
from txeval.testing import make_screen, make_tiny_scgpt

COLUMNS = ["--perturbation", "perturbation", "--control", "non-targeting", "--batch", "batch"]
NORMAN = ["--perturbation", "perturbation", "--control-column", "control", "--batch", "gem_group", "--layer", "counts"]
TINY = ["latent=6", "layers=1", "hidden=16", "max_epochs=3"]


@pytest.fixture
def screen(tmp_path: Path) -> Path:
    return make_screen(tmp_path / "screen.h5ad")


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TXEVAL_WEIGHTS", raising=False)


def record_of(out: Path) -> dict:
    return json.loads((out / "embedding.json").read_text())


def test_one_row_for_each_sample_and_a_record(screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "emb" / "pca"
    command = ["embed", str(screen), *COLUMNS, "--model", "pca", "--option", "components=5", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "120 samples x 5 dimensions by pca" in said and f"--embedding pca={out / 'embedding.npy'}" in said
    values = np.load(out / "embedding.npy", allow_pickle=False)
    assert values.shape == (120, 5) and values.dtype == np.float32
    assert (out / "embedding.names.txt").read_text().splitlines() == ad.read_h5ad(screen).obs_names.tolist()
    record = record_of(out)
    assert record["options"]["components"] == 5 and record["shape"] == [120, 5] and record["device"] == "cpu"
    assert record["seconds"] >= 0 and record["peak_memory_mb"] > 0 and record["versions"]["numpy"]
    assert record["screen"]["n"] == 120 and record["seed"] is None
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "embedding.json", "embedding.names.txt", "embedding.npy",
    ]  # fmt: skip

    # The same again finds it there; another one is not put in its place unasked.
    before = (out / "embedding.npy").stat().st_mtime_ns
    assert main(command) == 0
    assert "is there already: 120 samples x 5 dimensions" in capsys.readouterr().out
    assert (out / "embedding.npy").stat().st_mtime_ns == before
    other = [word.replace("components=5", "components=4") for word in command]
    assert main(other) == 2
    assert "another model, other settings" in capsys.readouterr().err
    assert main([*other, "--overwrite"]) == 0
    assert np.load(out / "embedding.npy").shape == (120, 4)
    # A file that was damaged in between is made again.
    (out / "embedding.npy").write_bytes(b"x")
    assert main(other) == 0
    assert np.load(out / "embedding.npy").shape == (120, 4)


def test_a_run_uses_it(screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "emb"
    assert main(["embed", str(screen), *COLUMNS, "--model", "pca@components=5", "--out", str(out)]) == 0
    again = ["--embedding", f"mine={out / 'embedding.npy'}", "pca@components=5", "--tasks", "knn", "--seeds", "1"]
    results = tmp_path / "results"
    more = ["--post-processing", "raw", "--min-counts", "0", "--no-baseline", "--plain"]
    assert main(["run", str(screen), *COLUMNS, *again, *more, "--out", str(results)]) == 0
    scores = read_scores(results).pivot_table(index=["metric", "subset"], columns="model", values="value")
    np.testing.assert_array_equal(scores["mine"], scores["pca"])


def test_scvi_gets_the_train_split_of_a_run(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """All samples are embedded; learnt from are those that a run would learn from."""
    pytest.importorskip("scvi", reason="scvi-tools is an extra", exc_type=ImportError)
    file = data_dir / "norman2019_k562_crispra_500hvg.h5ad"
    protocol = tmp_path / "mine.yaml"
    protocol.write_text("name: mine\nextends: paper\nquality_control:\n  min_counts: 14\n")
    out, model = tmp_path / "emb", tmp_path / "model"
    command = ["embed", str(file), *NORMAN, "--model", "scvi", "--option", *TINY, "--protocol", str(protocol)]
    assert main([*command, "--out", str(out), "--save", str(model), "--seed", "1"]) == 0
    told = capsys.readouterr()
    assert "Trained on" in told.out and f"--option model={model}" in told.out
    values, record = np.load(out / "embedding.npy"), record_of(out)
    assert values.shape == (3375, 6) and record["seed"] == 1

    roles = Roles("perturbation", control_column="control", batch="gem_group")
    folder = tmp_path / "work"
    folder.mkdir()
    with open_screen(file, roles, layer="counts", min_counts=14) as kept:
        assert 100 < kept.n < 3375
        train = split_screen(kept, load_protocol(str(protocol)))["train"]
        context = EmbeddingContext(folder=folder, seed=1, train_rows=train)
        expected = make_embedding(parse_spec("scvi@" + ",".join(TINY)), kept, context)
        np.testing.assert_allclose(values[kept.kept], expected.values[:], rtol=1e-5, atol=1e-6)
    assert record["train"].startswith(f"{len(train):,} samples: the train split of protocol mine")

    # The model that was kept embeds the same screen alike, and is found there again.
    moved = tmp_path / "moved"
    transfer = ["embed", str(file), *NORMAN, "--model", "transfer-scvi", "--option", f"model={model}"]
    assert main([*transfer, "--out", str(moved)]) == 0
    np.testing.assert_array_equal(np.load(moved / "embedding.npy"), values)
    assert record_of(moved)["weights"]["sha256"]
    assert main([*command, "--out", str(tmp_path / "third"), "--save", str(model)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_fine_tuned_scgpt_is_saved(screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With --save the trained model is kept, and embeds the same screen alike."""
    genes = ad.read_h5ad(screen).var_names.tolist()
    weights, out, model = make_tiny_scgpt(tmp_path / "weights", genes), tmp_path / "emb", tmp_path / "deep" / "model"
    command = ["embed", str(screen), *COLUMNS, "--model", "scgpt-finetuned"]
    training = ["--weights", str(weights), "--option", "epochs=1", "train_batch_size=30", "learning_rate=0.001"]
    assert main([*command, *training, "--out", str(out), "--save", str(model)]) == 0
    told = capsys.readouterr().out
    assert f"--model scgpt-finetuned --option model={model}" in told and "Trained on" in told
    assert {path.name for path in model.iterdir()} == {"best_model.pt", "vocab.json", "args.json", "finetuning.json"}
    assert record_of(out)["provenance"]["trained_model"] == str(model)
    assert [path.name for path in model.parent.iterdir()] == ["model"]

    again = tmp_path / "again"
    assert main([*command, "--option", f"model={model}", "--out", str(again)]) == 0
    assert "Trained on" not in capsys.readouterr().out
    values = np.load(out / "embedding.npy")
    assert values.any()
    np.testing.assert_array_equal(np.load(again / "embedding.npy"), values)
    shown = tmp_path / "zero-shot"
    assert main(["embed", str(screen), *COLUMNS, "--model", "scgpt", "--weights", str(model), "--out", str(shown)]) == 0
    assert main([*command, "--option", f"model={model}", "--out", str(again), "--save", str(tmp_path / "x")]) == 2
    assert "trains no model" in capsys.readouterr().err


def test_run_trains_scvi_once(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("scvi", reason="scvi-tools is an extra", exc_type=ImportError)
    spec = "scvi@likelihood=nb," + ",".join(TINY)
    file, out = str(data_dir / "norman2019_k562_crispra_500hvg.h5ad"), tmp_path / "results"
    command = ["run", file, *NORMAN, "--embedding", spec, "--post-processing", "raw", "--seeds", "2", "--no-baseline"]
    command += ["--min-counts", "0", "--plain", "--out", str(out)]
    assert main([*command, "--tasks", "knn"]) == 0
    stored = sorted((out / "embeddings").glob("*.npy"))
    assert len(stored) == 2  # one for each seed
    before = [path.stat().st_mtime_ns for path in stored]
    told = json.loads(stored[0].with_suffix(".json").read_text())["provenance"]
    assert told["options"]["likelihood"] == "nb" and told["model"]["training"]["epochs"] == 3
    assert len(told["batches"]["not_in_the_training"]) == 3
    capsys.readouterr()
    # Another task later takes the embeddings that are there.
    assert main([*command, "--tasks", "knn", "consistency"]) == 0
    assert [path.stat().st_mtime_ns for path in sorted((out / "embeddings").glob("*.npy"))] == before
    assert "embedding scvi" not in capsys.readouterr().err
    assert not list((out / "embeddings").glob("*.work"))


def test_a_killed_embedding_goes_on(screen: Path, tmp_path: Path) -> None:
    """SIGKILL while the command trains; the same command then takes up the training where it was."""
    pytest.importorskip("scvi", reason="scvi-tools is an extra", exc_type=ImportError)
    out = tmp_path / "emb"
    options = ["latent=6", "layers=1", "hidden=16", "max_epochs=60", "batch_size=8"]
    words = ["embed", str(screen), *COLUMNS, "--model", "scvi", "--option", *options, "--out", str(out), "--plain"]
    script = (
        "import os, signal, sys\n"
        "from txeval.cli.commands import embed\n"
        "class Line(embed._Line):\n"
        "    def __call__(self, done, total, text):\n"
        "        if 'ELBO' in text and done == 30:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "embed._Line = Line\n"
        "from txeval.cli import main\n"
        f"sys.exit(main({words!r}))\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == "" and not (out / "embedding.json").exists()
    assert main(words) == 0
    training = record_of(out)["provenance"]["model"]["training"]
    assert training["epochs"] == 60 and 1 <= training["resumed_after_epochs"][0] < 30
    assert not list(out.glob(".work*"))


def test_names_that_cannot_stand_in_a_line(tmp_path: Path) -> None:
    adata = ad.read_h5ad(make_screen(tmp_path / "a.h5ad"))
    adata.obs_names = [f"cell\u2028{i}" for i in range(120)]
    adata.write_h5ad(tmp_path / "odd.h5ad")
    out = tmp_path / "emb"
    assert main(["embed", str(tmp_path / "odd.h5ad"), *COLUMNS, "--model", "pca", "--out", str(out)]) == 0
    assert (out / "embedding.names.csv").is_file() and not (out / "embedding.names.txt").exists()
    with open_screen(tmp_path / "odd.h5ad", Roles("perturbation", control=("non-targeting",), batch="batch")) as made:
        spec = parse_spec(str(out / "embedding.npy"))
        found = make_embedding(spec, made, EmbeddingContext(folder=tmp_path))
    assert found.provenance["aligned"] == "by name"


def test_an_external_command(screen: Path, tmp_path: Path) -> None:
    script = tmp_path / "embed.py"
    script.write_text(
        "import sys, h5py, pandas as pd\n"
        "with h5py.File(sys.argv[1]) as file:\n"
        "    names = file['obs/_index'].asstr()[:]\n"
        "pd.DataFrame({'a': range(len(names)), 'b, c': 1.5}, index=names)[::-1].to_parquet(sys.argv[2])\n"
    )
    out = tmp_path / "emb"
    command = f"command={sys.executable} {script} {{input}} {{output}} a,b"
    assert main(["embed", str(screen), *COLUMNS, "--model", "external", "--option", command, "--out", str(out)]) == 0
    values = np.load(out / "embedding.npy")
    assert values[:, 0].tolist() == list(range(120))
    assert record_of(out)["provenance"]["command"].endswith("a,b")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--model", "pcaa"], "no embedder called 'pcaa'"),
        (["--model", "pca", "--option", "component=3"], "no option called 'component'"),
        (["--model", "pca", "--option", "components"], "is no OPTION=VALUE"),
        (["--model", "pca@components=3", "--option", "components=4"], "given twice"),
        (["--model", "pca", "--option", "components=many"], "option components is 'many'"),
        (["--model", "pca", "--weights", "somewhere"], "reads no weights"),
        (["--model", "geneformer-v1", "--weights", "nowhere"], "nowhere, does not exist"),
        (["--model", "geneformer-v1"], "needs its weights, which are not here"),
        (["--model", "pca", "--save", "x"], "trains no model"),
        (["--model", "pca", "--protocol", "papr"], "papr"),
        (["--modle", "pca"], "--modle|--model"),
        ([], "--model"),
    ],
)
def test_bad_words(screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], match: str) -> None:
    out = tmp_path / "emb"
    assert main(["embed", str(screen), *COLUMNS, *words, "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert re.search(match, err), err
    assert "->" in err and not out.exists()


def test_bad_places(screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("x")
    base = ["embed", str(screen), *COLUMNS, "--model", "pca"]
    assert main([*base, "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(["embed", str(screen), "--control", "x", "--model", "pca", "--out", str(tmp_path / "o")]) == 2
    assert "--perturbation COLUMN" in capsys.readouterr().err
    assert main([*base, "--control-column", "control", "--out", str(tmp_path / "o")]) == 2
    assert "both given" in capsys.readouterr().err


def test_models(capsys: pytest.CaptureFixture) -> None:
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    cards = {card.name: card for card in list_models()}
    for info in list_embedders():
        card = cards[info.name]
        assert card.name in said and card.support in SUPPORT
        assert card.genes and card.scale and card.dimensions and card.checked, card.name
        assert (card.weights != "") == ("weights" in info.options)
    for card in cards.values():
        if card.support == "by command":
            assert card.licence and card.citation and card.why
    names = {weights.name for weights in list_weights()}
    assert {card.weights for card in cards.values() if card.weights} == names
    assert "txeval weights fetch uce-4l" in said

    assert main(["models", "scgpt"]) == 0
    said = capsys.readouterr().out
    assert "10.1038/s41592-024-02201-0" in said and "dimensions: 512" in said and "geneformer" not in said
    assert main(["models", "scgtp"]) == 2
    assert "scgpt" in capsys.readouterr().err


def test_weights(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXEVAL_WEIGHTS", str(tmp_path / "w"))
    folder = tmp_path / "w" / "scgpt"
    folder.mkdir(parents=True)
    for name in ("args.json", "vocab.json"):
        (folder / name).write_text("{}")
    assert main(["weights", "list"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for weights in list_weights():
        assert weights.title in said and weights.licence in said
    assert f"in part here: {folder} (missing: best_model.pt)" in said
    (folder / "best_model.pt").write_bytes(b"x")
    assert main(["weights", "list", "scgpt-finetuned"]) == 0
    assert "here:" in capsys.readouterr().out

    # Put there by hand: nothing to fetch, nothing recorded yet.
    assert main(["weights", "fetch", "scgpt"]) == 0
    assert "are in" in capsys.readouterr().out
    assert main(["weights", "verify", str(folder)]) == 0
    assert "0 of 3 files are as they were recorded; 3 have no recorded digest" in capsys.readouterr().out
    assert main(["weights", "verify", str(folder), "--record"]) == 0
    assert "3 of 3 files" in capsys.readouterr().out
    (folder / "best_model.pt").write_bytes(b"y")
    (folder / "args.json").unlink()
    assert main(["weights", "verify", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "changed" in said and "missing" in said and "2 of 3 files are not as they were recorded" in said

    # What the catalogue knows of published files is compared as well, and what it does not know is said.
    copy = tmp_path / "Geneformer"
    (copy / "geneformer").mkdir(parents=True)
    for name in ("token_dictionary", "gene_name_id_dict"):
        (copy / "geneformer" / f"{name}_gc104M.pkl").write_bytes(b"short")
    assert main(["weights", "verify", str(copy)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"not published .* published size +geneformer/token_dictionary_gc104M.pkl", said)
    assert re.search(r"not recorded .* published unknown +geneformer/gene_name_id_dict_gc104M.pkl", said)
    assert "Known of the published files: size of 1, unknown of 1" in said
    assert "1 of 2 files are not as they were recorded or published" in said
    assert main(["weights", "list", "geneformer-v2-104m"]) == 0
    assert "published digests known: 1 of 6 files; sizes: 3" in " ".join(capsys.readouterr().out.split())

    monkeypatch.setenv("TXEVAL_OFFLINE", "1")
    assert main(["weights", "fetch", "cellplm", "--to", str(tmp_path / "c")]) == 2
    err = capsys.readouterr().err
    assert "TXEVAL_OFFLINE" in err and "dropbox.com" in err and str(tmp_path / "c") in err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["fetch"], "of what"),
        (["verify"], "of what"),
        (["lst"], "no action called 'lst'"),
        (["fetch", "scgtp"], "scgpt"),
        (["verify", "nowhere"], "there is no folder nowhere"),
        (["list", "--to", "x"], "--to is for txeval weights fetch"),
        (["fetch", "scgpt", "--record"], "--record is for txeval weights verify"),
    ],
)
def test_bad_words_of_weights(capsys: pytest.CaptureFixture, words: list[str], match: str) -> None:
    assert main(["weights", *words]) == 2
    err = capsys.readouterr().err
    assert match in err and "->" in err
