"""Displays of a run: what they say, and how long they think it will take."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from run_helpers import config

from txeval.run import PlainProgress, RichProgress, execute, make_plan, make_progress
from txeval.run.progress import Work, duration


def test_remaining_time() -> None:
    work = Work(0, {"knn": 3, "probe": 2}, {"knn": 1.0, "probe": 10.0}, {}, workers=1)
    assert work.remaining() is None
    work.start(0, "knn", "a")
    work.finish(0, "knn", 2.0, failed=False)
    # Two of knn at 2 s; the probe has not been seen, and costs ten times as much.
    assert work.remaining() == pytest.approx(2 * 2 + 2 * 20)
    work.finish(0, "probe", 5.0, failed=False)
    assert work.remaining() == pytest.approx(2 * 2 + 5)
    assert (work.done, work.total) == (2, 5)
    for _ in range(2):
        work.finish(0, "knn", 2.0, failed=True)
    work.finish(None, "probe", 0.0, failed=True)
    assert work.remaining() == 0
    assert work.failed == 3


def test_remaining_time_of_several_workers_and_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from txeval.run import progress

    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    work = Work(4, {"knn": 4}, {"knn": 1.0}, {"knn": [10.0, 30.0]}, workers=2)
    assert work.remaining() == pytest.approx(4 * 20 / 2)
    work.start(0, "knn", "a")
    work.start(1, "knn", "b")
    clock[0] += 5
    assert work.remaining() == pytest.approx((4 * 20 - 2 * 5) / 2)
    clock[0] += 1000  # they take longer than expected: nothing is subtracted twice
    assert work.remaining() == pytest.approx((4 * 20 - 2 * 20) / 2)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_lines(screen_file: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    plan = make_plan(config(screen_file, tmp_path / "out", embeddings=["[red]x=stub_plain"], tasks=["stub_size"]))
    execute(plan, progress=PlainProgress(stream))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "9 jobs"
    assert any(line.startswith("[9/9 100%]") for line in lines)
    assert any("[red]x / raw / stub_size: no score: it never works" in line for line in lines)
    assert any("left]" in line for line in lines)
    stream = io.StringIO()
    execute(plan, progress=PlainProgress(stream))
    assert stream.getvalue().splitlines() == ["0 jobs, 6 cells are there already"]


def test_a_bar_shows_labels_as_they_are() -> None:
    console = Console(
        file=io.StringIO(), width=100, markup=False, highlight=False, force_terminal=True, color_system=None
    )
    display = RichProgress(console)
    work = Work(0, {"knn": 2}, {"knn": 1.0}, {})
    display.start(work)
    display.begin(0, "knn", "[bold]x[/bold]\x1b[2J / raw / knn")
    display.says(0, "reading [1/2]")
    with console.capture() as capture:
        console.print(display)
    text = capture.get()
    assert "[bold]x[/bold]\ufffd[2J / raw / knn" in text
    assert "reading [1/2]" in text
    assert "0 of 2" in text
    display.end(0, "knn", "[bold]x", 1.0, "[/] no")
    display.warn("[red]odd")
    display.stop()
    written = console.file.getvalue()
    assert "no score: [bold]x: [/] no" in written
    assert "warning: [red]odd" in written


def test_the_display_that_fits() -> None:
    stream = io.StringIO()
    assert isinstance(make_progress(stream=stream), PlainProgress)
    assert isinstance(make_progress(stream=stream, plain=False), RichProgress)
