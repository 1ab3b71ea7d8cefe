"""A cluster with TLS on loopback: equal scores with the certificate, no way in without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_helpers import Cluster, cluster
from run_helpers import run, same_scores

from txeval.errors import InputError

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")
pytest.importorskip("cryptography")


def certificate(folder: Path, *, client_only: bool = False) -> dict[str, str]:
    """Settings of Dask with a new certificate."""
    folder.mkdir()
    pair = distributed.Security.temporary().get_tls_config_for_role("client")
    files = {}
    for name in ("cert", "key"):
        (folder / name).write_text(pair[name])
        files[name] = str(folder / name)
    settings = {"ca-file": files["cert"]}
    for side in ("client",) if client_only else ("client", "scheduler", "worker"):
        settings |= {f"{side}.{name}": file for name, file in files.items()}
    return {"distributed.comm.require-encryption": "True"} | {
        f"distributed.comm.tls.{name}": value for name, value in settings.items()
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return certificate(tmp_path_factory.mktemp("certificates") / "own")


@pytest.fixture(scope="module")
def made(plugin: None, settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # Dask reads its settings from variables, too.
    variables = {f"DASK_{name.upper().replace('.', '__').replace('-', '_')}": value for name, value in settings.items()}
    with cluster(tmp_path_factory.mktemp("cluster"), 1, protocol="tls", **variables) as made:
        yield made


def test_with_the_certificate(made: Cluster, settings: dict[str, str], screen_file: Path, tmp_path: Path) -> None:
    assert made.address.startswith("tls://")
    with dask.config.set(settings):
        there = run(screen_file, tmp_path / "there", scheduler=made.address)
    same_scores(there.scores, run(screen_file, tmp_path / "here").scores)


@pytest.mark.parametrize("case", ["no certificate", "no TLS", "the certificate of somebody else", "TLS is required"])
def test_without_it(made: Cluster, settings: dict[str, str], screen_file: Path, tmp_path: Path, case: str) -> None:
    address, own = made.address, {}
    if case == "no TLS":
        address = address.replace("tls://", "tcp://")
    elif case == "TLS is required":
        address, own = address.replace("tls://", "tcp://"), settings
    elif case != "no certificate":
        own = certificate(tmp_path / "other", client_only=True)
    with dask.config.set(own), pytest.raises(InputError, match=r"cannot be reached|does not answer") as why:
        run(screen_file, tmp_path / "out", scheduler=address)
    assert "certificate" in why.value.remedy
    assert not list((tmp_path / "out").glob("cells/*"))
