"""The package's face: its names, how fast it loads, and the frame of the command line."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import txeval
from txeval.cli import build_parser, main
from txeval.cli.base import find_commands
from txeval.errors import InputError

HEAVY = ("torch", "numba", "anndata", "pandas", "scipy", "sklearn", "pyarrow")


def test_every_public_name_can_be_had() -> None:
    for name in txeval.__all__:
        assert getattr(txeval, name) is not None
    assert set(dir(txeval)) == set(txeval.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = txeval.nonsense


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"], ["shwo"]])
def test_help_and_typing_slips_load_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom txeval.cli import main\n"
        f"main({words!r})\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout
    # Half a second on an idle machine; the margin is for a busy one.
    assert time.perf_counter() - start < 3


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"txeval {txeval.__version__}\n"


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    commands = find_commands()
    assert {"demo", "run", "validate", "show", "merge", "protocols", "tasks", "embedders"} <= set(commands)
    for name in commands:
        assert main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: txeval {name}")
        assert max(map(len, out.splitlines())) <= 130


def test_a_file_is_all_that_a_command_needs() -> None:
    files = {path.stem for path in Path(sys.modules["txeval.cli.commands"].__file__).parent.glob("[!_]*.py")}
    assert files == set(find_commands())


def test_a_fault_is_reported_with_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(source: str) -> None:
        raise RuntimeError("the roof is leaking")

    monkeypatch.delenv("TXEVAL_DEBUG", raising=False)
    monkeypatch.setattr("txeval.protocol.load_protocol", broken)
    assert main(["protocols", "paper"]) == 70
    err = capsys.readouterr().err
    assert "the roof is leaking" in err
    assert "Traceback" not in err
    log = Path(re.search(r"(\S+\.log)", err)[1])
    assert "Traceback" in log.read_text()
    log.unlink()
    monkeypatch.setenv("TXEVAL_DEBUG", "1")
    assert main(["protocols", "paper"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(source: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("txeval.protocol.load_protocol", stopped)
    assert main(["protocols", "paper"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_fault() -> None:
    done = subprocess.run(
        f"{sys.executable} -m txeval protocols paper | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_messages_carry_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols", "\x1b[31mpaper"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_debug_shows_where_an_error_is_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TXEVAL_DEBUG", "1")
    assert main(["protocols", "nonsense"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_parser_raises_instead_of_leaving_the_process() -> None:
    with pytest.raises(InputError, match="--seeds"):
        build_parser().parse(["run", "x.h5ad", "--seeds", "none"])


def test_protocols_are_listed_shown_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    from txeval.protocol import list_protocols
    from txeval.tasks.registry import list_tasks

    assert main(["protocols"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in list_protocols())
    assert main(["protocols", "paper"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert set(shown["tasks"]) == {task.name for task in list_tasks()}
    assert shown["tasks"]["knn"]["k"] == 251
    assert main(["protocols", "paper", "reference"]) == 0
    assert "tasks.linear_probe.batch_size" in capsys.readouterr().out


def test_a_protocol_that_is_shown_can_be_given_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols", "reference"]) == 0
    file = tmp_path / "again.yaml"
    file.write_text(capsys.readouterr().out)
    assert main(["protocols", "reference", str(file)]) == 0
    assert "same parameters" in capsys.readouterr().out


def test_tasks_and_embedders_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    out = capsys.readouterr().out
    assert all(f"Level {level}" in out for level in range(1, 7))
    assert main(["embedders"]) == 0
    assert "@components=" in capsys.readouterr().out
