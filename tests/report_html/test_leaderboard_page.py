"""A leaderboard of real runs in a headless browser."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from txeval.report.layout import number
from txeval.report.leaderboard import load_sources, make_boards, write_site


@pytest.fixture(scope="module")
def site(norman: Path, ipsc: Path, hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    sources = load_sources([norman, ipsc, hostile])
    boards = make_boards(sources)
    out = tmp_path_factory.mktemp("leaderboard") / "site"
    write_site(boards, sources, out, title="A leaderboard")
    return boards, out / "index.html"


def test_the_numbers_are_those_of_the_boards(site: Any, opened: Any) -> None:
    boards, path = site
    page = opened(path).page
    assert page.evaluate("window.hacked") is None
    for board in boards:
        rows = page.locator(f"#{board.id} tbody tr:not(.group)").all()
        assert len(rows) == len(board.rows)
        for row, line in zip(board.rows, rows, strict=True):
            cells = line.locator("td").all()
            for column, shown in zip(board.columns, cells, strict=True):
                cell = row.cells.get(column.key)
                text = shown.inner_text()
                if cell is None or math.isnan(cell.value):
                    assert "no score" in text or "not in the paper" in text
                else:
                    assert text.startswith(number(cell.value))


def test_sort_find_choose_and_theme(site: Any, opened: Any) -> None:
    boards, path = site
    page = opened(path).page
    board = boards[0]
    place = next(i for i, column in enumerate(board.columns, start=1) if column.metric == "top5")

    def shown() -> list[float]:
        found = page.eval_on_selector_all(
            f"#{board.id} tbody:first-of-type tr:not(.group)",
            "(rows, i) => rows.map(r => r.children[i].dataset.value ?? null)",
            place,
        )
        return [math.nan if value is None else float(value) for value in found]

    head = page.locator(f"#{board.id} thead th[data-place='{place}'] button")
    head.click()
    assert shown() == sorted(shown(), reverse=True)
    head.press("Enter")
    assert shown() == sorted(shown())
    assert page.locator(f"#{board.id} th[aria-sort='ascending']").count() == 1

    page.get_by_label("Find a model").fill("pca")
    visible = page.locator(f"#{board.id} tbody tr:not(.group):visible").all_inner_texts()
    assert visible and all("pca" in text.lower() for text in visible)
    page.get_by_label("Find a model").fill("")

    page.locator("#which").select_option(board.id)
    assert page.locator("section.board:visible").count() == 1
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_of_accessibility_and_no_overflow(site: Any, opened: Any, width: int, scheme: str) -> None:
    _, path = site
    page = opened(path, viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    serious = [(item["id"], item["nodes"][0]["html"]) for item in found if item["impact"] in ("serious", "critical")]
    assert serious == []


def test_it_is_readable_without_scripts(site: Any, opened: Any) -> None:
    boards, path = site
    page = opened(path, java_script_enabled=False).page
    assert page.get_by_text("Published: Bendidi").count() >= 2
    assert page.locator("#search").is_hidden()
    assert page.locator(f"#{boards[0].id} thead").inner_text().count("top") >= 2
