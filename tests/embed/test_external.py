"""Commands of other environments: what they get, what is read back, and how they fail."""

from __future__ import annotations

import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import pytest
import scipy.sparse as sp
from small_screen import ROLES, small_adata

from txeval.data import Roles, open_screen
from txeval.embed import embedding_fingerprint, make_embedding, resolve
from txeval.embed.base import EmbeddingSpec
from txeval.embed.external import write_samples
from txeval.errors import InputError


@pytest.fixture
def script(tmp_path):
    """Writes a Python script and gives the command that runs it."""

    def write(text, arguments="{input} {output}", name="embed.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return f"{sys.executable} {tmp_path / name} {arguments}"

    return write


# Sums of even and odd genes: two numbers per sample that show which row is whose.
READ = """
    import sys
    import h5py, numpy as np
    given, answer = sys.argv[1:3]
    with h5py.File(given) as file:
        names = file["obs"][file["obs"].attrs["_index"]].asstr()[:]
        n, g = file["X"].attrs["shape"]
        x = np.zeros((n, g))
        ends = file["X/indptr"][:]
        for i in range(n):
            part = slice(ends[i], ends[i + 1])
            x[i, file["X/indices"][part]] = file["X/data"][part]
    values = np.column_stack([x[:, ::2].sum(axis=1), x[:, 1::2].sum(axis=1)])
    order = np.random.default_rng(0).permutation(len(names))
"""
WRITE = {
    "parquet": "import pandas as pd; pd.DataFrame(values[order], index=names[order], columns=['a', 'b'])"
    ".to_parquet(answer)",
    "csv": "import pandas as pd; pd.DataFrame(values[order], index=names[order]).to_csv(answer)",
    "npz": "np.savez(answer, values=values[order], names=names[order].astype(str))",
    "npy": "np.save(answer, values)",
}


def spec(command, **options):
    return EmbeddingSpec("mine", "external", {"command": command, **options})


def expected(adata):
    x = adata.X.toarray()
    return np.column_stack([x[:, ::2].sum(axis=1), x[:, 1::2].sum(axis=1)])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("parquet", {}),
        ("csv", {"output": "made.csv"}),
        ("npz", {"output": "made.npz", "key": "values"}),
        ("npy", {"output": "made.npy", "positional": True}),
    ],
)
def test_rows_are_matched_by_name(write_screen, context, script, kind, options, capfd):
    adata = small_adata()
    screen = write_screen(adata, min_counts=float(np.quantile(np.asarray(adata.X.sum(axis=1)), 0.2)))
    assert screen.n < 120
    said = []
    context = replace(context, progress=lambda *what: said.append(what[2]))
    found = make_embedding(spec(script(READ + f"    {WRITE[kind]}"), **options), screen, context)
    np.testing.assert_allclose(found.values[:], expected(adata)[screen.kept])
    assert found.provenance["aligned"].startswith("by position" if kind == "npy" else "by name")
    assert found.provenance["command_seconds"] > 0
    assert next(iter(found.provenance["files"])).endswith("embed.py")
    # The copy of the samples is not kept, and nothing is said on the user's screen.
    assert not (context.folder / "input.h5ad").exists() and said
    assert capfd.readouterr() == ("", "")


def test_an_h5ad_back(write_screen, context, script):
    adata = small_adata()
    command = script(
        """
        import sys, anndata
        adata = anndata.read_h5ad(sys.argv[1])
        adata.obsm["X_emb"] = adata.X[:, :3].toarray()
        adata[::-1].copy().write_h5ad(sys.argv[2])
        """
    )
    options = {"output": "made.h5ad", "key": "obsm/X_emb"}
    found = make_embedding(spec(command, **options), write_screen(adata), context)
    np.testing.assert_array_equal(found.values[:], adata.X[:, :3].toarray())


@pytest.mark.parametrize("dense", [False, True])
def test_what_the_command_gets(tmp_path, data_dir, dense):
    adata = ad.read_h5ad(data_dir / "papalexi2021_thp1_ecciteseq_299genes.h5ad")[:500].copy()
    adata.var["ensembl_id"] = [f"ENSG{i}" for i in range(299)]
    adata.var["kind"] = pd.Categorical(["a", "b", "c"] * 99 + ["a", "b"])
    if dense:
        adata.X = adata.X.toarray()
    adata.write_h5ad(tmp_path / "screen.h5ad")
    roles = Roles("perturbation", control=("non-targeting",), batch="bio_rep", cell_line="grna")
    with open_screen(tmp_path / "screen.h5ad", roles, min_counts=200) as screen:
        names = write_samples(screen, tmp_path / "written.h5ad", max_elements=299 * 50)
        written = ad.read_h5ad(tmp_path / "written.h5ad")
        kept = adata[screen.kept]
        assert 100 < screen.n < 500 and written.obs_names.tolist() == kept.obs_names.tolist() == names.tolist()
    dense_of = lambda x: x.toarray() if sp.issparse(x) else x  # noqa: E731
    assert sp.issparse(written.X) != dense
    np.testing.assert_array_equal(dense_of(written.X), dense_of(kept.X))
    assert written.var_names.tolist() == adata.var_names.tolist()
    pd.testing.assert_frame_equal(written.var, adata.var, check_names=False)
    for ours, theirs in (("perturbation", "perturbation"), ("batch", "bio_rep"), ("cell_line", "grna")):
        assert written.obs[ours].astype(str).tolist() == kept.obs[theirs].astype(str).tolist()
    assert written.obs["is_control"].tolist() == (kept.obs["perturbation"] == "non-targeting").tolist()
    assert written.uns["txeval"]["scale"] == "counts"


