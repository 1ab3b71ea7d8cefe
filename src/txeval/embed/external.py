"""Any command of another environment as an embedder: it gets an .h5ad file and writes a table of embeddings."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

from txeval.compute.arrays import Ints, Strings
from txeval.data.matrix import open_store, var_of
from txeval.data.scale import SCALES, require_scale
from txeval.embed.base import EmbedderInfo, Embedding, EmbeddingContext
from txeval.embed.checkpoints import file_digest
from txeval.embed.precomputed import Precomputed
from txeval.embed.spec import SUFFIXES
from txeval.errors import InputError, unknown

if TYPE_CHECKING:
    from txeval.data.screen import Screen

__all__ = ["EMBEDDERS", "External", "run_command", "write_samples"]

#: Lines of what a command said that an error shows.
_SHOWN = 15

#: Files named in a command that are larger than this do not enter the fingerprint.
_LARGEST_SCRIPT = 10_000_000

#: Seconds between asking a command to stop and ending it.
_GRACE = 5.0

_ENDINGS = (*SUFFIXES, ".h5ad")


@dataclass(frozen=True)
class _Written:
    """The samples as they were written, for the alignment of what comes back."""

    path: Path
    sample_names: Strings
    has_unique_names: bool = True

    @property
    def n(self) -> int:
        return len(self.sample_names)

    n_file = n

    @property
    def kept(self) -> Ints:
        return np.arange(self.n)


def write_samples(screen: Screen, path: Path, *, max_elements: int | None = None) -> Strings:
    """Write the kept samples of a screen to an .h5ad file, by blocks.

    X holds the values of the screen as they are; `obs` the roles (perturbation, is_control, batch, target_gene,
    cell_line); `var` its columns of the screen's file; `uns["txeval"]` says what scale the values have.

    Returns
    -------
    (n,) object
        Names in `obs`: those of the samples, or "row_NUMBER" of the file where those are not unique.
    """
    names: Strings = screen.sample_names
    if not screen.has_unique_names:
        names = np.array([f"row_{row}" for row in screen.kept], dtype=object)
    samples = screen.samples
    obs = pd.DataFrame(
        {
            "perturbation": _labels(samples.perturbation, samples.perturbations),
            "is_control": samples.is_control,
            "batch": _labels(samples.batch, samples.batches),
            "target_gene": pd.Categorical([str(gene) for gene in samples.target_genes[samples.perturbation]]),
        },
        index=pd.Index([str(name) for name in names]),
    )
    if samples.cell_line is not None and samples.cell_lines is not None:
        obs["cell_line"] = _labels(samples.cell_line, samples.cell_lines)
    store = open_store(screen.path)
    try:
        var = store.frame(var_of(screen.where)).set_axis([str(gene) for gene in screen.genes])
    finally:
        store.close()
    try:
        with h5py.File(path, "w") as file:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            _write_matrix(file, screen, max_elements)
            write_elem(file, "obs", obs)
            write_elem(file, "var", var)
            write_elem(file, "uns", {"txeval": {"scale": screen.scale, "matrix": screen.where, "screen": screen.name}})
            # Older readers expect these groups.
            for group in ("obsm", "varm", "obsp", "varp", "layers"):
                write_elem(file, group, {})
    except OSError as why:
        raise InputError(
            f"cannot write {path} ({why.strerror or why})", remedy="free some space or choose another folder"
        ) from why
    return names


def _labels(codes: Ints, labels: Strings) -> pd.Categorical[Any]:
    return pd.Categorical.from_codes(codes, pd.Index([str(label) for label in labels]))


def _write_matrix(file: Any, screen: Screen, max_elements: int | None) -> None:
    """X by blocks: CSR where the screen is sparse, else dense."""
    shape = (screen.n, screen.n_genes)
    group: Any = None
    pointers = [np.zeros(1, dtype=np.int64)]
    for part, block in screen.blocks(max_elements=max_elements):
        if not sp.issparse(block):
            if group is None:
                group = file.create_dataset("X", shape=shape, dtype=np.float32)
                group.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            group[part] = block
            continue
        if group is None:
            group = file.create_group("X")
            group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
            # scipy wants both kinds of indices of one type, and int32 does not reach for every screen.
            for name, dtype in (("data", np.float32), ("indices", np.int64)):
                group.create_dataset(name, shape=(0,), maxshape=(None,), dtype=dtype, chunks=(65_536,))
        start = int(pointers[-1][-1])
        for name, values in (("data", block.data), ("indices", block.indices)):
            group[name].resize((start + block.nnz,))
            group[name][start:] = values
        pointers.append(start + block.indptr[1:].astype(np.int64))
    if isinstance(group, h5py.Group):
        group.create_dataset("indptr", data=np.concatenate(pointers))


def run_command(
    arguments: Sequence[str],
    folder: Path,
    *,
    timeout: float = 0,
    tell: Callable[[float, str], None] = lambda seconds, line: None,
) -> float:
    """Run a program without a shell; what it says goes to `stdout.txt` and `stderr.txt` in a folder.

    Parameters
    ----------
    timeout
        Seconds after which it is ended, with everything that it started; 0: never.
    tell
        Called every second with the seconds so far and the last line that it wrote.

    Returns
    -------
    float
        Seconds that it took.

    Raises
    ------
    InputError
        It cannot be started, takes too long, or fails: the last lines of its standard error are shown.
    """
    files = {name: folder / f"{name}.txt" for name in ("stdout", "stderr")}
    shown = shlex.join(arguments)
    started = time.monotonic()
    with files["stdout"].open("wb") as out, files["stderr"].open("wb") as err:
        try:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as why:
            raise InputError(
                f"external: the command cannot be started: {shown} ({why.strerror or why})",
                remedy="give the full path of the program, such as that of the other environment's python",
            ) from why
    try:
        while process.poll() is None:
            passed = time.monotonic() - started
            if timeout and passed > timeout:
                raise InputError(
                    f"external: the command ran for more than {timeout:g} s and was stopped: {shown}{_said(files)}",
                    remedy="raise the option timeout, or let it do less",
                )
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(1.0, timeout - passed + 0.01) if timeout else 1.0)
            tell(time.monotonic() - started, (_last(files["stderr"], 1) or _last(files["stdout"], 1) or [""])[-1])
    finally:
        _end(process)
    if process.returncode != 0:
        how = f"exit status {process.returncode}"
        if process.returncode < 0:
            how = f"ended by signal {-process.returncode}"
        raise InputError(
            f"external: the command failed ({how}): {shown}{_said(files)}",
            remedy=f"run it by hand; all that it said is in {folder}",
        )
    return time.monotonic() - started


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a program and what it started; does nothing where all of it has ended."""
    for sign, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        if process.poll() is not None and sign == signal.SIGTERM:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _last(file: Path, lines: int) -> list[str]:
    """Last lines of a file, printable, without those that are empty."""
    with suppress(OSError), file.open("rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - 20_000))
        text = handle.read().decode("utf-8", errors="replace")
        found = ["".join(c if c.isprintable() else " " for c in line).rstrip() for line in text.splitlines()]
        return [line[:500] for line in found if line][-lines:]
    return []


def _said(files: Mapping[str, Path]) -> str:
    for name in ("stderr", "stdout"):
        lines = _last(files[name], _SHOWN)
        if lines:
            return f"\n  the last lines of its {name}:\n" + "\n".join(f"  | {line}" for line in lines)
    return "\n  it said nothing"


class External:
    """A command of another environment, for models that cannot or may not be installed beside this program."""

    info = EmbedderInfo(
        name="external",
        summary="Any command that reads an .h5ad file and writes one row per sample.",
        options={
            "command": ("", "the command, with {input} and {output} (and {device}) where paths go; no shell reads it"),
            "output": ("embedding.parquet", "name of the file that it writes: .parquet, .csv, .npy, .npz or .h5ad"),
            "key": ("", ".h5ad: the element, such as obsm/X_emb; .npz: which array"),
            "positional": (False, "whether rows without names are in the order of the file that it got"),
            "nan": (None, "number to put in the place of NaN"),
            "scale": ("", "scale that it needs, such as counts: others are refused"),
            "timeout": (0.0, "seconds after which it is stopped; 0: never"),
            "version": ("", "any text; another one makes the embedding again, where the command itself stays the same"),
        },
        needs="what the command needs",
        licence="that of the command and its weights",
    )

    def _checked(self, screen: Screen, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        options = {name: given.get(name, default) for name, (default, _) in self.info.options.items()}
        command = options["command"]
        example = "command='/envs/helical/bin/python embed.py {input} {output}'"
        if not command.strip():
            raise InputError("embedding external: no command is given", remedy=f"give one: {example}")
        for place in ("{input}", "{output}"):
            if place not in command:
                raise InputError(
                    f"embedding external: the command has no {place}: {command}",
                    remedy=f"write it like this: {example}",
                )
        try:
            arguments = shlex.split(command)
        except ValueError as why:
            raise InputError(
                f"embedding external: the command cannot be split into words ({why}): {command}",
                remedy="close every quote",
            ) from None
        if shutil.which(arguments[0]) is None:
            raise InputError(
                f"embedding external: there is no program {arguments[0]}",
                remedy="give the full path of the program, such as that of the other environment's python",
            )
        name = options["output"]
        if Path(name).name != name or not name.lower().endswith(_ENDINGS):
            raise InputError(
                f"embedding external: output is {name!r}",
                remedy=f"give a file name without a folder that ends in one of {', '.join(_ENDINGS)}",
            )
        if name.lower().endswith(".h5ad") and not options["key"]:
            raise InputError(f"embedding external: which element of {name}?", remedy="give it: key=obsm/X_emb")
        if not options["timeout"] >= 0:
            raise InputError(f"embedding external: timeout is {options['timeout']}", remedy="give seconds; 0: none")
        if options["scale"]:
            if options["scale"] not in SCALES:
                raise unknown("scale", options["scale"], SCALES, where="embedding external")
            require_scale(screen, {options["scale"]}, step="embedding external")
        return options, arguments

    def fingerprint(self, screen: Screen, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check the command; digests of the files that it names, such as its script."""
        _, arguments = self._checked(screen, options)
        scripts = {}
        for word in arguments[1:]:
            with suppress(OSError, ValueError):
                path = Path(word)
                if path.is_file() and path.stat().st_size <= _LARGEST_SCRIPT:
                    scripts[word] = file_digest(path)
        return {"files": scripts}

    def embed(self, screen: Screen, options: Mapping[str, Any], context: EmbeddingContext) -> Embedding:
        """Write the samples, run the command, read its answer, match it by the names of the samples."""
        options, arguments = self._checked(screen, options)
        folder = context.folder.resolve()
        given, answer = folder / "input.h5ad", folder / options["output"]
        answer.unlink(missing_ok=True)
        context.progress(0, screen.n, "external: writing the samples")
        names = write_samples(screen, given, max_elements=context.max_elements)
        places = {"{input}": str(given), "{output}": str(answer), "{device}": context.device}
        for place, value in places.items():
            arguments = [word.replace(place, value) for word in arguments]
        seconds = run_command(
            arguments,
            folder,
            timeout=float(options["timeout"]),
            tell=lambda passed, line: context.progress(0, screen.n, f"external: {passed:.0f} s: {line[:80]}"),
        )
        if not answer.is_file():
            raise InputError(
                f"external: the command ended well but wrote no {answer.name}: {shlex.join(arguments)}"
                f"{_said({name: folder / f'{name}.txt' for name in ('stdout', 'stderr')})}",
                remedy="let it write to the path that stands for {output}",
            )
        made = self._read(screen, names, given, answer, options, context)
        given.unlink(missing_ok=True)
        return Embedding(
            made.values,
            {
                **made.provenance,
                "method": "external command",
                "command": options["command"],
                "files": dict(self.fingerprint(screen, options)["files"]),
                "command_seconds": round(seconds, 3),
                "names": "those of the samples"
                if screen.has_unique_names
                else "row_NUMBER of the file, since sample names are not unique",
                "input_note": f"{screen.where}, {screen.scale} values",
            },
        )

    def _read(
        self,
        screen: Screen,
        names: Strings,
        given: Path,
        answer: Path,
        options: Mapping[str, Any],
        context: EmbeddingContext,
    ) -> Embedding:
        is_anndata = answer.name.lower().endswith(".h5ad")
        reader = Precomputed(f"{answer}#{options['key']}" if is_anndata else str(answer))
        settings = {
            "key": options["key"] if answer.name.lower().endswith(".npz") else "",
            "names": "",
            "positional": options["positional"],
            "nan": options["nan"],
        }
        # It reads no more of a screen than names and numbers of samples.
        written = cast("Screen", _Written(given, names))
        try:
            return reader.embed(written, settings, replace(context, folder=answer.parent))
        except InputError as why:
            raise InputError(
                f"external: what the command wrote cannot be used: {why.problem}", remedy=why.remedy
            ) from why


EMBEDDERS = (External(),)
