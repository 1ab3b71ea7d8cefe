from __future__ import annotations

import errno
import hashlib
import http.server
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from txeval.data import download, locate
from txeval.data.locate import Entry, cache_folder, catalogue, data_folders, fetch, find_file, whole_or_nothing
from txeval.errors import InputError

BYTES = np.random.default_rng(0).bytes(700_001)
DIGEST = hashlib.sha256(BYTES).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/gone.bin":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BYTES)))
        self.end_headers()
        # The connection is closed after this, with half of the promised bytes unsent.
        self.wfile.write(BYTES[: len(BYTES) // 2] if self.path == "/dropped.bin" else BYTES)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[http.server.ThreadingHTTPServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch) -> Path:
    """No data folder but those of the test."""
    monkeypatch.setenv("TXEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TXEVAL_DATA", raising=False)
    monkeypatch.delenv("TXEVAL_OFFLINE", raising=False)
    monkeypatch.setattr(locate, "__file__", str(tmp_path / "site-packages" / "txeval" / "data" / "locate.py"))
    monkeypatch.setattr(download, "ATTEMPTS", 0)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entry(server, name: str, sha256: str = DIGEST) -> Entry:
    return Entry(
        id="thing", path="some/folder/thing.bin", url=f"http://127.0.0.1:{server.server_port}/{name}", sha256=sha256
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_download_is_checked_kept_and_not_repeated(server, folders):
    seen = []
    path = fetch(entry(server, "whole.bin"), progress=lambda done, total, text: seen.append((done, total, text)))
    assert path == folders / "cache" / "some" / "folder" / "thing.bin"
    assert path.read_bytes() == BYTES
    assert files(folders / "cache") == ["some/folder/thing.bin"]
    assert seen[-1][:2] == (len(BYTES), len(BYTES))
    assert len(seen) > 2
    assert all(earlier[0] <= later[0] for earlier, later in itertools.pairwise(seen))
    assert fetch(entry(server, "whole.bin")) == path
    assert server.asked == ["/whole.bin"]


@pytest.mark.parametrize(
    ("name", "sha256", "reason"),
    [
        ("gone.bin", DIGEST, "404"),
        ("dropped.bin", DIGEST, r"connection (broke|ended) after \d"),
        ("whole.bin", "0" * 64, f"digest {DIGEST}, but the catalogue says {'0' * 64}"),
    ],
)
def test_failed_download_says_what_to_do_and_leaves_nothing(server, folders, name, sha256, reason):
    with pytest.raises(InputError, match=reason) as caught:
        fetch(entry(server, name, sha256))
    assert "some/folder/thing.bin" in caught.value.problem
    assert f"/{name}" in caught.value.problem
    assert str(folders / "cache" / "some" / "folder" / "thing.bin") in caught.value.remedy
    assert "\n" not in caught.value.problem
    # What came of it is kept under a hidden name, to go on with.
    kept = [".thing.bin.partial", ".thing.bin.partial.json"] if name == "dropped.bin" else []
    assert files(folders / "cache") == [f"some/folder/{hidden}" for hidden in kept]


def test_no_server(server, folders):
    thing = entry(server, "whole.bin")
    dead = Entry(id="thing", path=thing.path, url="http://127.0.0.1:1/whole.bin", sha256=DIGEST)
    with pytest.raises(InputError, match=r"could not fetch some/folder/thing.bin"):
        fetch(dead)


def test_broken_file_in_the_cache_is_replaced(server, folders):
    target = folders / "cache" / "some" / "folder" / "thing.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(BYTES[:100])
    assert fetch(entry(server, "whole.bin")).read_bytes() == BYTES


def test_offline_does_not_ask(server, monkeypatch):
    monkeypatch.setenv("TXEVAL_OFFLINE", "1")
    with pytest.raises(InputError, match="TXEVAL_OFFLINE"):
        fetch(entry(server, "whole.bin"))
    assert server.asked == []


def test_unwritable_cache(server, folders, monkeypatch):
    (folders / "file").write_text("in the way")
    monkeypatch.setenv("TXEVAL_CACHE", str(folders / "file"))
    with pytest.raises(InputError, match=r"could not fetch"):
        fetch(entry(server, "whole.bin"))


def test_order_of_the_search(server, folders, monkeypatch):
    places = [folders / "mine", folders / "shared" / "data", folders / "cache"]
    for place in reversed(places):
        (place / "some" / "folder").mkdir(parents=True)
        (place / "some" / "folder" / "thing.bin").write_bytes(BYTES)
    thing = entry(server, "whole.bin")
    assert fetch(thing) == places[2] / thing.path
    checkout = folders / "checkout"
    (checkout / "src" / "txeval" / "data").mkdir(parents=True)
    (checkout / "src" / "txeval" / "data" / "locate.py").touch()
    monkeypatch.setattr(locate, "__file__", str(checkout / "src" / "txeval" / "data" / "locate.py"))
    assert fetch(thing) == places[1] / thing.path
    monkeypatch.setenv("TXEVAL_DATA", str(places[0]))
    assert data_folders() == places[:2]
    assert fetch(thing) == places[0] / thing.path
    assert find_file(thing.path) == places[0] / thing.path
    assert server.asked == []


def test_checkout_of_the_current_folder(folders, monkeypatch):
    (folders / "shared" / "data").mkdir(parents=True)
    assert data_folders() == []
    checkout = folders / "checkout"
    (checkout / "src" / "txeval" / "data").mkdir(parents=True)
    (checkout / "src" / "txeval" / "data" / "locate.py").touch()
    monkeypatch.chdir(checkout)
    assert data_folders() == [folders / "shared" / "data"]


def test_bare_file_name_in_the_users_folder(server, folders, monkeypatch):
    (folders / "mine").mkdir()
    (folders / "mine" / "thing.bin").write_bytes(BYTES)
    monkeypatch.setenv("TXEVAL_DATA", str(folders / "mine"))
    assert fetch(entry(server, "whole.bin")) == folders / "mine" / "thing.bin"


def test_wrong_bytes_in_the_users_folder_are_refused(server, folders, monkeypatch):
    (folders / "mine").mkdir()
    (folders / "mine" / "thing.bin").write_bytes(b"other")
    monkeypatch.setenv("TXEVAL_DATA", str(folders / "mine"))
    with pytest.raises(InputError, match=f"{hashlib.sha256(b'other').hexdigest()}.*{DIGEST}"):
        fetch(entry(server, "whole.bin"))
    # An edited file is looked at again.
    (folders / "mine" / "thing.bin").write_bytes(BYTES)
    assert fetch(entry(server, "whole.bin")).parent == folders / "mine"


def test_folder_that_does_not_exist(folders, monkeypatch):
    monkeypatch.setenv("TXEVAL_DATA", str(folders / "nowhere"))
    with pytest.raises(InputError, match=r"TXEVAL_DATA names .*nowhere"):
        find_file("a.h5ad")


@pytest.mark.parametrize("path", ["/etc/passwd", "../a", "a/../../b", ""])
def test_paths_stay_in_the_folder(path):
    with pytest.raises(InputError, match="no path under a data folder"):
        find_file(path)


def test_unknown_name_gets_the_nearest():
    assert find_file("relationships/CORRUM.txt") is None
    with pytest.raises(InputError, match=r"did you mean 'relationships/CORUM.txt'"):
        fetch("relationships/CORRUM.txt")


def test_prepared_file_cannot_be_downloaded():
    with pytest.raises(InputError, match=r"norman2019_k562_crispra_500hvg.h5ad is not there"):
        fetch("norman2019")


def test_default_cache_is_the_users(monkeypatch):
    monkeypatch.delenv("TXEVAL_CACHE")
    assert cache_folder().name == "txeval"


def test_catalogue_is_complete():
    entries = catalogue()
    assert {"relationships/CORUM", "perturbench-devel", "norman2019"} <= set(entries)
    for name, known in entries.items():
        assert known.id == name
        assert known.licence
        assert known.citation
        assert known.description
        assert bool(known.url) == bool(known.sha256)
        assert not known.url or (known.url.startswith("https://") and len(known.sha256) == 64)
    assert len({known.path for known in entries.values()}) == len(entries)
    assert {known.id for known in entries.values() if known.non_commercial} == {
        "relationships/CORUM",
        "relationships/SIGNOR",
    }


def test_catalogue_matches_the_real_files(data_dir):
    for known in catalogue().values():
        if known.sha256:
            assert locate.file_digest(data_dir / known.path) == known.sha256


def test_a_file_is_written_whole_or_not_at_all(folders):
    target = folders / "new" / "a.txt"
    with whole_or_nothing(target) as part:
        part.write_text("first")
        assert not target.exists()
    assert target.read_text() == "first"
    assert target.stat().st_mode & 0o777 == 0o666 & ~locate._umask()
    for failure, seen in ((RuntimeError("x"), RuntimeError), (OSError(errno.ENOSPC, "No space left"), InputError)):
        with pytest.raises(seen), whole_or_nothing(target) as part:
            part.write_text("second")
            raise failure
    assert target.read_text() == "first"
    assert files(folders / "new") == ["a.txt"]
