"""Size of the report of a large benchmark, and how long a browser takes to open it.

Writes a simulated results folder of 10,000 perturbations and 40 embeddings under four post-processings, makes its
report, opens it in headless Chromium, and compares with a page that holds the same numbers of single perturbations as
plain JSON.

    python benchmarks/bench_report.py [--perturbations 10000] [--embeddings 40] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from txeval.postprocess import POST_PROCESSINGS
from txeval.report.html import write_report
from txeval.run import Store
from txeval.run.files import FORMAT, write_document, write_table
from txeval.run.folder import seal_of
from txeval.run.rows import score_frame
from txeval.tasks.registry import list_tasks, metrics_of

DATABASES = {"CORUM": 38_000, "HuMAP": 31_000, "Reactome": 9_000, "SIGNOR": 4_000, "StringDB": 24_000}
BATCHES = 267
GENES = 8_000
SEEDS = 5
LIMIT_MB, LIMIT_SECONDS = 15, 3


def simulated(folder: Path, n: int, n_models: int, samples_each: int = 4, d: int = 32) -> None:
    """Write a results folder as `txeval run` leaves it: scores, details, samples, embeddings, manifest."""
    rng, store = np.random.default_rng(0), Store(folder)
    for name in ("details", "samples", "embeddings", "plans", "cells", "postprocessing"):
        (folder / name).mkdir(parents=True)
    models = ["random", *(f"model {i:02d}" for i in range(1, n_models))]
    prints = [f"{i:064x}" for i in range(n_models)]
    labels = np.array([f"GENE{i:05d}" for i in range(n)])
    screen = "s" * 64
    _scores(models, prints, screen, rng).to_parquet(folder / "scores.parquet")
    _details(folder / "details", models, labels, rng)
    n_controls = n * samples_each // 20
    codes = np.concatenate([np.repeat(np.arange(n), samples_each), np.full(n_controls, n)])
    names = np.append(labels, "non-targeting").astype(object)
    table = pd.DataFrame({"perturbation": names[codes]})
    table["target_gene"] = np.append(labels, "").astype(object)[codes]
    table["batch"] = np.char.add("gem", rng.integers(0, BATCHES, len(codes)).astype(str)).astype(object)
    table["is_control"] = codes == n
    table = table.astype({"perturbation": "category", "target_gene": "category", "batch": "category"})
    seal = write_table(store.samples_path(screen), table)
    write_document(folder / "samples" / f"{screen}.json", {"file": seal})
    effect = rng.normal(size=(n + 1, d))
    for key in prints:
        noise = rng.normal(size=(len(codes), d))
        values = (effect[codes] @ rng.normal(size=(d, d)) + noise).astype("f4")
        store.save_embedding(key, values, {"shape": list(values.shape)})
    about = {
        "fingerprint": screen,
        "name": "simulated",
        "path": "simulated.h5ad",
        "n": len(codes),
        "n_file": len(codes),
        "n_genes": 0,
        "report": {},
        "roles": {},
    }
    plain = {"options": {}, "stochastic": False, "added": False, "dataset": "simulated", "provenance": []}
    manifest = {
        "format": FORMAT,
        "txeval_version": "simulated",
        "state": "complete",
        "screens": [about],
        "protocols": [{"name": "paper", "post_processing": {}}],
        "embeddings": [
            {"label": m, "source": "pca", "shape": [len(codes), d], "content": k, "fingerprints": [k], **plain}
            for m, k in zip(models, prints, strict=True)
        ],
        "runs": [{"started": "2026-01-01", "state": "finished", "command": ["txeval", "run"], "versions": {}}],
        "warnings": ["simulated data"],
        "files": {
            str(path.relative_to(folder)): seal_of(path)
            for path in [folder / "scores.parquet", *(folder / "details").glob("*.parquet")]
        },
    }
    write_document(folder / "manifest.json", manifest)


def _scores(models: list[str], prints: list[str], screen: str, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for task in list_tasks():
        for metric in metrics_of(task):
            subsets = list(DATABASES) if task.name == "relationships" else [""]
            seeds = range(SEEDS) if task.name in ("linear_probe", "reconstruction") else [None]
            for m, model in enumerate(models):
                for post in POST_PROCESSINGS:
                    for subset in subsets:
                        level = rng.uniform(0.05, 0.6)
                        for seed in seeds:
                            value = level + rng.normal(scale=0.005)
                            rows.append(
                                {
                                    "dataset": "simulated", "split": "paper", "model": model,
                                    "source": "random" if model == "random" else "pca", "post_processing": post,
                                    "task": task.name, "level": task.level, "metric": metric.name, "subset": subset,
                                    "seed": seed, "protocol": "paper", "status": "ok", "value": value,
                                    "low": value - 0.03, "high": value + 0.03, "interval_unit": "perturbation",
                                    "chance": 0.05, "n_samples": 1_000_000, "n_groups": 10_000, "group": "perturbation",
                                    "left_out": '{"perturbations with fewer than 2 samples": 12}',
                                    "notes": "null: 1000 perturbations of unexpressed targets | simulated",
                                    "screen_fingerprint": screen, "embedding_fingerprint": prints[m],
                                }
                            )  # fmt: skip
    return score_frame(rows)


def _details(folder: Path, models: list[str], labels: Any, rng: np.random.Generator) -> None:
    n = len(labels)
    first, second = (rng.integers(0, n, sum(DATABASES.values())) for _ in range(2))
    database = np.repeat(list(DATABASES), list(DATABASES.values()))

    def accuracy() -> dict[str, Any]:
        return {"perturbation": labels, "top1": rng.binomial(60, 0.1, n) / 60}

    def consistency() -> dict[str, Any]:
        p = rng.integers(1, 1001, n) / 1000
        return {
            "perturbation": labels, "n_samples": np.full(n, 200), "in_null": np.zeros(n, bool),
            "avg_cosine": rng.normal(0.2, 0.1, n), "p_value": p, "p_adjusted": np.maximum(p, 0.02),
            "energy_distance": rng.gamma(2, 1, n), "magnitude_p_value": rng.permutation(p),
        }  # fmt: skip

    def relations() -> dict[str, Any]:
        cosine = rng.uniform(-1, 1, len(first))
        link = np.select([cosine < -0.9, cosine > 0.9], ["low", "high"], default="")
        return {
            "database": database,
            "gene_a": labels[first],
            "gene_b": labels[second],
            "cosine": cosine,
            "rank": (cosine + 1) / 2,
            "link_5": link,
        }

    tables = {
        "consistency.perturbations": consistency,
        "knn.perturbations": accuracy,
        "linear_probe.perturbations": accuracy,
        "relationships.relations": relations,
        "reconstruction.genes": lambda: {"gene": np.arange(GENES).astype(str), "spearman": rng.normal(0.2, 0.1, GENES)},
        "batch_mixing.batches": lambda: {"batch": np.arange(BATCHES).astype(str), "ilisi": rng.normal(20, 2, BATCHES)},
    }
    for name, make in tables.items():
        writer = None
        seeds = range(SEEDS) if name.startswith("linear") else [None]
        for model in models:
            for post in POST_PROCESSINGS:
                for seed in seeds:
                    content = make()
                    size = len(next(iter(content.values())))
                    front = {"dataset": "simulated", "protocol": "paper", "model": model, "post_processing": post}
                    columns = {key: pa.array([value] * size) for key, value in front.items()}
                    columns["seed"] = pa.array([seed] * size, type=pa.int64())
                    columns.update({key: pa.array(value) for key, value in content.items()})
                    table = pa.table(columns)
                    writer = writer or pq.ParquetWriter(folder / f"{name}.parquet", table.schema)
                    writer.write_table(table)
        assert writer is not None  # there is a model
        writer.close()


def plain_page(folder: Path, n: int, n_models: int, path: Path) -> None:
    """The alternative: the same numbers of single perturbations as plain JSON, shown in no way."""
    rng = np.random.default_rng(1)
    names = ["cosine", "p", "p_adjusted", "energy", "energy_p", "linear", "knn", "near1", "near2", "near3"]
    data = {f"model {m}": {name: rng.random(n).round(4).tolist() for name in names} for m in range(n_models)}
    text = json.dumps(data, separators=(",", ":"))
    script = "document.title = Object.keys(JSON.parse(document.getElementById('d').textContent)).length"
    path.write_text(f'<!doctype html><script type="application/json" id="d">{text}</script><script>{script}</script>')


def opened(browser: Any, path: Path, *, report: bool) -> dict[str, float]:
    """Milliseconds until the file is loaded and drawn, and (report) until single parts are."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, bypass_csp=True)
    page = context.new_page()
    start = time.perf_counter()
    page.goto(path.as_uri(), wait_until="load")
    # Two frames later everything that the script made is on the screen.
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    found = {"opened": 1000 * (time.perf_counter() - start)}
    if report:
        page.wait_for_function("!document.querySelector('[data-part=level]:not([data-ready])')", timeout=120_000)
        found["levels"] = 1000 * (time.perf_counter() - start)
    for part in ("perturbations", "relations", "map", "cells") if report else ():
        start = time.perf_counter()
        page.evaluate(f"document.getElementById('{part}-0').scrollIntoView({{behavior: 'instant'}})")
        page.locator(f"[data-part={part}][data-ready]").wait_for(state="attached", timeout=120_000)
        found[part] = 1000 * (time.perf_counter() - start)
    if report:
        start = time.perf_counter()
        page.locator("[data-part=perturbations] button[data-key=energy]").click()
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found["sort"] = 1000 * (time.perf_counter() - start)
        start = time.perf_counter()
        page.locator("[data-part=perturbations]").get_by_label("Embedding").select_option(index=20)
        page.locator("[data-part=perturbations] tr[aria-rowindex]").first.wait_for()
        found["other embedding"] = 1000 * (time.perf_counter() - start)
        found["memory_mb"] = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
    context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--perturbations", type=int, default=10_000)
    parser.add_argument("--embeddings", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder for the simulated results and the report")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base = args.keep or Path(temporary)
        folder = base / "simulated"
        if not folder.exists():
            simulated(folder, args.perturbations, args.embeddings)
        start = time.perf_counter()
        report = write_report(folder, base / "report.html")
        making = time.perf_counter() - start
        plain = base / "plain.html"
        plain_page(folder, args.perturbations, args.embeddings, plain)
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            path = os.environ.get("TXEVAL_CHROMIUM") or shutil.which("chromium")
            browser = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-gpu", "--enable-precise-memory-info"]
            )
            ours = pd.DataFrame([opened(browser, report.resolve(), report=True) for _ in range(args.repeats)]).median()
            theirs = pd.DataFrame(
                [opened(browser, plain.resolve(), report=False) for _ in range(args.repeats)]
            ).median()
            browser.close()
        size, other = (file.stat().st_size / 1e6 for file in (report, plain))
        posts = len(POST_PROCESSINGS)
        print(f"{args.perturbations:,} perturbations x {args.embeddings} embeddings x {posts} post-processings")
        print(f"made in {making:.0f} s")
        print(f"size      {size:6.1f} MB (limit {LIMIT_MB}); the alternative {other:.1f} MB: {size / other:.2f} x")
        seconds, slow = ours["opened"] / 1000, theirs["opened"] / 1000
        print(
            f"opened in {seconds:6.2f} s  (limit {LIMIT_SECONDS}); the alternative {slow:.2f} s: {seconds / slow:.2f} x"
        )
        for name in ("levels", "perturbations", "relations", "map", "cells", "sort", "other embedding"):
            print(f"{name:<15} {ours[name] / 1000:6.2f} s")
        print(f"memory of the page's script {ours['memory_mb']:.0f} MB")


if __name__ == "__main__":
    main()
