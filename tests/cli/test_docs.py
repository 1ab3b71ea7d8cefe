"""What the documentation says of parameters and plug-ins is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from txeval.embed.base import Embedder
from txeval.protocol import load_protocol
from txeval.report.parameters import differences, effective, flat
from txeval.tasks import Metric

DOCS = Path(__file__).resolve().parents[2] / "docs"
PARITY = (DOCS / "protocols.md").read_text(encoding="utf-8")


def named_parameters() -> set[str]:
    """Parameters in the last column of the parity table; `.name` goes on from the one before."""
    found: set[str] = set()
    for line in PARITY.splitlines():
        last = ""
        for name in re.findall(r"`(\.?[a-z_.0-9]+)`", line.rsplit("|", 2)[-2]) if line.startswith("|") else []:
            last = last.rpartition(".")[0] + name if name.startswith(".") else name
            if "." in last:
                found.add(last)
    return found


def test_every_parameter_of_the_parity_page_exists() -> None:
    names = named_parameters()
    assert len(names) >= 8
    assert names <= set(flat(effective(load_protocol("paper"))))


def test_every_difference_between_paper_and_reference_is_on_the_parity_page() -> None:
    changed = {name for name, _ in differences([load_protocol(name) for name in ("paper", "reference")])}
    assert changed
    assert changed <= named_parameters()


@pytest.mark.parametrize(("name", "kind"), [("METRIC", Metric), ("EMBEDDER", Embedder)])
def test_the_examples_of_plug_ins_are_what_they_say(name: str, kind: type) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    [source] = [block for block in blocks if f"{name} =" in block]
    made: dict[str, object] = {}
    exec(compile(source, "extending.md", "exec"), made)
    assert isinstance(made[name], kind)


def test_every_page_is_in_the_navigation() -> None:
    import yaml

    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"(\w+\.md)", str(yaml.safe_load(text)["nav"])))
    assert listed == {path.name for path in DOCS.glob("*.md")}
