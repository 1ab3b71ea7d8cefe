"""Data sets by name, against a server that speaks Zenodo's interface and serves real files."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from zenodo_server import Zenodo, md5, zenodo_server

from txeval.cli import main
from txeval.data import download as downloading
from txeval.data import locate
from txeval.data.datasets import (
    RECORD_FILE,
    fetch_dataset,
    find_dataset,
    get_dataset,
    list_datasets,
    list_family,
    resolve_roles,
)
from txeval.data.download import Broken, download, is_plain_name
from txeval.data.recipes import prepare_dataset
from txeval.data.roles import Roles
from txeval.errors import InputError

SCPERTURB = 13350497
NAME = "scperturb/NormanWeissman2019_filtered"
FILE = "NormanWeissman2019_filtered.h5ad"
PAPER = (14037432, 14037465, 14039051)


@pytest.fixture
def real(data_dir) -> bytes:
    """A real screen, 2.9 MB."""
    return (data_dir / "papalexi2021_thp1_ecciteseq_299genes.h5ad").read_bytes()


@pytest.fixture
def server(real, monkeypatch):
    with zenodo_server({SCPERTURB: {FILE: real, "README.txt": b"text"}}) as state:
        monkeypatch.setenv("TXEVAL_ZENODO", state.address)
        yield state


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch) -> Path:
    """No data folder but those of the test, and no long pauses."""
    monkeypatch.setenv("TXEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("TXEVAL_DATA", "TXEVAL_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(locate, "__file__", str(tmp_path / "site-packages" / "txeval" / "data" / "locate.py"))
    monkeypatch.setattr(downloading, "PAUSE_SECONDS", 0.001)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


HERE = f"datasets/scperturb/{FILE}"
NOTE = f"datasets/scperturb/{RECORD_FILE}"


# What the catalogue says


def test_the_catalogue_is_whole():
    found = {dataset.name: dataset for dataset in list_datasets()}
    assert list(found)[:3] == ["replogle_2022", "joung_2023", "l1000_crispr"]
    assert set(found) >= {"norman_2019_devel", "mcfaline_2023_devel", "scperturb"}
    for dataset in found.values():
        assert dataset.title and dataset.kind and dataset.citation and dataset.recipe
        assert dataset.source.entry in locate.catalogue() or dataset.source.records
        assert bool(dataset.source.files) + bool(dataset.source.pattern) + bool(dataset.source.entry) == 1
        assert set(dataset.roles) <= set(Roles.__dataclass_fields__)
        assert "perturbation" in dataset.roles
        # No digest and no licence is made up: records state theirs.
        assert bool(dataset.licence) == bool(dataset.source.entry)
    assert found["replogle_2022"].source.files == tuple(f"replogle_2022_part{i}.h5ad" for i in (1, 2, 3))
    assert found["replogle_2022"].expected.sizes["controls"] == (75328, 0)
    assert found["l1000_crispr"].expected.splits["train"]["batches"] == 831


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("norman", "did you mean"),
        ("replogle_2023", "did you mean 'replogle_2022'"),
        ("scperturb/../secret", "no name of a file"),
        ("scperturb/a/b", "no name of a file"),
        ("scperturb/", "no name of a file"),
        ("scperturb/.hidden", "no name of a file"),
        ("replogle_2022/x", "no data set called"),
        ("../../etc/passwd", "no data set called"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(InputError, match=message):
        get_dataset(name)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "C:x",
        "..",
        ".",
        "",
        ".hidden",
        "a\nb",
        "a\x00b",
        "-rf",
        "~x",
        "a*",
        5,
        None,
        "x" * 300,
    ],
)
def test_file_names_that_leave_the_folder(name):
    assert not is_plain_name(name)


def test_roles_from_the_columns_that_are_there():
    dataset = get_dataset("replogle_2022")
    roles, notes = resolve_roles(dataset, ["gene_id", "gene_name", "gem_group", "is_control"], ["gene_name"])
    assert roles == Roles(
        perturbation="gene_name", control_column="is_control", batch="gem_group", gene_symbol="gene_name"
    )
    assert "perturbation: column 'gene_name' (also there: gene_id)" in notes
    roles, notes = resolve_roles(dataset, ["gene_id"], [])
    assert roles == Roles(perturbation="gene_id", control=("non-targeting",))
    assert "batch: none of the columns dataset_batch_num, gem_group is in obs" in notes
    with pytest.raises(InputError, match="none of the columns gene_name, ensembl_gene_id, gene_id is in obs"):
        resolve_roles(dataset, ["guide"], [])


# Fetching


def test_fetched_verified_and_kept(server, alone, real):
    seen = []
    found, records = fetch_dataset(get_dataset(NAME), progress=lambda *told: seen.append(told))
    assert found[0].path == alone / "cache" / HERE
    assert found[0].path.read_bytes() == real
    assert found[0].verified and found[0].checked == f"MD5 as record {SCPERTURB} states"
    assert [record.licence for record in records] == ["cc-by-4.0"]
    assert files(alone / "cache") == [HERE, NOTE]
    assert seen[-1][:2] == (len(real), len(real))
    asked = len(server.asked)
    again, records = fetch_dataset(get_dataset(NAME))
    assert again == found and not records
    assert len(server.asked) == asked


def test_the_other_spelling_of_the_interface(server, real):
    server.old_spelling = True
    found, _ = fetch_dataset(get_dataset(NAME))
    assert found[0].path.read_bytes() == real and found[0].verified


@pytest.mark.parametrize(("ranges", "tags"), [(True, True), (True, False)])
def test_cut_in_parts_and_taken_up(server, real, ranges, tags):
    """Every answer ends after a quarter of the file: all comes together in one call, no byte twice."""
    server.cut_after, server.ranges, server.tags = len(real) // 4, ranges, tags
    found, _ = fetch_dataset(get_dataset(NAME))
    assert found[0].path.read_bytes() == real
    starts = [int(wanted.split("=")[1][:-1]) for path, wanted in server.asked if FILE in path and wanted]
    assert len(starts) >= 4
    assert starts == sorted(starts) and starts[0] > len(real) // 8


def test_a_server_that_never_gets_to_the_end(server, alone, real):
    """Without ranges each attempt begins anew, and none gets further: it is given up, and nothing looks whole."""
    server.cut_after, server.ranges = len(real) // 2, False
    with pytest.raises(InputError, match=r"the connection (broke|ended) after [\d,]+ of 2,909,119 bytes") as caught:
        fetch_dataset(get_dataset(NAME))
    assert "try again later, and it goes on from there" in caught.value.remedy
    assert FILE in caught.value.remedy and str(alone / "cache") in caught.value.remedy
    assert server.count(FILE) == downloading.ATTEMPTS + 1
    assert not (alone / "cache" / HERE).exists()
    server.cut_after = None
    assert fetch_dataset(get_dataset(NAME))[0][0].path.read_bytes() == real


def test_gone_on_with_in_another_process(server, alone, real, monkeypatch):
    """What came before the first process ended is not fetched again."""
    server.cut_after = len(real) // 2
    with monkeypatch.context() as patch:
        patch.setattr(downloading, "ATTEMPTS", 0)
        with pytest.raises(InputError, match="connection"):
            fetch_dataset(get_dataset(NAME))
    assert not (alone / "cache" / HERE).exists()
    server.cut_after = None
    server.asked.clear()
    assert fetch_dataset(get_dataset(NAME))[0][0].path.read_bytes() == real
    [wanted] = [wanted for path, wanted in server.asked if FILE in path]
    assert int(wanted.split("=")[1][:-1]) > len(real) // 4


def test_the_file_changed_between_two_halves(server, alone, real, monkeypatch):
    """Halves of two files have the digest of neither: fetched once more from the beginning."""
    server.cut_after, server.tags = len(real) // 2, False
    with monkeypatch.context() as patch:
        patch.setattr(downloading, "ATTEMPTS", 0)
        with pytest.raises(InputError, match="connection"):
            fetch_dataset(get_dataset(NAME))
    server.records[SCPERTURB][FILE] = new = real[::-1]
    server.cut_after = None
    found, _ = fetch_dataset(get_dataset(NAME))
    assert found[0].path.read_bytes() == new


def test_slow_but_steady(server, real):
    server.pause, server.piece = 0.01, len(real) // 20
    assert fetch_dataset(get_dataset(NAME))[0][0].path.read_bytes() == real


def test_a_server_that_falls_silent(server, alone, real, monkeypatch):
    """No packet for longer than the time limit is a broken connection."""
    monkeypatch.setattr(downloading, "TIMEOUT", (1.0, 0.2))
    monkeypatch.setattr(downloading, "ATTEMPTS", 1)
    server.pause, server.piece = 3.0, 1000
    with pytest.raises(InputError, match=r"connection|timed out"):
        fetch_dataset(get_dataset(NAME))
    assert not (alone / "cache" / HERE).exists()
    server.pause = 0.0
    assert fetch_dataset(get_dataset(NAME))[0][0].path.read_bytes() == real


def test_wrong_digest(server, alone):
    server.lies[FILE] = "0" * 32
    with pytest.raises(InputError, match=f"has the MD5 digest {md5(server.records[SCPERTURB][FILE])}, but the record"):
        fetch_dataset(get_dataset(NAME))
    assert files(alone / "cache") == [NOTE]
    assert server.count(FILE) == 1


def test_wrong_size(server, alone, real):
    server.answer = server.describe(SCPERTURB)
    server.answer["files"][0]["size"] += 1
    with pytest.raises(InputError, match=r"the server has 2,909,119 bytes of .*, but the record says 2,909,120"):
        fetch_dataset(get_dataset(NAME))
    assert files(alone / "cache") == [NOTE]


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_server_out_of_order_for_a_moment(server, real, status):
    server.status, server.refusals, server.api_refusals = status, 2, 2
    assert fetch_dataset(get_dataset(NAME))[0][0].path.read_bytes() == real


def test_it_waits_as_long_as_it_is_asked_to(server, real, monkeypatch):
    waited = []
    monkeypatch.setattr(downloading.time, "sleep", waited.append)
    server.status, server.refusals, server.retry_after = 429, 1, "7"
    fetch_dataset(get_dataset(NAME))
    assert waited == [7.0]


def test_a_server_out_of_order_for_good(server, alone):
    server.refusals = 10**6
    with pytest.raises(InputError, match=r"500 .* from 127\.0\.0\.1"):
        fetch_dataset(get_dataset(NAME))
    assert files(alone / "cache") == [NOTE]
    server.api_refusals = 10**6
    with pytest.raises(InputError, match=r"could not fetch the list of files of scperturb/.*: 500"):
        fetch_dataset(get_dataset(NAME))


def test_the_record_is_gone(server, alone):
    server.records.clear()
    with pytest.raises(InputError, match=f"there is no record {SCPERTURB}") as caught:
        fetch_dataset(get_dataset(NAME))
    assert "https://zenodo.org/records/13350497" in caught.value.remedy
    assert files(alone) == []


def test_the_file_is_gone(server, alone):
    server.answer = server.describe(SCPERTURB)
    del server.records[SCPERTURB][FILE]
    with pytest.raises(InputError, match="404"):
        fetch_dataset(get_dataset(NAME))
    assert files(alone / "cache") == [NOTE]


def test_the_record_has_no_such_file(server):
    with pytest.raises(InputError, match=r"no file called 'NormanWeissman2019\.h5ad'") as caught:
        fetch_dataset(get_dataset("scperturb/NormanWeissman2019"))
    assert FILE in caught.value.remedy


def test_redirected(server, real):
    server.redirects[FILE] = f"{server.address}/elsewhere/{SCPERTURB}/{FILE}"
    assert fetch_dataset(get_dataset(NAME))[0][0].path.read_bytes() == real


@pytest.mark.parametrize(
    "target", ["/api/records/13350497/files/NormanWeissman2019_filtered.h5ad/content", "file:///etc/passwd"]
)
def test_redirected_in_circles_or_off_the_web(server, alone, target):
    server.redirects[FILE] = f"{server.address}{target}" if target.startswith("/") else target
    with pytest.raises(InputError, match="could not fetch"):
        fetch_dataset(get_dataset(NAME))
    assert files(alone / "cache") == [NOTE]


@pytest.mark.parametrize(
    "name", ["../../evil.h5ad", "/etc/cron.d/evil", "a/b.h5ad", "..\\evil.h5ad", ".bashrc", "a\u0000b", ""]
)
def test_hostile_file_names(server, alone, name):
    """Nothing of such a record is taken, not even the harmless file."""
    server.answer = server.describe(SCPERTURB)
    server.answer["files"].append({"key": name, "size": 4, "checksum": f"md5:{md5(b'evil')}"})
    with pytest.raises(InputError, match="which is no plain file name"):
        fetch_dataset(get_dataset(NAME))
    assert files(alone) == []
    with pytest.raises(InputError, match="is no plain file name"):
        fetch_dataset(get_dataset(NAME), names=["../../evil.h5ad"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>Maintenance</html>", "not JSON"),
        ([], "does not answer with a record"),
        ({"id": 5, "files": [{"key": "a"}]}, "answers with record 5"),
        ({"id": SCPERTURB, "files": []}, "lists no files"),
        ({"id": SCPERTURB}, "lists no files"),
        ({"id": SCPERTURB, "files": ["a"]}, "no plain file name"),
        ({"id": SCPERTURB, "files": [{"key": "a"}, {"key": "a"}]}, "two files of one name"),
    ],
)
def test_answers_that_make_no_sense(server, alone, answer, message):
    server.answer = answer
    with pytest.raises(InputError, match=message):
        fetch_dataset(get_dataset(NAME))
    assert files(alone) == []


def test_the_interface_cannot_lead_elsewhere(server, real):
    """Files come from the address of the record, whatever links the description holds."""
    server.answer = server.describe(SCPERTURB)
    server.answer["files"][0]["links"] = {"self": "http://evil.example/x"}
    assert fetch_dataset(get_dataset(NAME))[0][0].path.read_bytes() == real


def test_full_disk(server, alone, real, monkeypatch):
    """Known beforehand, and in the middle."""
    usage = shutil.disk_usage(alone)
    with monkeypatch.context() as patch:
        patch.setattr(downloading.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(InputError, match=r"needs 0.00 GB more, and .* has 0.00 GB free"):
            fetch_dataset(get_dataset(NAME))
    assert files(alone / "cache") == [NOTE]


@pytest.mark.skipif(not hasattr(shutil, "disk_usage"), reason="needs a file system of its own")
def test_a_disk_that_fills_up(server, alone, real):
    """A real file system of one megabyte; skipped where it may not be mounted."""
    place = alone / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        # The server does not say how long the file is, so that it cannot be known beforehand.
        whole = server.records[SCPERTURB][FILE]
        with pytest.raises(OSError, match="No space left on device"):
            _download_of_unknown_length(whole, place / "a.h5ad")
        assert not (place / "a.h5ad").exists()
        with pytest.raises(InputError, match=r"GB more, and|No space left on device") as caught:
            fetch_dataset(get_dataset(NAME), to=place)
        assert "make room" in caught.value.remedy
        assert not (place / "scperturb" / FILE).exists()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _download_of_unknown_length(content: bytes, target: Path) -> None:
    """Fetch from a server that sends without a length and then closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                with contextlib.suppress(OSError):
                    connection.sendall(content)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            download(f"http://127.0.0.1:{listening.getsockname()[1]}/a", target)
        finally:
            thread.join()