def test_names_that_are_not_unique(tmp_path, context, script):
    adata = small_adata()
    adata.obs_names = ["same"] * 60 + [f"cell{i}" for i in range(60)]
    with pytest.warns(UserWarning, match="not unique"):
        adata.write_h5ad(tmp_path / "screen.h5ad")
        adata = adata.copy()
    with open_screen(tmp_path / "screen.h5ad", ROLES) as screen:
        found = make_embedding(spec(script(READ + f"    {WRITE['parquet']}")), screen, context)
    np.testing.assert_allclose(found.values[:], expected(adata))
    assert "row_NUMBER" in found.provenance["names"]


def test_fingerprint(screen, script):
    def digest(made):
        return embedding_fingerprint(made, screen, 0)

    command = script("print(1)")
    first = digest(spec(command))
    assert first == digest(spec(command)) == digest(replace(spec(command), label="other"))
    assert digest(spec(command, version="2")) != first
    # Another script under the same name makes another embedding.
    assert digest(spec(script("print(2)"))) != first


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("import sys; print('half', file=sys.stderr); sys.exit('no weights')", r"status 1.*\| half\n.*\| no weights"),
        ("print('to stdout'); raise SystemExit(3)", r"exit status 3.*last lines of its stdout:\n  \| to stdout"),
        ("raise SystemExit(4)", r"exit status 4.*it said nothing"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
        ("print('done')", r"wrote no embedding.parquet.*\| done"),
        ("import sys; open(sys.argv[2], 'w').write('x')", "what the command wrote cannot be used"),
        ("import sys\nfor i in range(99): print(i, '\\x1b[31m', file=sys.stderr)\nsys.exit(1)", r"\| 98  \[31m"),
    ],
)  # fmt: skip
def test_failures_show_what_the_command_said(screen, context, script, body, match):
    with pytest.raises(InputError, match=f"(?s){match}") as why:
        make_embedding(spec(script(body)), screen, context)
    assert why.value.remedy and len(why.value.problem.splitlines()) < 25


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("values = values[1:]; names = names[1:]; order = order[order < len(names)]", "1 of 120 samples have no row"),
        ("values[5, 1] = np.nan", "sample 'cell_5', column 1"),
        ("names[3] = names[4]", "occur more than once"),
    ],
)
def test_answers_that_cannot_be_used(screen, context, script, change, match):
    with pytest.raises(InputError, match=f"what the command wrote cannot be used: .*{match}"):
        make_embedding(spec(script(READ + f"    {change}\n    {WRITE['parquet']}")), screen, context)


def test_without_names_the_order_must_be_granted(screen, context, script):
    command = script(READ + f"    {WRITE['npy']}")
    with pytest.raises(InputError, match=r"no sample names.*by position"):
        make_embedding(spec(command, output="a.npy"), screen, context)
    short = script(READ + f"    values = values[:-1]\n    {WRITE['npy']}", name="short.py")
    with pytest.raises(InputError, match="119 rows for the 120 samples"):
        make_embedding(spec(short, output="a.npy", positional=True), screen, context)


def test_a_command_that_takes_too_long_ends_with_all_that_it_started(screen, context, script):
    command = script(
        """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("child", child.pid, file=sys.stderr, flush=True)
        time.sleep(600)
        """
    )
    started = time.monotonic()
    with pytest.raises(InputError, match=r"(?s)more than 2 s and was stopped.*\| child") as why:
        make_embedding(spec(command, timeout=2.0), screen, context)
    assert time.monotonic() - started < 20
    child = int(why.value.problem.split("| child ")[1].split()[0])
    for _ in range(50):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child of the command is still there")


class Stop(BaseException):
    """As Ctrl-C."""


def test_ctrl_c_ends_the_command(screen, context, script):
    pids = []

    def progress(done, total, text):
        if "pid" in text:
            pids.append(int(text.split()[-1]))
            raise Stop

    command = script("import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)")
    with pytest.raises(Stop):
        make_embedding(spec(command), screen, replace(context, progress=progress))
    assert not psutil.pid_exists(pids[0])


def test_no_shell_reads_the_command(screen, context, script, tmp_path):
    command = script("import sys; sys.exit(' '.join(sys.argv[3:]))", "{input} {output} ; touch executed $HOME `id`")
    with pytest.raises(InputError, match=r"\| ; touch executed \$HOME `id`"):
        make_embedding(spec(command), screen, context)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "no command is given"),
        ({"command": "python x.py {output}"}, r"has no \{input\}"),
        ({"command": "python x.py {input}"}, r"has no \{output\}"),
        ({"command": "python 'x.py {input} {output}"}, "cannot be split"),
        ({"command": "no-such-program-here {input} {output}"}, "there is no program no-such-program-here"),
        ({"command": "python {input} {output}", "output": "../a.npy"}, "output is"),
        ({"command": "python {input} {output}", "output": "a.txt"}, "output is"),
        ({"command": "python {input} {output}", "output": "a.h5ad"}, "which element"),
        ({"command": "python {input} {output}", "timeout": -1}, "timeout is -1"),
        ({"command": "python {input} {output}", "scale": "raw"}, "no scale called"),
        ({"command": "python {input} {output}", "scale": "log1p"}, "needs log1p values"),
    ],
)
def test_bad_options(screen, options, match):
    options = {
        **options,
        **({"command": options["command"].replace("python ", f"{sys.executable} ")} if options else {}),
    }
    with pytest.raises(InputError, match=match) as why:
        embedding_fingerprint(EmbeddingSpec("mine", "external", options), screen, 0)
    assert why.value.remedy
    assert resolve(EmbeddingSpec("mine", "external")).info.name == "external"
