"""Weights: where they are looked for, fetched from a server of this machine, resumed, checked."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from txeval.data import download as downloading
from txeval.embed import list_embedders
from txeval.embed.weights import (
    Archive,
    RemoteFile,
    Weights,
    catalogue,
    download,
    fetch_weights,
    find_weights,
    list_weights,
    record_weights,
    search_places,
    verify_weights,
)
from txeval.errors import InputError

BIG = bytes(range(256)) * 20_000  # 5 MB


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Site:
    """What the server holds, and how it behaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_after: int | None = None
        self.ranges = True
        self.tags = True
        self.linked: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.address = ""


@pytest.fixture
def site():
    """A server on 127.0.0.1 that knows ranges, tags and redirects, and can break connections."""
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            path, wanted = self.path.split("?")[0], self.headers.get("Range")
            state.asked.append((path, wanted))
            if path in state.redirects:
                self.send_response(302)
                self.send_header("Location", state.redirects[path])
                self.send_header("X-Linked-Etag", f'"{state.linked.get(path, "")}"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if path not in state.files:
                self.send_error(404)
                return
            content = state.files[path]
            tag = f'"{sha256(content)[:16]}"'
            start = 0
            if wanted and state.ranges and self.headers.get("If-Range") == tag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if state.tags:
                self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            if state.cut_after is not None:
                self.wfile.write(body[: state.cut_after])
                self.wfile.flush()
                self.close_connection = True
                return
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Nothing of the user's own folders is looked at."""
    for name in ("TXEVAL_WEIGHTS", "TXEVAL_DATA", "TXEVAL_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TXEVAL_CACHE", str(tmp_path / "cache"))
    # Proxies of the machine must not stand between the test and its server.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # One attempt stands for a process that ends after it.
    monkeypatch.setattr(downloading, "ATTEMPTS", 0)
    monkeypatch.setattr(downloading, "PAUSE_SECONDS", 0.0)


def entry(site: Site, *names: str, **more) -> Weights:
    files = tuple(RemoteFile(name, f"{site.address}/{name}") for name in names)
    return Weights("mine", "My model", "http", f"{site.address}/page", files=files, folder="mine", **more)


# The catalogue


def test_the_catalogue():
    known = {info.name for info in list_embedders()}
    for weights in list_weights():
        assert set(weights.models) <= known, weights.name
        assert weights.licence and weights.citation and weights.title and weights.megabytes
        assert weights.address.startswith("https://") and weights.source in ("huggingface", "http", "gdrive", "dropbox")
        assert weights.files or weights.archives
        for file in weights.files:
            assert file.url.startswith("https://") or weights.drive
            assert not Path(file.path).is_absolute() and ".." not in Path(file.path).parts
    assert catalogue()["geneformer-v1"].files[1].url == (
        "https://huggingface.co/ctheodoris/Geneformer/resolve/main/Geneformer-V1-10M/model.safetensors"
    )
    # Every model that has an option for weights is there.
    readers = {info.name for info in list_embedders() if "weights" in info.options}
    assert readers == {model for weights in list_weights() for model in weights.models}


#: What is known of published files: bytes and digest, as read in copies of the repository's own pointers.
PUBLISHED = {
    "Geneformer-V1-10M/model.safetensors": (41_183_536, "a5e33a757431"),
    "Geneformer-V2-104M/model.safetensors": (417_571_156, "fff5cba29ddd"),
    "Geneformer-V2-316M/model.safetensors": (1_265_455_076, "965ceccea819"),
    "geneformer/token_dictionary_gc104M.pkl": (425_590, ""),
    "geneformer/gene_median_dictionary_gc104M.pkl": (1_512_661, ""),
}


def test_sizes_and_digests_of_published_files():
    found = {}
    for weights in list_weights():
        for file in weights.files:
            assert file.sha256 == "" or re.fullmatch("[0-9a-f]{64}", file.sha256), file
            assert file.bytes is None or (isinstance(file.bytes, int) and file.bytes > 0), file
            if file.pinned:
                # One path in a folder that weights share is one file.
                assert found.setdefault(file.path, (file.bytes, file.sha256[:12])) == (file.bytes, file.sha256[:12])
        pinned = sum(file.bytes or 0 for file in weights.files)
        assert pinned <= weights.megabytes * 1.1e6, weights.name
    assert found == PUBLISHED
    digests = [file.sha256 for weights in list_weights() for file in weights.files if file.sha256]
    assert len(set(digests)) == len(digests) == 3


def test_files_that_are_not_those_published(tmp_path):
    pinned = (
        RemoteFile("both.bin", "", sha256(b"whole"), 5),
        RemoteFile("size.bin", "", bytes=5),
        RemoteFile("digest.bin", "", sha256(b"whole")),
        RemoteFile("unknown.bin"),
    )
    mine = Weights("mine", "My model", "http", "https://example.org", files=pinned, folder="mine")
    known = {
        "both.bin": "size and digest",
        "size.bin": "size",
        "digest.bin": "size and digest",
        "unknown.bin": "unknown",
    }
    for name in known:
        (tmp_path / name).write_bytes(b"whole")

    def states() -> dict[str, str]:
        checks = verify_weights(tmp_path, mine)
        assert {check.path: check.published for check in checks} == known
        assert all(check.whole == (check.state in ("ok", "not recorded")) for check in checks)
        return {check.path: check.state for check in checks}

    assert states() == {
        "both.bin": "ok", "size.bin": "not recorded", "digest.bin": "ok", "unknown.bin": "not recorded",
    }  # fmt: skip
    # One byte is another: seen by the digest. One byte is missing: seen by the size as well.
    for content, by_size in ((b"Whole", "not recorded"), (b"whol", "not published"), (b"", "not published")):
        for name in known:
            (tmp_path / name).write_bytes(content)
        assert states() == {
            "both.bin": "not published", "size.bin": by_size, "digest.bin": "not published",
            "unknown.bin": "not recorded",
        }  # fmt: skip


def test_recorded_digests_do_not_hide_another_file(tmp_path):
    """A wrong file that was recorded by hand stays a wrong file, in any folder that has the paths of the catalogue."""
    path = tmp_path / "Geneformer-V1-10M" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"something else")
    assert [check.state for check in record_weights(tmp_path)] == ["not published"]
    assert [check.published for check in verify_weights(tmp_path)] == ["size and digest"]