def test_two_at_once(server, alone, real):
    """The second is told to wait; the first is not disturbed."""
    server.pause, server.piece = 0.02, len(real) // 20
    first = threading.Thread(target=lambda: fetch_dataset(get_dataset(NAME)))
    first.start()
    partial = alone / "cache" / "datasets" / "scperturb" / f".{FILE}.partial"
    for _ in range(500):
        if partial.exists():
            break
        threading.Event().wait(0.01)
    with pytest.raises(InputError, match="another process is fetching"):
        fetch_dataset(get_dataset(NAME))
    first.join()
    assert fetch_dataset(get_dataset(NAME))[0][0].path.read_bytes() == real
    assert files(alone / "cache") == [HERE, NOTE]


def test_only_encrypted_addresses_from_encrypted_ones():
    with pytest.raises(ValueError, match="not encrypted"):
        downloading._refuse_unsafe("https://zenodo.org/a", "http://zenodo.org/a")


# Without a network


def test_offline(server, alone, monkeypatch):
    monkeypatch.setenv("TXEVAL_OFFLINE", "1")
    with pytest.raises(InputError, match="TXEVAL_OFFLINE forbids") as caught:
        fetch_dataset(get_dataset("replogle_2022"))
    for word in (
        "replogle_2022_part2.h5ad",
        "https://zenodo.org/records/14037432",
        str(alone / "cache"),
        "TXEVAL_DATA",
    ):
        assert word in caught.value.remedy
    assert server.asked == []


