"""Throughput and peak memory of the models with ready-made weights, at their real sizes with random weights.

    python benchmarks/bench_embedders.py [NAME ...] [--samples N] [--folder DIR]

Every model gets full-length samples and one thread, in a process of its own; seconds are CPU seconds of one more
sample (the time of a run less that of a run on fewer samples), so that loading does not count. Beside them stand the
seconds of plain torch or transformers in the same run (encoder layers only, whole stack, no padding), and the figures
once measured for these on another machine. Peak memory is that of the whole process, the mapped parts of files included
that were read; the part before is what Python, torch and the open screen take. UCE's files take 9 GB in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

GENES = 19_000


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes
    ----------
    reference
        CPU seconds per sample on one thread, once measured with plain torch or transformers at the same length on a
        Xeon with AVX-512.
    expressed
        Genes with counts in a sample.
    samples
        How many samples are embedded to measure.
    """

    model: str
    reference: float
    expressed: int
    samples: int
    make: Callable[[Any, Path, list[str]], object]
    options: dict[str, Any] = field(default_factory=dict)
    weights: str = ""


def _geneformer(**sizes: Any) -> Callable[[Any, Path, list[str]], object]:
    return lambda testing, folder, genes: testing.make_tiny_geneformer(folder, genes, **sizes)


_SCGPT = {"width": 512, "layers": 12, "heads": 8, "hidden": 512}
_UCE = {"width": 1280, "hidden": 5120, "token_width": 5120, "middle": 1024, "mouse_genes": 125_000}


def _scgpt(testing: Any, folder: Path, genes: list[str]) -> object:
    return testing.make_tiny_scgpt(folder, [*genes, *(f"other{i}" for i in range(60_694 - len(genes)))], **_SCGPT)


CASES = {
    "geneformer-v1": Case(
        "geneformer-v1", 0.48, 3000, 24, _geneformer(width=256, layers=6, heads=4, hidden=512)
    ),
    "geneformer-v1 1024 genes": Case(
        "geneformer-v1", 0.145, 1024, 48, _geneformer(width=256, layers=6, heads=4, hidden=512), weights="geneformer-v1"
    ),
    "geneformer-v2-104m 2048": Case(
        "geneformer-v2-104m", 4.2, 3000, 6,
        _geneformer(version=2, width=768, layers=12, heads=12, hidden=3072), {"max_length": 2048}, "geneformer-v2-104m",
    ),
    "geneformer-v2-104m 4096": Case(
        "geneformer-v2-104m", 12.8, 6000, 4,
        _geneformer(version=2, width=768, layers=12, heads=12, hidden=3072), {}, "geneformer-v2-104m",
    ),
    "geneformer-v2-316m 2048": Case(
        "geneformer-v2-316m", 12.5, 3000, 4,
        _geneformer(version=2, size="316M", width=1152, layers=18, heads=18, hidden=4608), {"max_length": 2048},
    ),
    "scgpt 1200": Case("scgpt", 0.72, 2500, 16, _scgpt, weights="scgpt"),
    "scgpt 1536": Case("scgpt", 1.04, 2500, 16, _scgpt, {"max_length": 1536}, "scgpt"),
    "uce-4l": Case(
        "uce-4l", 1.5, 4000, 12, lambda testing, folder, genes: testing.make_tiny_uce(folder, genes, layers=4, **_UCE)
    ),
    "uce-4l bool": Case(
        "uce-4l", 1.5, 4000, 12, lambda testing, folder, genes: testing.make_tiny_uce(folder, genes, layers=4, **_UCE),
        {"mask": "bool"}, "uce-4l",
    ),
    "uce-33l": Case(
        "uce-33l", 11.8, 4000, 4,
        lambda testing, folder, genes: testing.make_tiny_uce(folder, genes, model="uce-33l", layers=33, **_UCE),
    ),
    "cellplm": Case(
        "cellplm", 0.0026, 3000, 6000,
        lambda testing, folder, genes: testing.make_tiny_cellplm(folder, genes, width=1024, layers=4, dim=512),
    ),
    "cellplm chunks of 1024": Case(
        "cellplm", 0.0026, 3000, 6000,
        lambda testing, folder, genes: testing.make_tiny_cellplm(folder, genes, width=1024, layers=4, dim=512),
        {"batch_size": 1024}, "cellplm",
    ),
}  # fmt: skip


