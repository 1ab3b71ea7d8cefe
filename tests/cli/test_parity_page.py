"""The parity page: a reason for every parameter in which the protocols differ, and none for others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from txeval.protocol import load_protocol
from txeval.report.parameters import differences

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_difference_has_a_reason_and_every_reason_a_difference(hooks: ModuleType) -> None:
    protocols = [load_protocol(name) for name in hooks.PARITY]
    names = {name.partition(".")[0] if name.startswith("headline") else name for name, _ in differences(protocols)}
    assert set(hooks.parity_reasons()) == names
    assert all(len(why) > 30 for why in hooks.parity_reasons().values())


def test_the_page_is_filled_from_the_program_and_the_benchmarks(hooks: ModuleType) -> None:
    page = hooks.on_page_markdown((ROOT / "docs" / "parity.md").read_text(encoding="utf-8"))
    assert "{{" not in page
    assert "`tasks.linear_probe.solver`" in page and '`"convergent"`' in page
    for name in ("Norman 2019", "Papalexi 2021", "TAP-seq 2020"):
        assert name in page


def test_a_parameter_called_null_is_one(tmp_path: Path) -> None:
    assert load_protocol("corrected").tasks["consistency"]["null"] == "permutation"
    path = tmp_path / "mine.yaml"
    path.write_text("extends: corrected\ntasks:\n  relationships:\n    null: relabelled\n")
    assert load_protocol(path).tasks["relationships"]["null"] == "relabelled"