def test_nobody_answers(alone, monkeypatch):
    monkeypatch.setenv("TXEVAL_ZENODO", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"no connection to 127\.0\.0\.1:9") as caught:
        fetch_dataset(get_dataset(NAME))
    assert FILE in caught.value.remedy and "by hand" in caught.value.remedy
    assert files(alone) == []


def test_the_proxy_is_asked(server, real, monkeypatch):
    """HTTP_PROXY stands between, here the server itself, which then sees whole addresses."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", server.address)
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("TXEVAL_ZENODO", "http://zenodo.example")
    assert fetch_dataset(get_dataset(NAME))[0][0].path.read_bytes() == real


def test_a_mirror_is_searched_first(server, alone, real, monkeypatch):
    """A folder that `fetch --to` filled is enough for a machine without a network, and is verified there."""
    fetch_dataset(get_dataset(NAME), to=alone / "mirror")
    assert files(alone / "mirror") == [f"scperturb/{FILE}", f"scperturb/{RECORD_FILE}"]
    asked = len(server.asked)
    shutil.copytree(alone / "mirror", alone / "node")
    monkeypatch.setenv("TXEVAL_DATA", str(alone / "node"))
    monkeypatch.setenv("TXEVAL_OFFLINE", "1")
    found, _ = fetch_dataset(get_dataset(NAME))
    assert found[0].path == alone / "node" / "scperturb" / FILE
    assert found[0].verified
    assert len(server.asked) == asked
    # Damaged on the way: said, not used.
    damaged = bytearray(real)
    damaged[1000] ^= 1
    found[0].path.write_bytes(damaged)
    with pytest.raises(InputError, match="has the MD5 digest"):
        fetch_dataset(get_dataset(NAME))
    found[0].path.write_bytes(real[:-5])
    with pytest.raises(InputError, match="has 2,909,114 bytes; its record says 2,909,119"):
        fetch_dataset(get_dataset(NAME))


def test_a_file_put_there_by_hand(alone, real, monkeypatch):
    """In a folder of the data set or beside others; that nothing vouches for it is said."""
    monkeypatch.setenv("TXEVAL_DATA", str(alone / "mine"))
    (alone / "mine").mkdir()
    (alone / "mine" / FILE).write_bytes(real)
    [found] = find_dataset(get_dataset(NAME))
    assert found.path == alone / "mine" / FILE
    assert not found.verified and RECORD_FILE in found.checked


def test_parts_are_looked_for_in_all_records(alone, data_dir, monkeypatch):
    """The three parts in two records, the others by what their names look like."""
    content = (data_dir / "kang2018_pbmc_ifnb_muscat.h5ad").read_bytes()
    parts = {f"replogle_2022_part{i}.h5ad": content + bytes([i]) for i in (3, 1, 2)}
    records = {
        PAPER[0]: {name: parts[name] for name in list(parts)[:2]},
        PAPER[1]: {"replogle_2022_part2.h5ad": parts["replogle_2022_part2.h5ad"], "crispr_L1000.h5ad": b"l1000"},
        PAPER[2]: {"joung_a.h5ad": b"a", "joung_b.h5ad": b"b", "notes.txt": b""},
    }
    with zenodo_server(records) as state:
        monkeypatch.setenv("TXEVAL_ZENODO", state.address)
        found, asked = fetch_dataset(get_dataset("replogle_2022"))
        assert [file.path.name for file in found] == [f"replogle_2022_part{i}.h5ad" for i in (1, 2, 3)]
        assert [file.path.read_bytes()[-1] for file in found] == [1, 2, 3]
        assert [record.id for record in asked] == list(PAPER)
        assert fetch_dataset(get_dataset("l1000_crispr"))[0][0].path.read_bytes() == b"l1000"
        with pytest.raises(InputError, match=r"2 files fit the name \*joung\*.h5ad: joung_a.h5ad, joung_b.h5ad") as why:
            fetch_dataset(get_dataset("joung_2023"))
        assert "--file joung_a.h5ad" in why.value.remedy
        assert fetch_dataset(get_dataset("joung_2023"), names=["joung_b.h5ad"])[0][0].path.read_bytes() == b"b"
        records[PAPER[2]].clear()
        records[PAPER[2]]["notes.txt"] = b""
        shutil.rmtree(alone / "cache")
        with pytest.raises(InputError, match="no file of the records fits the name"):
            fetch_dataset(get_dataset("joung_2023"))


def test_members_of_scperturb(server):
    assert [file.name for file in list_family(get_dataset("scperturb")).files] == [FILE, "README.txt"]
    with pytest.raises(InputError, match="scperturb is many data sets"):
        fetch_dataset(get_dataset("scperturb"))


# Preparing


def counts_of(path: Path) -> np.ndarray:
    found = anndata.read_h5ad(path).layers["counts"]
    return found.toarray() if sp.issparse(found) else np.asarray(found)


@pytest.mark.parametrize(
    ("name", "reference", "sizes"),
    [
        ("norman_2019_devel", "norman2019_k562_crispra_500hvg.h5ad", (3375, 33, 100, 8)),
        ("mcfaline_2023_devel", "mcfaline2023_gbm_crispri_500hvg.h5ad", (2586, 9, 300, 12)),
    ],
)
def test_recipe_equals_the_screen_prepared_by_hand(alone, data_dir, monkeypatch, name, reference, sizes):
    """Labels, batches and recovered counts, from the published file; the run's description is one that validates."""
    monkeypatch.setenv("TXEVAL_DATA", str(data_dir))
    dataset = get_dataset(name)
    done = prepare_dataset(dataset, find_dataset(dataset), alone / "new" / "a.h5ad")
    ours, theirs = anndata.read_h5ad(alone / "new" / "a.h5ad"), anndata.read_h5ad(data_dir / reference)
    assert ours.obs_names.equals(theirs.obs_names) and ours.var_names.equals(theirs.var_names)
    for column in theirs.obs:
        assert ours.obs[column].astype(str).tolist() == theirs.obs[column].astype(str).tolist(), column
    np.testing.assert_array_equal(counts_of(alone / "new" / "a.h5ad"), theirs.layers["counts"].toarray())
    assert ours.layers["counts"].dtype == np.uint16
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())
    found = tuple(done.sizes[what] for what in ("samples", "perturbations", "controls", "batches"))
    assert found == sizes
    assert {check.verdict for check in done.checks} == {"as published"}
    assert done.run_file == alone / "new" / "a.yaml"
    assert main(["validate", str(done.run_file)]) == 0
    assert prepare_dataset(dataset, find_dataset(dataset), alone / "new" / "a.h5ad").prepared.reused


