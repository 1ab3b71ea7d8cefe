"""Reports of real runs in a headless browser: what is shown is what is on disk, and everything can be used."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from txeval.cli import main
from txeval.report import aggregate
from txeval.report.html import ReportOptions, write_report
from txeval.report.html.build import render_report
from txeval.report.layout import number
from txeval.run import Store, merge, read_details, read_scores


def shown_scores(page: Any) -> dict[tuple[int, int], str]:
    """(column, model) -> text of the number in the summary table."""
    cells = page.eval_on_selector_all(
        "td.cell",
        "all => all.map(td => [+td.dataset.column, +td.dataset.model, td.querySelector('.value').textContent])",
    )
    return {(column, model): text for column, model, text in cells}


def embedded(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.locator("#data").text_content())
    return found["views"][0]


@pytest.mark.parametrize("name", ["norman", "papalexi"])
def test_the_numbers_are_those_on_disk(name: str, request: pytest.FixtureRequest, report: Any, opened: Any) -> None:
    folder: Path = request.getfixturevalue(name)
    page = opened(report(folder)).page
    data = embedded(page)
    frame = aggregate(read_scores(folder))
    keys = ["task", "metric", "subset", "model", "post_processing"]
    values = {tuple(row[:-1]): row[-1] for row in frame[[*keys, "value"]].itertuples(index=False, name=None)}
    page.get_by_label("All scores").first.check()
    checked = 0
    for post, post_name in enumerate(data["posts"]):
        page.get_by_label("Post-processing").first.select_option(str(post))
        shown = shown_scores(page)
        for c, column in enumerate(data["columns"]):
            for m, model in enumerate(data["models"]):
                key = (column["task"], column["metric"], column["subset"], model["label"], post_name)
                value = values.get(key, math.nan)
                assert shown.get((c, m), "–") == number(value), key
                checked += not math.isnan(value)
    assert checked == frame["value"].notna().sum() > 50
    # And the best of each, against an independent choice.
    page.get_by_label("Post-processing").first.select_option("best")
    shown = shown_scores(page)
    for c, column in enumerate(data["columns"]):
        for m, model in enumerate(data["models"]):
            own = [
                value
                for key, value in values.items()
                if key[:4] == (column["task"], column["metric"], column["subset"], model["label"])
            ]
            own = [value for value in own if not math.isnan(value)]
            expected = number((max if column["higher"] else min)(own)) if own else "–"
            assert shown.get((c, m), "–") == expected


def rows_of(page: Any, part: str) -> list[list[str]]:
    rows: list[list[str]] = page.eval_on_selector_all(
        f"[data-part={part}] table.long tbody tr[aria-rowindex]",
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))",
    )
    return rows


def header_of(page: Any, part: str) -> list[str]:
    return [text.rstrip(" ↓↑") for text in page.locator(f"[data-part={part}] table.long thead th").all_text_contents()]


def test_single_perturbations_are_those_on_disk_and_can_be_sorted_and_found(
    norman: Path, report: Any, opened: Any
) -> None:
    page = opened(report(norman)).ready()
    part = page.locator("[data-part=perturbations]")
    table = read_details(norman, "consistency", "perturbations")
    probe = read_details(norman, "linear_probe", "perturbations")
    for model, post in (("pca", "raw"), ("log expression", "tvn")):
        part.get_by_label("Embedding").select_option(label=model)
        part.get_by_label("Post-processing").select_option(label={"raw": "no post-processing", "tvn": "TVN"}[post])
        page.wait_for_timeout(100)
        header = header_of(page, "perturbations")
        # The choice holds for every part.
        for other in ("map", "cells"):
            chosen = page.locator(f"[data-part={other}]").get_by_label("Embedding")
            assert chosen.evaluate("node => node.selectedOptions[0].textContent") == model
        own = table[(table["model"] == model) & (table["post_processing"] == post)].set_index("perturbation")
        accuracy = (
            probe[(probe["model"] == model) & (probe["post_processing"] == post)].groupby("perturbation")["top1"].mean()
        )
        rows = rows_of(page, "perturbations")
        assert len(rows) > 10
        for row in rows:
            cell = dict(zip(header, row, strict=True))
            label = cell["Perturbation"]
            # Three decimals, of numbers that are packed in 65,534 steps.
            for title, column in (("Consistency", "avg_cosine"), ("Magnitude", "energy_distance")):
                step = (own[column].max() - own[column].min()) / 65534
                assert float(cell[title]) == pytest.approx(own.loc[label, column], abs=step + 5e-4)
            assert int(cell["Samples"]) == own.loc[label, "n_samples"]
            if label in accuracy:
                assert float(cell["Linear probe"]) == pytest.approx(accuracy[label], abs=6e-4)
            else:
                assert cell["Linear probe"] == "–"
    # Sorted by consistency to begin with, then by magnitude, both ways; missing values last.
    place = header.index("Magnitude")
    part.get_by_role("button", name="Magnitude", exact=True).click()
    down = [float(row[place]) for row in rows_of(page, "perturbations")]
    assert down == sorted(down, reverse=True)
    assert part.locator("th[aria-sort=descending]").text_content().startswith("Magnitude")
    part.get_by_role("button", name="Magnitude", exact=True).click()
    up = [float(row[place]) for row in rows_of(page, "perturbations")]
    assert up == sorted(up)
    # Search, and one perturbation opened.
    part.get_by_label("Find perturbation").fill("klf1")
    expect(part.locator(".status")).to_contain_text(" of 33 shown")
    names = [row[0] for row in rows_of(page, "perturbations")]
    assert names and all("KLF1" in name for name in names)
    part.get_by_role("button", name="KLF1", exact=True).first.click()
    panel = part.get_by_role("region", name="One perturbation", exact=True)
    panel.get_by_role("heading", name="KLF1", exact=True).wait_for()
    assert panel.locator("tbody tr").count() >= 2
    # A neighbour leads to its own panel.
    chip = panel.locator("button.chip").first
    label = chip.locator("bdi").text_content()
    chip.click()
    panel.get_by_role("heading", name=label, exact=True).wait_for()


def test_rows_can_be_saved(norman: Path, report: Any, opened: Any, tmp_path: Path) -> None:
    page = opened(report(norman)).ready()
    with page.expect_download() as download:
        page.locator("[data-part=perturbations]").get_by_role("button", name="Save rows as CSV").click()
    download.value.save_as(tmp_path / "rows.csv")
    saved = pd.read_csv(tmp_path / "rows.csv")
    assert len(saved) == 33
    assert saved["Consistency"].is_monotonic_decreasing


def test_embeddings_are_sorted_filtered_and_told(norman: Path, report: Any, opened: Any) -> None:
    page = opened(report(norman)).page
    data = embedded(page)
    column = next(i for i, one in enumerate(data["columns"]) if one["metric"] == "top1" and one["task"] == "knn")
    page.locator(f'table.heat button[data-column="{column}"]').click()
    values = [
        float(text) for text in page.locator(f'table.heat td.cell[data-column="{column}"] .value').all_text_contents()
    ]
    assert values == sorted(values, reverse=True)
    page.locator(f'table.heat button[data-column="{column}"]').click()
    assert [
        float(t) for t in page.locator(f'table.heat td.cell[data-column="{column}"] .value').all_text_contents()
    ] == sorted(values)
    page.get_by_label("Find embedding").fill("pca")
    expect(page.locator("table.heat tbody tr")).to_have_count(2)
    assert page.locator("table.heat tbody th bdi").all_text_contents() == ["pca"]
    # By keyboard: into the table, then with the arrows; the tip tells the interval.
    page.locator("table.heat td[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.tagName") == "TD"
    page.locator("#tip").wait_for()
    assert "95 % interval" in page.locator("#tip").text_content()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_every_score_of_a_level_can_be_switched_to(norman: Path, report: Any, opened: Any) -> None:
    page = opened(report(norman)).ready()
    level = page.locator("[data-task=reconstruction]")
    before = level.locator("svg[role=img]").first.get_attribute("aria-label")
    level.get_by_label("Score").select_option(label="MSE (further score)")
    page.wait_for_timeout(200)
    after = level.locator("svg[role=img]").first.get_attribute("aria-label")
    assert "MSE" in after != before
    level.get_by_text("The numbers as a table").click()
    data = embedded(page)
    cells = level.locator("table.plain tbody td").all_text_contents()
    assert len(cells) == len(data["models"]) * len(data["posts"])
    frame = aggregate(read_scores(norman)).query("task == 'reconstruction' and metric == 'mse'")
    texts = {(row["model"], row["post_processing"]): number(row["value"]) for row in frame.to_dict("records")}
    expected = [texts[model["label"], post] for model in data["models"] for post in data["posts"]]
    assert [text.split(" ")[0] for text in cells] == expected


def test_found_relationships_are_the_recall_on_disk(ipsc: Path, report: Any, opened: Any) -> None:
    page = opened(report(ipsc)).ready()
    part = page.locator("[data-part=relations]")
    rows = read_details(ipsc, "relationships", "relations")
    rows = rows[rows["model"] == "programs"]
    scores = read_scores(ipsc).query("model == 'programs' and metric == 'recall'").set_index("subset")["value"]
    said = part.locator("p.about").text_content()
    for database, own in rows.groupby("database"):
        found = int((own["link_5"] != "").sum())
        assert f"{database} {found} of {len(own)}" in said
        assert found / len(own) == pytest.approx(scores[database])
    part.get_by_label("Database").select_option(label="CORUM")
    part.get_by_label("Show").select_option(label="missed")
    missed = rows[(rows["database"] == "CORUM") & (rows["link_5"] == "")]
    assert part.locator("[role=status]", has_text="shown").text_content() == f"{len(missed)} of {len(rows)} shown"
    pairs = {(row[0], row[1]) for row in rows_of(page, "relations")}
    assert pairs <= set(zip(missed["gene_a"], missed["gene_b"], strict=True))
    assert {row[-1] for row in rows_of(page, "relations")} == {"missed"}
    # The map is of the same embedding: its strongest pair is the strongest of all.
    top = page.locator("[data-part=map] table tbody tr").first
    assert float(top.locator("td").first.text_content()) >= rows["cosine"].max() - 1e-3


def test_the_two_dimensional_view_can_be_coloured_and_marked(norman: Path, report: Any, opened: Any) -> None:
    page = opened(report(norman)).ready()
    part = page.locator("[data-part=cells]")
    assert "controls 100" in part.locator("ul.keys").text_content()
    part.get_by_label("Colour", exact=True).select_option("batch")
    assert part.locator("ul.keys li").count() >= 8
    part.get_by_label("Mark perturbation").fill("CEBPE+RUNX1T1")
    page.keyboard.press("Enter")
    assert "CEBPE+RUNX1T1" in part.locator("ul.keys").text_content()
    assert "CEBPE+RUNX1T1" in part.locator("canvas").get_attribute("aria-label")
    pixels = """node => {
        const data = node.getContext("2d").getImageData(0, 0, node.width, node.height).data;
        const seen = new Set();
        for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) seen.add(data.slice(i, i + 3).join());
        return seen.size;
    }"""
    assert part.locator("canvas").evaluate(pixels) > 3
    assert page.locator("[data-part=map] canvas").evaluate(pixels) > 20


def test_hostile_labels_are_text(hostile: Path, report: Any, opened: Any) -> None:
    page = opened(report(hostile)).ready()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, iframe, object, embed").count() == 0
    assert page.locator("script").count() == page.locator("body > script").count()
    assert "<script>window.hacked = 5</script>" in page.locator(".kicker").text_content()
    labels = {row[0] for row in rows_of(page, "perturbations")}
    assert "<script>window.hacked = 1</script>" in labels
    assert "</script><script>window.hacked = 3</script>" in labels
    assert "👩‍🔬 emoji & <b>bold</b>" in labels
    models = page.locator("table.heat tbody th bdi").all_text_contents()
    assert "<img src=x onerror=window.hacked=6>" in models
    for button in page.locator("[data-part=perturbations] button.name").all():
        button.click()
    page.locator("[data-part=perturbations] .panel").wait_for()
    page.locator("[data-part=cells]").get_by_label("Colour", exact=True).select_option("batch")
    assert "</script>" in page.locator("[data-part=cells] ul.keys").text_content()
    # A right-to-left label does not turn what stands behind it.
    assert (
        page.locator("table.heat tbody th bdi").first.evaluate("node => getComputedStyle(node).unicodeBidi")
        == "isolate"
    )
    # The long label does not make the page wider than the window.
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("window.hacked") is None


def test_a_spreadsheet_gets_no_formula(hostile: Path, report: Any, opened: Any, tmp_path: Path) -> None:
    page = opened(report(hostile)).ready()
    with page.expect_download() as download:
        page.locator("[data-part=perturbations]").get_by_role("button", name="Save rows as CSV").click()
    download.value.save_as(tmp_path / "rows.csv")
    assert "\n'=HYPERLINK(1)," in (tmp_path / "rows.csv").read_text("utf-8")


def test_no_script_but_the_report_s_own_may_run(norman: Path, report: Any, browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(report(norman).as_uri())
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 7'}))"
    )
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'https://example.org/x.png'}))")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert sum("Content Security Policy" in text for text in said) == 2
    context.close()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("norman", {"color_scheme": "light"}),
        ("norman", {"color_scheme": "dark"}),
        ("ipsc", {"color_scheme": "light", "viewport": {"width": 400, "height": 850}}),
        ("hostile", {"color_scheme": "dark", "viewport": {"width": 400, "height": 850}}),
    ],
)
def test_axe_finds_no_serious_fault(
    name: str, options: dict[str, Any], request: pytest.FixtureRequest, report: Any, opened: Any
) -> None:
    page = opened(report(request.getfixturevalue(name)), reduced_motion="reduce", **options).ready()
    buttons = page.locator("[data-part=perturbations] button.name")
    if buttons.count():
        buttons.first.click()
    page.locator("summary", has_text="every parameter").click()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    found = Axe().run(page).response["violations"]
    grave = [
        (rule["id"], node["html"][:200], node["failureSummary"])
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
    assert grave == []


def test_it_is_readable_without_javascript(norman: Path, report: Any, opened: Any) -> None:
    page = opened(report(norman), java_script_enabled=False).page
    text = page.locator("body").inner_text()
    scores = read_scores(norman)
    best = aggregate(scores).query("task == 'knn' and metric == 'top1' and model == 'pca'")["value"].max()
    assert page.locator("h1").inner_text() in text
    assert number(best) in page.locator("table.heat").inner_text()
    assert "50 are needed for a map of relationships" in text
    assert "txeval" in page.locator("#provenance").inner_text()
    assert page.locator(".controls:visible").count() == 0


def test_it_prints(norman: Path, report: Any, opened: Any) -> None:
    one = opened(report(norman))
    page = one.ready()
    page.emulate_media(media="print")
    assert page.locator(".controls:visible, header.top:visible").count() == 0
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page>") + pdf.count(b"/Type /Page ") >= 4


def test_light_and_dark_can_be_switched(norman: Path, report: Any, opened: Any) -> None:
    page = opened(report(norman), color_scheme="light").ready()
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Switch to dark colours").click()
    dark = page.evaluate(background)
    assert light != dark
    assert np.mean([int(part) for part in dark[4:-1].split(",")]) < 60
    page.get_by_role("button", name="Switch to light colours").click()
    assert page.evaluate(background) == light


def test_several_screens_have_a_switch(norman: Path, papalexi: Path, results: Path, opened: Any) -> None:
    merge([norman, papalexi], results / "both")
    page = opened(write_report(results / "both")).ready()
    first = page.locator("h1:visible").inner_text()
    assert page.locator("h1:visible").count() == 1
    page.locator("#which").select_option("1")
    page.locator("#view-1 table.heat button.sort").first.wait_for()
    assert page.locator("h1:visible").count() == 1
    assert page.locator("h1:visible").inner_text() != first
    # Merging leaves embeddings behind: the parts that need them say so.
    page.locator("#map-1").scroll_into_view_if_needed()
    page.locator("#map-1 [data-ready]").wait_for()
    assert "merging leaves embeddings behind" in page.locator("#map-1").inner_text()


# The file


def test_the_page_allows_its_own_script_alone_and_loads_nothing(norman: Path, report: Any) -> None:
    text = report(norman).read_text("utf-8")
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1])
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    without_data = re.sub(r"<script type.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=\"(?!#)", without_data)
    assert "@import" not in text
    assert "url(" not in text


def test_the_same_folder_gives_the_same_file(hostile: Path, report: Any) -> None:
    assert render_report(hostile, ReportOptions()) == report(hostile).read_text("utf-8")


def test_the_roles_of_the_samples_stay_with_the_results(norman: Path) -> None:
    fingerprint = json.loads((norman / "manifest.json").read_text())["screens"][0]["fingerprint"]
    table = Store(norman).load_samples(fingerprint)
    assert table is not None
    assert len(table) == 3375
    assert table["is_control"].sum() == 100
    assert set(table.loc[table["is_control"], "perturbation"]) == {"control"}
    assert table["batch"].nunique() == 8
    single = table[table["perturbation"] == "KLF1"]
    assert set(single["target_gene"]) == {"KLF1"}


def test_without_samples_or_embeddings_it_says_what_is_missing(hostile: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(hostile, folder)
    shutil.rmtree(folder / "samples")
    text = write_report(folder).read_text("utf-8")
    assert "which sample got which perturbation is not known" in text
    text = render_report(hostile, ReportOptions(embeddings=False))
    assert "--no-embeddings" in text


def test_a_damaged_embedding_costs_its_pictures_alone(hostile: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(hostile, folder)
    for path in (folder / "embeddings").glob("*.np[yz]"):
        path.write_bytes(b"nonsense")
    text = write_report(folder).read_text("utf-8")
    assert "does not hold the embedding" in text


def test_the_command_makes_it_and_prints_its_path(
    hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(hostile), "--out", str(out), "--cells", "0", "--plain"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert printed.err == ""
    assert out.stat().st_size > 50_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "does not exist"),
        (["."], "holds no results"),
        (["HOSTILE", "--layout", "tsne"], "layout"),
        (["HOSTILE", "--out", "no/such/folder/r.html"], "does not exist"),
        (["HOSTILE", "--out", "."], "is a folder"),
        (["HOSTILE", "--cells", "30000"], "20,000"),
    ],
)
def test_bad_input_is_told(
    arguments: list[str],
    message: str,
    hostile: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(hostile) if word == "HOSTILE" else word for word in arguments]
    assert main(["report", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_large_screen_keeps_one_post_processing_of_each_embedding(
    norman: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("txeval.report.html.build.MOST_ROWS", 100)
    monkeypatch.setattr("txeval.report.html.build.FEW_IN_MAP", 10)
    text = render_report(norman, ReportOptions(cells=50))
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, flags=re.DOTALL)[1])["views"][0]
    assert len(data["pairs"]) == len(data["models"])
    assert "To keep this file small" in data["notes"][0]
    assert len(data["map"]["labels"]) == 10
    assert data["map"]["how"] == "with the most samples"
    assert data["cells2d"]["n"] == 50
    frame = pd.DataFrame(data["cells"])
    # Scores stay complete.
    assert frame[[1, 2]].drop_duplicates().shape[0] == len(data["models"]) * len(data["posts"])
