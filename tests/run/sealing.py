"""Changes of results folders that come with new digests, as whoever makes a folder can write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from txeval.run.files import write_document
from txeval.run.folder import seal_of


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a document, and give it a digest of its new content."""
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    write_document(path, content)


def reseal(folder: Path) -> None:
    """Let the manifest name the views as they are now."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"] = {name: seal_of(folder / name) for name in manifest["files"] if (folder / name).exists()}

    rewrite(folder / "manifest.json", change)
