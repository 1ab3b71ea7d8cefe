"""Small real runs, their reports, and a headless browser that allows no network."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from txeval.protocol import Protocol, load_protocol
from txeval.report.html import write_report
from txeval.run import NullProgress, build_config, execute, make_plan

HOSTILE = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "</script><script>window.hacked = 3</script>",
    "'; alert(1); //",
    "{{constructor.constructor('window.hacked = 4')()}}",
    "gene-" + "long" * 120,
    "\u202eright to left\u202c עברית",
    "👩‍🔬 emoji & <b>bold</b>",
    "line one\nline two\u2028line three",
    "=HYPERLINK(1)",
]


def quick() -> Protocol:
    """The paper's protocol with little training and few draws."""
    paper = load_protocol("paper")
    tasks = {
        **paper.tasks,
        "linear_probe": {**paper.tasks["linear_probe"], "epochs": 15},
        "reconstruction": {**paper.tasks["reconstruction"], "epochs": 1},
        "consistency": {**paper.tasks["consistency"], "draws": 100},
        "knn": {"k": 51},
    }
    return dataclasses.replace(paper, name="quick", tasks=tasks)


def run(out: Path, **values: Any) -> Path:
    """A results folder."""
    config = build_config({"min_counts": 0, "seeds": 1, "protocol": quick(), "out": out, **values})
    outcome = execute(make_plan(config), progress=NullProgress())
    assert outcome.n_errors == 0
    return out


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all results and reports of these tests."""
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="session")
def norman(results: Path, data_dir: Path) -> Path:
    """Norman 2019: two embeddings, two post-processings, two seeds."""
    return run(
        results / "norman",
        screen=data_dir / "norman2019_k562_crispra_500hvg.h5ad",
        name="Norman 2019",
        layer="counts",
        roles={"perturbation": "perturbation", "control": ["control"], "batch": "gem_group"},
        embeddings=["pca@components=20", "log expression=X"],
        post_processing=["raw", "tvn"],
        seeds=2,
        relations=data_dir / "relationships",
    )


@pytest.fixture(scope="session")
def papalexi(results: Path, data_dir: Path) -> Path:
    """Papalexi 2021, every eighth cell: one embedding."""
    screen = anndata.read_h5ad(data_dir / "papalexi2021_thp1_ecciteseq_299genes.h5ad")[::8].copy()
    screen.write_h5ad(results / "papalexi.h5ad")
    return run(
        results / "papalexi",
        screen=results / "papalexi.h5ad",
        roles={"perturbation": "perturbation", "control": ["non-targeting"], "batch": "bio_rep"},
        embeddings=["pca@components=20"],
        post_processing=["raw", "centering"],
        relations=data_dir / "relationships",
    )


@pytest.fixture(scope="session")
def ipsc(results: Path, data_dir: Path) -> Path:
    """The iPSC map: 297 perturbed genes, level 5 alone."""
    return run(
        results / "ipsc",
        screen=data_dir / "ipsc_ec_perturbseq_298targets_x_120programs.h5ad",
        roles={"perturbation": "perturbation", "control": ["safe-targeting"]},
        embeddings=["programs=X@nan=0"],
        post_processing=["raw"],
        tasks=["relationships"],
        relations=data_dir / "relationships",
    )


@pytest.fixture(scope="session")
def hostile(results: Path) -> Path:
    """A screen whose labels are markup, quotes, very long, right to left or emoji, everywhere."""
    rng = np.random.default_rng(0)
    n = 400
    labels = np.array(["control", *HOSTILE])[rng.integers(0, len(HOSTILE) + 1, n)]
    batches = np.array(["<b>one</b>", "</script>", '"two"', "três"])[np.arange(n) % 4]
    obs = pd.DataFrame({"p": labels, "b": batches}, index=[f"<i>{i}</i>" for i in range(n)])
    screen = anndata.AnnData(rng.poisson(3, (n, 12)).astype(np.float32), obs=obs)
    screen.var_names = [f"<u>{i}</u>" for i in range(12)]
    for key in ("one", "two"):
        screen.obsm[key] = rng.normal(size=(n, 6)).astype(np.float32)
    screen.write_h5ad(results / "hostile.h5ad")
    return run(
        results / "hostile",
        screen=results / "hostile.h5ad",
        name="<script>window.hacked = 5</script>",
        roles={"perturbation": "p", "control": ["control"], "batch": "b"},
        embeddings=[
            {"label": "<img src=x onerror=window.hacked=6>", "source": "obsm:one"},
            {"label": "עברית \" ' & </td>", "source": "obsm:two"},
        ],
        tasks=["batch_mixing", "consistency", "knn"],
        post_processing=["raw", "centering"],
    )


@pytest.fixture(scope="session")
def report(results: Path) -> Any:
    """Make the report of a folder, once."""
    made: dict[Path, Path] = {}

    def make(folder: Path) -> Path:
        if folder not in made:
            made[folder] = write_report(folder)
        return made[folder]

    return make


# Browser

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """Path of a Chromium: TXEVAL_CHROMIUM, or the first that is installed."""
    return os.environ.get("TXEVAL_CHROMIUM") or next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; skipped without one, but not where CI is set."""
    path = chromium()
    if path is None:
        text = "no Chromium here: install it (Debian: apt-get install chromium), or name it in TXEVAL_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


class Opened:
    """A page, and everything that it should not have done."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1400, "height": 1000}, **options})
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.set_default_timeout(10_000)
        self.page.goto(path.resolve().as_uri())

    def ready(self) -> Any:
        """The page, with every part drawn."""
        for part in self.page.locator(".view:not([hidden]) [data-part]").all():
            if not part.get_attribute("data-part").startswith("summary"):
                part.evaluate("node => node.scrollIntoView({ behavior: 'instant' })")
                part.locator("xpath=self::*[@data-ready]").wait_for(state="attached", timeout=20_000)
        return self.page


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Open a report; at the end nothing may have been said, and nothing but the file have been asked for."""
    pages: list[Opened] = []

    def make(path: Path, **options: Any) -> Opened:
        pages.append(Opened(browser, path, **options))
        return pages[-1]

    yield make
    for one in pages:
        one.context.close()
    for one in pages:
        assert one.said == []
        assert len(one.asked) == 1
        assert one.asked[0].startswith("file:")