#: The fine-tuning step, which is no embedding: two samples, so that the fixed cost of the optimiser weighs much.
TRAINING = "scgpt training step 1536"

#: (length, layers, width, heads, hidden) of what plain torch is timed on.
PLAIN = {
    "geneformer-v1": (2048, 6, 256, 4, 512),
    "geneformer-v1 1024 genes": (1024, 6, 256, 4, 512),
    "geneformer-v2-104m 2048": (2048, 12, 768, 12, 3072),
    "geneformer-v2-104m 4096": (4096, 12, 768, 12, 3072),
    "geneformer-v2-316m 2048": (2048, 18, 1152, 18, 4608),
    "scgpt 1200": (1200, 12, 512, 8, 512),
    "scgpt 1536": (1536, 12, 512, 8, 512),
    "uce-4l": (1073, 4, 1280, 20, 5120),
    "uce-4l bool": (1073, 4, 1280, 20, 5120),
    "uce-33l": (1073, 33, 1280, 20, 5120),
}


def make_files(name: str, folder: Path) -> None:
    """Write the checkpoint and the screens of a case (in a process of its own, whose memory does not count)."""
    import anndata as ad
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp

    from txeval import testing

    case = CASES[name]
    genes = [f"GENE{number}" for number in range(GENES)]
    weights = folder / (case.weights or name)
    if not weights.exists():
        case.make(testing, weights, genes)
    rng = np.random.default_rng(0)
    for samples in (_fewer(case), case.samples):
        path = folder / f"{case.expressed}-{samples}.h5ad"
        if path.exists():
            continue
        columns = np.concatenate([np.sort(rng.permutation(GENES)[: case.expressed]) for _ in range(samples)])
        values = (1 + rng.poisson(2.0, len(columns))).astype(np.float32)
        x = sp.csr_matrix((values, columns, np.arange(samples + 1) * case.expressed), shape=(samples, GENES))
        obs = pd.DataFrame({"label": np.resize(["control", "a"], samples)}, index=[f"cell{i}" for i in range(samples)])
        ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)