def test_a_fetched_file_of_another_size_is_refused(site, tmp_path):
    site.files = {"/a.bin": b"other"}
    wrong = RemoteFile("a.bin", f"{site.address}/a.bin", bytes=6)
    with pytest.raises(InputError, match=r"a.bin has 5 bytes, but the catalogue says 6"):
        fetch_weights(replace(entry(site), files=(wrong,)), tmp_path)
    assert not (tmp_path / "a.bin").exists()
    right = replace(entry(site), files=(replace(wrong, bytes=5),))
    fetch_weights(right, tmp_path)
    # A file that was cut short since is fetched again.
    (tmp_path / "a.bin").write_bytes(b"oth")
    fetch_weights(right, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"other"


def test_where_weights_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TXEVAL_WEIGHTS", str(tmp_path / "w"))
    (tmp_path / "d").mkdir()
    monkeypatch.setenv("TXEVAL_DATA", str(tmp_path / "d"))
    scgpt = catalogue()["scgpt"]
    tried = search_places(scgpt)
    assert tried[0] == tmp_path / "w" / "scgpt" and tried[-1] == tmp_path / "cache" / "weights" / "scgpt"
    assert tmp_path / "d" / "weights" / "scgpt" in tried
    with pytest.raises(InputError, match="scgpt needs its weights") as why:
        find_weights("scgpt")
    for told in ("txeval weights fetch scgpt", scgpt.address, "args.json, best_model.pt, vocab.json", "weights=DIR"):
        assert told in why.value.remedy
    # A source checkout may have data beside it, which is not for tests to write to.
    own = [place for place in tried if place.is_relative_to(tmp_path)]
    assert len(own) == 3
    for place in own[::-1]:
        place.mkdir(parents=True, exist_ok=True)
        (place / "args.json").write_text("{}")
        assert find_weights("scgpt-finetuned") == place
    # A folder that has all of the files goes before one that has some.
    for name in ("best_model.pt", "vocab.json"):
        (own[-1] / name).write_text("x")
    assert find_weights("scgpt") == own[-1]
    assert find_weights("scgpt", given=str(tmp_path / "d")) == tmp_path / "d"
    with pytest.raises(InputError, match="does not exist"):
        find_weights("scgpt", given=str(tmp_path / "none"))
    with pytest.raises(InputError, match="no model with weights called 'scgtp'") as why:
        find_weights("scgtp")
    assert "scgpt" in why.value.remedy


# Fetching


def test_fetch_and_verify(site, tmp_path):
    site.files = {"/a.bin": BIG, "/sub/b.json": b"{}"}
    said = []
    folder = fetch_weights(entry(site, "a.bin", "sub/b.json"), tmp_path / "to", progress=lambda *w: said.append(w))
    assert (folder / "a.bin").read_bytes() == BIG and (folder / "sub" / "b.json").read_bytes() == b"{}"
    assert any(what == (len(BIG), len(BIG), "fetching a.bin") for what in said)
    record = json.loads((folder / "digests.json").read_text())["files"]
    assert record["a.bin"]["sha256"] == sha256(BIG) and record["a.bin"]["bytes"] == len(BIG)
    assert record["a.bin"]["from"] == f"{site.address}/a.bin"
    assert [check.state for check in verify_weights(folder)] == ["ok", "ok"]
    assert not list(folder.rglob(".*"))

    # Nothing is asked for again.
    asked = len(site.asked)
    fetch_weights(entry(site, "a.bin", "sub/b.json"), folder)
    assert len(site.asked) == asked

    # A file that has changed is seen, and fetched again; so is one that is missing.
    (folder / "a.bin").write_bytes(BIG[:-1] + b"x")
    (folder / "sub" / "b.json").unlink()
    (folder / "extra.txt").write_text("mine")
    states = {check.path: check.state for check in verify_weights(folder)}
    assert states == {"a.bin": "changed", "extra.txt": "not recorded", "sub/b.json": "missing"}
    fetch_weights(entry(site, "a.bin", "sub/b.json"), folder)
    states = {check.path: check.state for check in verify_weights(folder)}
    assert states == {"a.bin": "ok", "extra.txt": "not recorded", "sub/b.json": "ok"}
    assert [check.state for check in record_weights(folder)] == ["ok", "ok", "ok"]


@pytest.mark.parametrize(("ranges", "tags"), [(True, True), (False, True), (True, False)])
def test_a_broken_download_goes_on(site, tmp_path, ranges, tags):
    site.files, site.ranges, site.tags = {"/a.bin": BIG}, ranges, tags
    site.cut_after = 3 * 2**20
    with pytest.raises(InputError, match=r"could not fetch the weights mine from .*/page: the connection") as why:
        fetch_weights(entry(site, "a.bin"), tmp_path)
    assert "goes on from here" in why.value.remedy and str(tmp_path) in why.value.remedy
    assert not (tmp_path / "a.bin").exists() and not (tmp_path / "digests.json").exists()
    site.cut_after = None
    fetch_weights(entry(site, "a.bin"), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BIG
    # Where the server knows ranges and says which file it has, only the rest is sent.
    if tags:
        assert site.asked[-1][1] is not None and int(site.asked[-1][1].split("=")[1][:-1]) >= 2**20
    else:
        assert site.asked[-1][1] is None
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_changes_on_the_server_is_not_patched_together(site, tmp_path):
    site.files, site.cut_after = {"/a.bin": BIG}, 2 * 2**20
    with pytest.raises(OSError, match="connection"):
        download(f"{site.address}/a.bin", tmp_path / "a.bin")
    site.files, site.cut_after = {"/a.bin": BIG[::-1]}, None
    assert download(f"{site.address}/a.bin", tmp_path / "a.bin") == sha256(BIG[::-1])


def test_a_whole_partial_file_is_settled(site, tmp_path):
    """Ended between the last byte and the renaming."""
    site.files = {"/a.bin": b"abc"}
    (tmp_path / ".a.bin.partial").write_bytes(b"abc")
    note = {"url": f"{site.address}/a.bin", "tag": f'"{sha256(b"abc")[:16]}"'}
    (tmp_path / ".a.bin.partial.json").write_text(json.dumps(note))
    assert download(f"{site.address}/a.bin", tmp_path / "a.bin") == sha256(b"abc")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_wrong_bytes_are_refused(site, tmp_path, monkeypatch):
    site.files = {"/a.bin": b"other"}
    wrong = RemoteFile("a.bin", f"{site.address}/a.bin", sha256(b"right"))
    with pytest.raises(InputError, match=f"digest {sha256(b'other')}, but the catalogue says"):
        fetch_weights(replace(entry(site), files=(wrong,)), tmp_path)
    assert not (tmp_path / "a.bin").exists()
    # The hub states the digest in the answer that leads to the file.
    site.redirects = {"/me/model/resolve/main/w.bin": f"{site.address}/a.bin"}
    site.linked = {"/me/model/resolve/main/w.bin": sha256(b"right")}
    monkeypatch.setenv("HF_ENDPOINT", site.address)
    url = "https://huggingface.co/me/model/resolve/main/w.bin"
    with pytest.raises(ValueError, match="but the server says"):
        download(url, tmp_path / "w.bin")
    site.linked = {"/me/model/resolve/main/w.bin": sha256(b"other")}
    assert download(url, tmp_path / "w.bin") == sha256(b"other")


def test_addresses_that_are_none(tmp_path):
    (tmp_path / "secret").write_text("x")
    with pytest.raises(ValueError, match="no address of the web"):
        download(f"file://{tmp_path}/secret", tmp_path / "copy")


def packed_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("folder/v1.ckpt", b"old")
        archive.writestr("folder/v2.ckpt", b"weights")
        archive.writestr("../../v2.config.json", b"{}")
    return buffer.getvalue()


def packed_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in (("../../v2.config.json", b"{}"), ("/deep/v2.ckpt", b"weights"), ("x/v1.ckpt", b"old")):
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
        link = tarfile.TarInfo("v2.link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "content"), [("a.zip", packed_zip()), ("a.tar.gz", packed_tar())])
def test_what_is_wanted_of_an_archive(site, tmp_path, name, content):
    """Nothing leaves the folder, whatever the archive calls its files."""
    site.files = {f"/{name}": content}
    archive = Archive(f"{site.address}/{name}", name, {"v2.ckpt": "", "v2*.json": "sub"})
    folder = fetch_weights(entry(site, archives=(archive,)), tmp_path / "one" / "two")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["one/two/digests.json", "one/two/sub/v2.config.json", "one/two/v2.ckpt"]
    assert (folder / "v2.ckpt").read_bytes() == b"weights"
    assert [check.state for check in verify_weights(folder)] == ["ok", "ok"]
    asked = len(site.asked)
    fetch_weights(entry(site, archives=(archive,)), folder)
    assert len(site.asked) == asked
    (folder / "v2.ckpt").write_bytes(b"damaged")
    fetch_weights(entry(site, archives=(archive,)), folder)
    assert (folder / "v2.ckpt").read_bytes() == b"weights"


def test_archives_that_cannot_be_used(site, tmp_path):
    whole = packed_tar()
    for content in (whole[: len(whole) // 2], b"no archive", packed_zip()[:-30]):
        site.files = {"/a.tar.gz": content}
        archive = Archive(f"{site.address}/a.tar.gz", "a.tar.gz", {"v2.ckpt": ""})
        with pytest.raises(InputError, match="could not fetch the weights mine"):
            fetch_weights(entry(site, archives=(archive,)), tmp_path / "to")
    site.files = {"/a.tar.gz": whole}
    with pytest.raises(InputError, match=r"gave no other.ckpt") as why:
        fetch_weights(entry(site, archives=(replace(archive, members={"other.ckpt": ""}),)), tmp_path / "to")
    assert "other.ckpt" in why.value.remedy


# Without a network


def test_no_server_no_file_no_permission(site, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="404") as why:
        fetch_weights(entry(site, "none.bin"), tmp_path / "a")
    assert "none.bin" in why.value.remedy
    gone = replace(entry(site, "a.bin"), files=(RemoteFile("a.bin", "http://127.0.0.1:9/a.bin"),))
    with pytest.raises(InputError, match="could not fetch") as why:
        fetch_weights(gone, tmp_path / "a")
    assert f"get them from {site.address}/page and put them into {tmp_path / 'a'} as a.bin" in why.value.remedy
    monkeypatch.setenv("TXEVAL_OFFLINE", "1")
    asked = len(site.asked)
    with pytest.raises(InputError, match="TXEVAL_OFFLINE forbids") as why:
        fetch_weights(entry(site, "a.bin"), tmp_path / "a")
    assert len(site.asked) == asked and "a.bin" in why.value.remedy
    # What was put there by hand is enough.
    (tmp_path / "a" / "a.bin").write_bytes(b"x")
    assert fetch_weights(entry(site, "a.bin"), tmp_path / "a") == tmp_path / "a"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        fetch_weights(entry(site, "a.bin"), tmp_path / "file")


def test_google_drive_out_of_reach(tmp_path, monkeypatch):
    """gdown itself runs, and every connection that it tries is refused."""
    pytest.importorskip("gdown", reason="gdown is an extra")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"could not fetch the weights scgpt from https://drive.google.com") as why:
        fetch_weights("scgpt", tmp_path / "to")
    assert f"put them into {tmp_path / 'to'} as args.json, best_model.pt, vocab.json" in why.value.remedy


def test_a_damaged_record(tmp_path):
    for content in ("{", "[]", '{"files": {"a": 1}}', '{"files": {"a": {"sha256": 3}}}'):
        (tmp_path / "digests.json").write_text(content)
        with pytest.raises(InputError, match="no record of digests"):
            verify_weights(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        verify_weights(tmp_path / "none")
