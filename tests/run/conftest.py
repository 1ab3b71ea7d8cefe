"""Installs the plug-in of stub tasks for the tests of txeval.run, in this process and in those that it starts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_helpers import ENTRY_POINTS, write_screen

from txeval.tasks import registry


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the plug-in as an installed distribution."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(Path(__file__).with_name("stub_plugin.py"), folder)
    info = folder / "stub_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stub-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture(scope="module", autouse=True)
def plugin(site: Path) -> Iterator[None]:
    """The plug-in, known to the registries of this process."""
    sys.path.insert(0, str(site))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), before]))
    registry._tasks.cache_clear()
    yield
    sys.path.remove(str(site))
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    registry._tasks.cache_clear()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File with a line for each computation of the plug-in."""
    path = tmp_path / "stub.log"
    path.touch()
    monkeypatch.setenv("STUB_LOG", str(path))
    return path


@pytest.fixture(scope="session")
def screen_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small screen."""
    return write_screen(tmp_path_factory.mktemp("screen") / "small.h5ad")