def _fewer(case: Case) -> int:
    return max(2, case.samples // 4)


def measure(name: str, samples: int, folder: Path) -> None:
    """Embed a screen and print CPU seconds and peak memory as JSON."""
    import torch

    torch.set_num_threads(1)
    from txeval.data import Roles, open_screen
    from txeval.embed import EmbeddingContext, EmbeddingSpec, resolve

    case = CASES[name]
    embedder = resolve(EmbeddingSpec(name, case.model))
    with (
        tempfile.TemporaryDirectory() as work,
        open_screen(folder / f"{case.expressed}-{samples}.h5ad", Roles("label", ("control",))) as screen,
    ):
        before = _peak()
        start, wall = time.process_time(), time.perf_counter()
        options = {"weights": str(folder / (case.weights or name)), **case.options}
        made = embedder.embed(screen, options, EmbeddingContext(Path(work)))
        result = {
            "cpu": time.process_time() - start,
            "wall": time.perf_counter() - wall,
            "embedding": made.provenance["seconds"],
            "peak": _peak(),
            "before": before,
            "dim": made.shape[1],
        }
    print(json.dumps(result))


def measure_training(folder: Path) -> None:
    """Print CPU seconds per sample of a fine-tuning step of scGPT on two samples of 1,536 tokens."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    from txeval import testing
    from txeval.embed import scgpt, scgpt_finetuned

    weights = folder / "scgpt"
    if not weights.exists():
        _scgpt(testing, weights, [f"GENE{number}" for number in range(GENES)])
    files = scgpt.find_files(weights)
    settings, vocabulary = scgpt.load_settings(files), scgpt.load_vocabulary(files)
    model, _ = scgpt.load_model(files, settings, vocabulary, decoder=True, dropout=0.2)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    rng = np.random.default_rng(0)
    items = []
    for _ in range(2):
        tokens = np.concatenate([[vocabulary["<cls>"]], rng.permutation(GENES)[:1535]]).astype(np.int32)
        values = np.concatenate([[0], rng.integers(1, 51, 1535)]).astype(np.int16)
        items.append((tokens, scgpt_finetuned.mask_values(values, rng), values))
    batch = scgpt_finetuned.make_batch(items, pad_token=vocabulary["<pad>"])
    times = []
    for _ in range(3):
        start = time.process_time()
        scgpt_finetuned.train_step(model, optimizer, batch, micro_batch=1)
        times.append(time.process_time() - start)
    print(json.dumps({"cpu": sum(times[1:]) / len(times[1:]) / len(items), "peak": _peak()}))


def measure_plain(name: str) -> None:
    """Print CPU seconds per sample of the encoder of plain torch (or transformers) as JSON."""
    import torch

    torch.set_num_threads(1)
    length, layers, width, heads, hidden = PLAIN[name]
    if name.startswith("geneformer"):
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=1000,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=hidden,
            hidden_act="relu",
            max_position_embeddings=length,
        )
        model: Any = BertModel(config, add_pooling_layer=False).eval()
        tokens = torch.randint(1000, (1, length))

        def run() -> object:
            return model(input_ids=tokens, output_hidden_states=True)
    else:
        # With a padding mask torch's own fast path goes through nested tensors, which is slower on the CPU.
        torch.backends.mha.set_fastpath_enabled(False)
        layer = torch.nn.TransformerEncoderLayer(width, heads, hidden, 0.0, batch_first=True)
        model = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
        x = torch.randn(1, length, width)

        def run() -> object:
            return model(x)

    times = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
    print(json.dumps({"cpu": sum(times) / len(times)}))


def _peak() -> float:
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _child(*arguments: object) -> str:
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Measure the cases asked for and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"cases to measure (default: all): {', '.join([*CASES, TRAINING])}")
    parser.add_argument("--folder", type=Path, help="where the files are made and kept; default: a temporary folder")
    parser.add_argument("--do", nargs=2, metavar=("STEP", "SAMPLES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        step, samples = options.do
        if step == "make":
            make_files(options.names[0], options.folder)
        elif step == "train":
            measure_training(options.folder)
        elif step == "plain":
            measure_plain(options.names[0])
        else:
            measure(options.names[0], int(samples), options.folder)
        return
    heads = ("case", "dim", "s/sample", "plain", "ratio", "once", "samples/s", "peak GB", "before")
    print("{:26} {:>5} {:>9} {:>9} {:>6} {:>9} {:>9} {:>8} {:>7}".format(*heads))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.names or [*CASES, TRAINING]:
            if name == TRAINING:
                found = json.loads(_child(name, "--folder", folder, "--do", "train", 0))
                print(
                    f"{name:26} {'':5} {found['cpu']:9.4f} {'':9} {'':6} {10.5:9.4f} {'':9} {found['peak']:8.2f}",
                    flush=True,
                )
                continue
            case = CASES[name]
            _child(name, "--folder", folder, "--do", "make", 0)
            runs = [
                json.loads(_child(name, "--folder", folder, "--do", "measure", samples))
                for samples in (_fewer(case), case.samples)
            ]
            seconds = (runs[1]["cpu"] - runs[0]["cpu"]) / (case.samples - _fewer(case))
            plain = json.loads(_child(name, "--do", "plain", 0))["cpu"] if name in PLAIN else float("nan")
            print(
                f"{name:26} {runs[1]['dim']:5} {seconds:9.4f} {plain:9.4f} {seconds / plain:6.2f} {case.reference:9.4f}"
                f" {1 / seconds:9.3f} {runs[1]['peak']:8.2f} {runs[1]['before']:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