def test_deviations_are_reported(alone, real, monkeypatch, capsys):
    """Parts of a real screen in the place of Replogle's: prepared, and every size that is not the paper's is said."""
    whole = anndata.read_h5ad(_put(alone / "real.h5ad", real))
    whole.obs = whole.obs.rename(columns={"perturbation": "gene_name", "control": "is_control", "bio_rep": "gem_group"})
    records = {PAPER[0]: {}, PAPER[1]: {"x.txt": b""}, PAPER[2]: {"y.txt": b""}}
    for i, rows in enumerate((slice(0, 8000), slice(8000, 8001), slice(8001, None))):
        whole[rows].write_h5ad(alone / "part.h5ad", compression="gzip")
        records[PAPER[0]][f"replogle_2022_part{i + 1}.h5ad"] = (alone / "part.h5ad").read_bytes()
    with zenodo_server(records) as state:
        monkeypatch.setenv("TXEVAL_ZENODO", state.address)
        assert main(["data", "prepare", "replogle_2022", "--plain", "--min-counts", "0"]) == 0
    out = capsys.readouterr().out
    found = anndata.read_h5ad("replogle_2022.h5ad")
    np.testing.assert_array_equal(found.X.toarray(), whole.X.toarray())
    assert found.obs_names.equals(whole.obs_names)
    assert found.X.dtype.kind == "u"
    assert found.uns["source"]["dataset"] == "replogle_2022"
    text = " ".join(out.split())
    assert "samples about 1,980,000 20,729 -1,959,271 (-99 %): differs" in text
    assert "perturbations 9,866 25 " in text
    assert "train: batches 186 " in text
    assert "depends on the draw" in text
    assert "licence cc-by-4.0 (Zenodo record 14037432)" in text
    assert "batch: column 'gem_group'" in text
    assert "txeval run replogle_2022.yaml" in text
    assert main(["validate", "replogle_2022.yaml", "--min-counts", "0"]) == 0
    # Made already: nothing is done again.
    assert main(["data", "prepare", "replogle_2022", "--plain", "--min-counts", "0"]) == 0
    assert "from the same files in the same way" in capsys.readouterr().out


