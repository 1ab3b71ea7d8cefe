"""The table of a benchmark, as Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["environment", "write"]

PACKAGES = (
    "txeval", "numpy", "scipy", "torch", "numba", "scikit-learn", "faiss-cpu", "scib-metrics", "jax", "harmonypy",
    "pynndescent", "torchmetrics", "geomloss",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Processor and versions."""
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "versions": versions,
    }


def _number(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _verdict(row: Mapping[str, Any]) -> str:
    """What was to be reached and was not."""
    missed = [
        f"{name} {other['ratio']:.1f} of {other['at_least']:g}"
        for name, other in row["others"].items()
        if other["at_least"] and other["ratio"] < other["at_least"]
    ]
    missed += [check["text"] for check in row["checks"] if not check["fine"]]
    if row["at_most_mib"] and row["added_mib"] > row["at_most_mib"]:
        missed.append(f"{row['added_mib']:.0f} MiB of {row['at_most_mib']:g}")
    asked = any(other["at_least"] for other in row["others"].values()) or row["at_most_mib"]
    return "missed: " + "; ".join(missed) if missed else "reached" if asked else ""


def lines_of(
    rows: Iterable[Mapping[str, Any]], growth: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> list[str]:
    """Markdown of the table."""
    rows = list(rows)
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        "`make bench`. CPU seconds of one thread; ours and the alternatives took turns in one process, ratios are the",
        "medians over the turns. `~`: extrapolated, as the size says. Added MiB: memory beside the data.",
        "Against GEMM: seconds over those of the matrix products that the step cannot do without, at the rate of the",
        "fastest float32 product measured in the same process.",
        "",
        f"{about['processor']} ({about['instructions']}), {about['cores']} cores; {versions}.",
        "",
        "| step | CPU s | wall s | added MiB | alternative: CPU s, ratio | asked for | against GEMM | result |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        others = "<br>".join(
            f"{name}: {'~' if other['extrapolated'] else ''}{_number(other['cpu_s'])}, **{other['ratio']:.1f} x**"
            for name, other in row["others"].items()
        )
        asked = "<br>".join(f"{other['at_least']:g} x" if other["at_least"] else "" for other in row["others"].values())
        against = f"{row['against_gemm']:.1f}" if row["against_gemm"] else ""
        about_gemm = f"{against} ({row['gemm_gflops']:.0f} GFLOP/s)" if against else ""
        mark = "~" if row["extrapolated"] else ""
        lines.append(
            f"| {row['title']} | {mark}{_number(row['cpu_s'])} | {mark}{_number(row['wall_s'])} | "
            f"{row['added_mib']:,.0f} | {others} | {asked} | {about_gemm} | {_verdict(row)} |"
        )
    lines += ["", "## What was measured, and whether the results agree", ""]
    for row in rows:
        checks = "; ".join(
            f"{check['text']} {check['value']:.2g} ({'at most' if check['fine'] else 'MORE THAN'} {check['at_most']:g})"
            for check in row["checks"]
        )
        quick = " Quick run: the sizes are too small to say anything." if row["quick"] else ""
        lines.append(
            f"- **{row['title']}**: {row['size']}. {checks}. Turns: {row['turns']}, load {row['load']:.1f}.{quick}"
        )
    if growth:
        sizes = sorted({n for level in growth for n in level["cpu_s"]}, key=int)
        lines += [
            "",
            "## Growth with the number of cells",
            "",
            "`python benchmarks/full_size.py`: CPU seconds of a level, four post-processings together, on screens with",
            "the layout of Replogle 2022 (see [full_size.md](full_size.md)).",
            "",
            "| level | "
            + " | ".join(f"{int(n):,}" for n in sizes)
            + " | µs per cell at each | last step against linear |",
            "| --- | " + " | ".join("---" for _ in sizes) + " | --- | --- |",
        ]
        for level in growth:
            known = [(int(n), level["cpu_s"][n]) for n in sizes if n in level["cpu_s"]]
            cells = " | ".join(f"{level['cpu_s'][n]:,.1f}" if n in level["cpu_s"] else "" for n in sizes)
            each = ", ".join(f"{1e6 * seconds / n:,.0f}" for n, seconds in known)
            last = ""
            if len(known) > 1:
                (n0, t0), (n1, t1) = known[-2:]
                last = f"{t1 / t0 / (n1 / n0):.2f}"
            lines.append(f"| {level['level']} {level['task']} | {cells} | {each} | {last} |")
    return lines


def read_growth(path: Path) -> list[dict[str, Any]]:
    """CPU seconds of every level at every size that `full_size.py` has run."""
    if not path.is_file():
        return []
    levels: dict[str, dict[str, float]] = {}
    order = ("batch_mixing", "linear_probe", "consistency", "knn", "relationships", "reconstruction")
    for step in json.loads(path.read_text(encoding="utf-8"))["steps"]:
        for cell in step.get("cells", ()):
            times = levels.setdefault(cell["task"], {})
            times[str(step["n"])] = times.get(str(step["n"]), 0.0) + cell["cpu_seconds"]
    return [
        {"task": task, "level": number + 1, "cpu_s": levels[task]}
        for number, task in enumerate(order)
        if task in levels
    ]


def write(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write OUT.md and OUT.json."""
    growth = read_growth(out.parent / "full_size.json")
    about = environment()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("\n".join(lines_of(rows, growth, about)) + "\n", encoding="utf-8")
    content = {**about, "steps": [{**row, "verdict": _verdict(row)} for row in rows], "growth": growth}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
