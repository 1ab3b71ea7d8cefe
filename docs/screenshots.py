"""Pictures of a report: python docs/screenshots.py REPORT.html FOLDER, or REPORT.html FILE.png for one of its top."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

WIDTHS = {1400: 1000, 400: 850}
SECTIONS = ("answer", "scores", "levels", "perturbations", "relations", "map", "cells")


def draw_everything(page: Any) -> None:
    """Scroll to every part that is drawn when it comes near."""
    for part in page.locator(".view:not([hidden]) [data-part]").all():
        if not (part.get_attribute("data-part") or "").startswith("summary"):
            part.evaluate("node => node.scrollIntoView({ behavior: 'instant' })")
            part.locator("xpath=self::*[@data-ready]").wait_for(state="attached", timeout=60_000)
    # Parts that are drawn later push the others down.
    page.evaluate("window.scrollTo({ top: 0, behavior: 'instant' })")
    page.wait_for_timeout(300)


def main() -> None:
    report, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    chromium = os.environ.get("TXEVAL_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        sys.exit("no Chromium here: install it (Debian: apt-get install chromium), or name it in TXEVAL_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        if out.suffix == ".png":
            page = browser.new_page(viewport={"width": 1280, "height": 1265}, reduced_motion="reduce")
            page.goto(report.as_uri())
            page.locator(".ladder-section").first.evaluate("node => { node.hidden = true; }")
            page.screenshot(path=out)
            print(out)
            return
        out.mkdir(parents=True, exist_ok=True)
        for width, height in WIDTHS.items():
            for scheme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
                )
                page.goto(report.as_uri())
                page.screenshot(path=out / f"{width}-{scheme}-first.png")
                draw_everything(page)
                # What sticks to the top would lie over the parts.
                page.add_style_tag(content=".top { position: static !important; }")
                page.screenshot(path=out / f"{width}-{scheme}-whole.png", full_page=True)
                for name in SECTIONS:
                    page.locator(f"#{name}-0").screenshot(path=out / f"{width}-{scheme}-{name}.png")
                page.close()
        browser.close()
    print(*sorted(out.glob("*.png")), sep="\n")


if __name__ == "__main__":
    main()