def _put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_description_of_a_run_is_not_overwritten(alone, data_dir, monkeypatch):
    monkeypatch.setenv("TXEVAL_DATA", str(data_dir))
    dataset = get_dataset("norman_2019_devel")
    (alone / "a.yaml").write_text("mine: true\n")
    done = prepare_dataset(dataset, find_dataset(dataset), alone / "a.h5ad")
    assert done.run_file is None
    assert any("left as it is" in note or "left as it was" in note or "it was left" in note for note in done.notes)
    assert (alone / "a.yaml").read_text() == "mine: true\n"


# The command


def test_what_a_newcomer_sees(server, alone, capsys):
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert "replogle_2022" in out and "scperturb/NAME" in out and "txeval data describe NAME" in out
    assert main(["data", "list", "scperturb"]) == 0
    assert f"{NAME}  2.9 MB" in capsys.readouterr().out
    assert main(["data", "fetch", NAME]) == 0
    shown = capsys.readouterr()
    assert "2.9 MB, verified: MD5 as record 13350497 states" in shown.out
    assert "cc-by-4.0" in shown.out and f"Next: txeval data prepare {NAME}" in shown.out
    assert f"fetching {FILE}" in shown.err
    assert main(["data", "describe", "replogle_2022"]) == 0
    out = capsys.readouterr().out
    assert "75,328" in out and "Not verified" in out and "dataset_batch_num" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data"], "the following arguments are required: ACTION"),
        (["data", "fetchh"], "did you mean 'fetch'"),
        (["data", "fetch", "replogle"], "did you mean 'replogle_2022'"),
        (["data", "prepare", "norman_2019_devel", "--max-memory", "lots"], "no amount of memory"),
        (["data", "prepare", "norman_2019_devel", "--max-memory", "1M"], "1M is too little: 512M is the least"),
        (["data", "prepare", "norman_2019_devel", "--keep", "x"], "write COLUMN=LABEL"),
        (["data", "prepare", "a.h5ad"], "where to"),
        (["data", "prepare", "a.h5ad", "--out", "b.h5ad"], "no such file"),
        (["data", "prepare", "norman_2019_devel", "--genes", "none.txt"], "cannot be read as text"),
        (["data", "list", "replogle_2022"], "is one data set"),
    ],
)
def test_slips(arguments, message, capsys, data_dir, monkeypatch):
    monkeypatch.setenv("TXEVAL_DATA", str(data_dir))
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_note_of_records_is_damaged(server, alone):
    fetch_dataset(get_dataset(NAME))
    (alone / "cache" / NOTE).write_text("{}")
    with pytest.raises(InputError, match="is no note of Zenodo records"):
        find_dataset(get_dataset(NAME))


def test_the_digest_is_computed_once(server, alone, monkeypatch):
    """Gigabytes are not read again for a digest while the file is the same."""
    [found], _ = fetch_dataset(get_dataset(NAME))
    kept = json.loads((alone / "cache" / NOTE).read_text())["files"][FILE]
    assert kept["compared"] == [found.size, found.path.stat().st_mtime_ns]
    monkeypatch.setattr("txeval.data.datasets.file_digests", lambda _: pytest.fail("read again"))
    assert find_dataset(get_dataset(NAME)) == [found]


def test_broken_says_that_it_may_go_on():
    assert issubclass(Broken, OSError)
    assert isinstance(Zenodo(), Zenodo)
