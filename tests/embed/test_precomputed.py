"""Precomputed embeddings: every place, alignment, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from small_screen import small_adata

from txeval.compute.arrays import take_rows
from txeval.embed import EmbeddingSpec, embedding_fingerprint, make_embedding
from txeval.embed.rows import NpyRows, PickedRows, pick_rows
from txeval.errors import InputError

N, D = 120, 6
NAMES = np.array([f"cell_{i}" for i in range(N)])
VALUES = small_adata().obsm["X_emb"]


def made(source, screen, context, **options):
    return make_embedding(EmbeddingSpec("e", str(source), options), screen, context)


def fingerprint(source, screen, **options):
    return embedding_fingerprint(EmbeddingSpec("e", str(source), options), screen, 0)


def write(folder, kind, values=VALUES, names=NAMES):
    """Write values with names in one of the forms; gives the source."""
    columns = [f"d{j}" for j in range(values.shape[1])]
    frame = pd.DataFrame(values, index=names, columns=columns)
    path = folder / f"emb.{kind.partition('+')[0]}"
    if kind == "npy+txt":
        np.save(path, values)
        (folder / "emb.names.txt").write_text("\n".join(names) + "\n")
    elif kind == "npy+npy.txt":
        np.save(path, values)
        (folder / "emb.npy.names.txt").write_text("\n".join(names))
    elif kind == "npy+csv":
        np.save(path, values)
        pd.DataFrame({"name": names, "other": 1}).to_csv(folder / "emb.names.csv", index=False)
    elif kind == "npz":
        np.savez(path, emb=values, names=names)
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "parquet+column":
        frame.reset_index(names="barcode").to_parquet(path, index=False)
        return path, {"names": "barcode"}
    elif kind in ("csv", "tsv", "csv.gz"):
        frame.to_csv(path, sep="\t" if kind == "tsv" else ",")
    elif kind == "csv+column":
        frame.assign(barcode=names).to_csv(path, index=False)
        return path, {"names": "barcode"}
    elif kind in ("h5ad", "zarr", "h5ad+frame", "h5ad+sparse", "h5ad+X", "h5ad+layer"):
        adata = anndata.AnnData(values, obs=pd.DataFrame(index=names))
        adata.layers["l"] = values
        adata.obsm["X_emb"] = values
        if kind == "h5ad+frame":
            adata.obsm["X_emb"] = frame.copy()
        if kind == "h5ad+sparse":
            adata.obsm["X_emb"] = sparse.csr_matrix(values)
        if kind == "zarr":
            adata.write_zarr(path)
        else:
            adata.write_h5ad(path)
        return f"{path}#{ {'h5ad+X': 'X', 'h5ad+layer': 'layers/l'}.get(kind, 'obsm/X_emb') }", {}
    return path, {}


KINDS = [
    *("npy+txt", "npy+npy.txt", "npy+csv", "npz", "parquet", "parquet+column", "csv", "tsv", "csv.gz", "csv+column"),
    *("h5ad", "zarr", "h5ad+frame", "h5ad+sparse", "h5ad+X", "h5ad+layer"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_gives_the_same(screen, context, tmp_path, kind):
    source, options = write(tmp_path, kind)
    found = made(source, screen, context, **options)
    np.testing.assert_allclose(take_rows(found.values), VALUES, rtol=1e-6)
    assert found.provenance["aligned"] == "by name"
    assert found.provenance["rows_left_out"] == 0
    if "csv" not in kind.partition("+")[0] and kind != "tsv":
        assert fingerprint(source, screen, **options) == fingerprint("obsm:X_emb", screen)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_matched_by_name(write_screen, context, tmp_path, kind):
    totals = np.asarray(small_adata().X.sum(axis=1)).ravel()
    screen = write_screen(min_counts=float(np.quantile(totals, 0.3)))
    assert 0 < screen.n < N
    rng = np.random.default_rng(0)
    order = rng.permutation(N + 30)
    values = np.vstack([VALUES, rng.normal(size=(30, D)).astype(np.float32)])[order]
    names = np.concatenate([NAMES, [f"extra_{i}" for i in range(30)]])[order]
    source, options = write(tmp_path, kind, values, names)
    found = made(source, screen, context, **options)
    np.testing.assert_allclose(take_rows(found.values), VALUES[screen.kept], rtol=1e-6)
    assert found.provenance["reordered"]
    assert found.provenance["rows_left_out"] == N + 30 - screen.n


def test_inside_the_screen(write_screen, context):
    screen = write_screen(min_counts=100.0)
    assert screen.n < N
    adata = small_adata()
    x = adata.X.toarray()
    for source, expected in (
        ("obsm:X_emb", VALUES),
        ("obsm:X_half", VALUES.astype(np.float16)),
        ("X", x),
        ("layer:log", np.log1p(x)),
    ):
        found = made(source, screen, context)
        np.testing.assert_allclose(take_rows(found.values), expected[screen.kept], rtol=1e-6)
        assert found.provenance["aligned"] == "same file"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "uint8", "bool", ">f4", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_types_and_layouts(screen, context, tmp_path, dtype, order):
    values = np.asarray(np.abs(VALUES * 3), dtype=dtype, order=order)
    np.save(tmp_path / "emb.npy", values)
    found = made(tmp_path / "emb.npy", screen, context, positional=True)
    np.testing.assert_array_equal(take_rows(found.values), values.astype(np.float32))
    assert found.provenance["in_place"] == (order == "C" and dtype in ("float16", "float32", "float64"))
    assert found.provenance["stored_as"] == str(np.dtype(dtype))


def test_npy_is_used_in_place_and_travels_as_its_path(write_screen, context, tmp_path):
    screen = write_screen(min_counts=100.0)
    np.save(tmp_path / "emb.npy", VALUES)
    found = made(tmp_path / "emb.npy", screen, context, positional=True)
    assert isinstance(found.values, NpyRows)
    assert found.values.path == tmp_path / "emb.npy"
    assert not list(context.folder.iterdir())
    assert "as allowed" in found.provenance["aligned"]
    sent = pickle.dumps(found.values)
    assert len(sent) < 8 * N + 1000
    np.testing.assert_array_equal(pickle.loads(sent)[:], VALUES[screen.kept])


@pytest.mark.parametrize("elements", [1, 50, 10**6])
def test_block_size_does_not_matter(screen, context, tmp_path, monkeypatch, elements):
    from txeval.compute import arrays

    expected = fingerprint("obsm:X_emb", screen)
    monkeypatch.setattr(arrays, "BLOCK_ELEMENTS", elements)
    assert fingerprint("obsm:X_emb", screen) == expected
    source, _ = write(tmp_path, "h5ad", VALUES[::-1], NAMES[::-1])
    np.testing.assert_array_equal(take_rows(made(source, screen, context).values), VALUES)


def test_fingerprint_is_of_the_content(write_screen, tmp_path):
    screen = write_screen()
    base = fingerprint("obsm:X_emb", screen)
    np.save(tmp_path / "emb.npy", VALUES.astype(np.float64))
    assert fingerprint(tmp_path / "emb.npy", screen, positional=True) == base
    changed = VALUES.copy()
    changed[100, 3] += 1e-3
    np.save(tmp_path / "emb.npy", changed)
    assert fingerprint(tmp_path / "emb.npy", screen, positional=True) != base
    swapped = VALUES.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    np.save(tmp_path / "emb.npy", swapped)
    assert fingerprint(tmp_path / "emb.npy", screen, positional=True) != base
    assert fingerprint("obsm:X_emb", write_screen(name="b.h5ad", min_counts=100.0)) != base


class TestMissingValues:
    @pytest.fixture
    def values(self):
        values = VALUES.copy()
        values[7, 2] = values[9, 0] = values[9, 1] = np.nan
        return values

    @pytest.mark.parametrize("kind", KINDS)
    def test_refused_with_the_first(self, screen, context, tmp_path, values, kind):
        source, options = write(tmp_path, kind, values)
        with pytest.raises(InputError, match=r"'cell_7', column 2(.|\n)*nan=0"):
            made(source, screen, context, **options)
        with pytest.raises(InputError, match="'cell_7', column 2"):
            fingerprint(source, screen, **options)

    @pytest.mark.parametrize("kind", KINDS)
    def test_filled_when_asked_for(self, screen, context, tmp_path, values, kind):
        source, options = write(tmp_path, kind, values)
        found = made(source, screen, context, **options, nan=0.5)
        np.testing.assert_allclose(take_rows(found.values), np.nan_to_num(values, nan=0.5), rtol=1e-6)
        assert found.provenance["filled"] == {"value": 0.5, "values": 3, "samples": 2}
        assert fingerprint(source, screen, **options, nan=0) != fingerprint(source, screen, **options, nan=1)

    def test_infinite_values_are_never_filled(self, screen, context, tmp_path):
        values = VALUES.copy()
        values[7, 2] = np.inf
        source, _ = write(tmp_path, "npz", values)
        with pytest.raises(InputError, match=r"'cell_7', column 2 is inf"):
            made(source, screen, context, nan=0)

    def test_only_kept_samples_matter(self, write_screen, context, tmp_path, values):
        adata = small_adata()
        adata.X[[7, 9]] = 0
        adata.X.eliminate_zeros()
        source, _ = write(tmp_path, "npz", values)
        assert "filled" not in made(source, write_screen(adata, min_counts=5.0), context).provenance


def test_constant_embeddings_are_told(screen, context, tmp_path):
    values = VALUES.copy()
    values[:, 1] = 3
    source, _ = write(tmp_path, "npz", values)
    assert made(source, screen, context).provenance["warnings"] == ["1 of 6 columns are constant"]
    source, _ = write(tmp_path, "npz", np.ones((N, 2)))
    assert "the embedding is constant" in made(source, screen, context).provenance["warnings"][0]
    assert "warnings" not in made("obsm:X_emb", screen, context).provenance


def test_other_names_are_matched_by_position_only_when_allowed(screen, context, tmp_path):
    source, _ = write(tmp_path, "parquet", names=np.arange(N).astype(str))
    with pytest.raises(InputError, match=r"are the numbers of its rows(.|\n)*positional=true"):
        made(source, screen, context)
    found = made(source, screen, context, positional=True)
    np.testing.assert_array_equal(take_rows(found.values), VALUES)
    assert "are the numbers of its rows" in found.provenance["aligned"]


def test_names_that_disagree_are_not_overruled_by_the_flag(screen, context, tmp_path):
    source, _ = write(tmp_path, "parquet", names=[f"other_{i}" for i in range(N)])
    with pytest.raises(InputError, match="120 of 120 samples have no row in the embedding"):
        made(source, screen, context, positional=True)


def test_names_win_over_the_flag(screen, context, tmp_path):
    source, _ = write(tmp_path, "npz", VALUES[::-1], NAMES[::-1])
    found = made(source, screen, context, positional=True)
    np.testing.assert_array_equal(take_rows(found.values), VALUES)
    assert found.provenance["aligned"] == "by name"


def test_picked_rows_are_wrapped_once(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    for values in (NpyRows(tmp_path / "a.npy"), VALUES):
        picked = pick_rows(pick_rows(values, np.arange(N)[::-1]), np.array([0, 5, 5]))
        np.testing.assert_array_equal(picked[:], VALUES[[119, 114, 114]])
        assert picked.shape == (3, D)
        assert len(picked) == 3
        inner = picked.values if isinstance(picked, PickedRows) else picked.mapped
        assert not isinstance(inner, (PickedRows, NpyRows))


def save(name, **arrays):
    def prepare(folder):
        path = folder / name
        if name.endswith(".npz"):
            np.savez(path, **arrays)
        else:
            np.save(path, arrays["a"], allow_pickle=True)
        return path

    return prepare


def text(name, content):
    def prepare(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return prepare


def table(name, frame, **how):
    def prepare(folder):
        getattr(frame, f"to_{name.rpartition('.')[2]}")(folder / name, **how)
        return folder / name

    return prepare


def cut(kind, keep=0.5):
    def prepare(folder):
        source, _ = write(folder, kind, np.tile(VALUES, (1, 20)))
        path = folder / f"emb.{kind.partition('+')[0]}"
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        return source

    return prepare


def element(part):
    return lambda folder: str(write(folder, "h5ad")[0]).replace("obsm/X_emb", part)


FRAME = pd.DataFrame(VALUES, index=NAMES, columns=[f"d{j}" for j in range(D)])
TWICE = np.where(NAMES == "cell_9", "cell_8", NAMES)

BAD = {
    "no such obsm": (lambda f: "obsm:X_em", {}, "did you mean 'X_emb'"),
    "obsm without key": (lambda f: "obsm:", {}, "names nothing"),
    "no such layer": (lambda f: "layer:lag", {}, "did you mean 'log'"),
    "unknown kind": (lambda f: "osbm:X_emb", {}, "did you mean 'obsm:'"),
    "no such file": (lambda f: (write(f, "npz"), f / "emb.npx.npz")[1], {}, "did you mean emb.npz"),
    "no such folder": (lambda f: f / "nowhere" / "emb.npz", {}, "does not exist"),
    "a folder": (lambda f: ((f / "a.npy").mkdir(), f / "a.npy")[1], {}, "not read from this kind"),
    "unknown suffix": (text("emb.pkl", "x"), {}, "not read from this kind"),
    "empty file": (text("emb.npy", ""), {}, "0 bytes"),
    "not an npy": (text("emb.npy", "hello, this is text"), {}, "cannot be read as .npy"),
    "not an npz": (text("emb.npz", "hello, this is text"), {}, "cannot be read as .npz"),
    "not parquet": (text("emb.parquet", "hello, this is text"), {}, "cannot be read as Parquet"),
    "not gzip": (text("emb.csv.gz", "hello, this is text"), {}, "cannot be read as a table"),
    "not h5ad": (lambda f: f"{text('emb.h5ad', 'hello')(f)}#X", {}, "not an HDF5 file"),
    "cut npy": (cut("npy+txt"), {}, "cannot be read as .npy"),
    "cut npz": (cut("npz"), {}, "cannot be read as .npz"),
    "cut parquet": (cut("parquet"), {}, "cannot be read as Parquet"),
    "cut gzip": (cut("csv.gz"), {}, "cannot be read as a table"),
    "cut h5ad": (cut("h5ad"), {}, "cut short"),
    "objects": (save("emb.npy", a=np.array([["a", 1]] * N, dtype=object)), {}, "cannot be read as .npy"),
    "text array": (save("emb.npy", a=np.array([["a", "b"]] * N)), {}, "type <U1"),
    "complex": (save("emb.npy", a=VALUES + 1j), {}, "type complex"),
    "one-dimensional": (save("emb.npy", a=VALUES[:, 0]), {}, "is 120, not samples"),
    "three-dimensional": (save("emb.npy", a=VALUES[:, :, None]), {}, "120 x 6 x 1"),
    "no columns": (save("emb.npy", a=VALUES[:, :0]), {"positional": True}, "no columns"),
    "too short": (save("emb.npy", a=VALUES[:-1]), {"positional": True}, "119 rows for the 120"),
    "position not allowed": (save("emb.npy", a=VALUES), {}, r"positional=true \(--positional\)"),
    "too large for float32": (
        save("emb.npy", a=VALUES.astype(np.float64) * 1e300),
        {"positional": True},
        "too large for float32",
    ),
    "which array": (save("emb.npz", a=VALUES, b=VALUES), {}, "@key=a"),
    "no such array": (save("emb.npz", emb=VALUES), {"key": "emd"}, "did you mean 'emb'"),
    "key elsewhere": (lambda f: "obsm:X_emb", {"key": "a"}, "option key is for .npz"),
    "names for own": (lambda f: "obsm:X_emb", {"names": "a"}, "names has no use"),
    "no such names array": (save("emb.npz", emb=VALUES, nams=NAMES), {"names": "names"}, "did you mean 'nams'"),
    "names of another length": (save("emb.npz", emb=VALUES, names=NAMES[:-1]), {}, "119 names"),
    "names in two dimensions": (save("emb.npz", emb=VALUES, names=NAMES[:, None]), {}, "not one name"),
    "names twice": (save("emb.npz", emb=VALUES, names=TWICE), {}, "more than once, such as 'cell_8'"),
    "names missing": (save("emb.npz", emb=VALUES[5:], names=NAMES[5:]), {}, "5 of 120 samples have no row.*'cell_0'"),
    "names partly unknown": (
        save("emb.npz", emb=VALUES, names=np.where(NAMES == "cell_3", "q", NAMES)),
        {"positional": True},
        "1 of 120 samples have no row",
    ),
    "no names file": (save("emb.npy", a=VALUES), {"names": "other.txt"}, "no file other.txt"),
    "text in parquet": (table("emb.parquet", FRAME.assign(t="x")), {}, "'t' holds .*string, not numbers"),
    "no such column": (table("emb.parquet", FRAME), {"names": "d00"}, "did you mean 'd0'"),
    "two index levels": (
        table("emb.parquet", FRAME.set_index("d0", append=True).rename_axis(["a", "b"])),
        {},
        "2 levels: a, b",
    ),
    "name missing in parquet": (
        table("emb.parquet", FRAME.assign(b=[None, *NAMES[1:]]).reset_index(drop=True), index=False),
        {"names": "b"},
        "lacks 1 sample names",
    ),
    "text in csv": (
        text("emb.csv", "n,a,b\n" + "".join(f"{name},1,{'oops' if i == 1 else 2}\n" for i, name in enumerate(NAMES))),
        {},
        "column 'b' holds 'oops' in data row 2",
    ),
    "no such csv column": (table("emb.csv", FRAME), {"names": "d00"}, "did you mean 'd0'"),
    "csv without names": (table("emb.csv", FRAME, index=False), {}, "no sample names"),
    "only names in csv": (text("emb.csv", "n\n" + "\n".join(NAMES)), {}, "no columns"),
    "empty csv": (text("emb.csv", "\n\n"), {}, "the file is empty"),
    "which part": (lambda f: str(write(f, "h5ad")[0]).partition("#")[0], {}, "PART one of: obsm/X_emb"),
    "no such part": (element("obsm/X_embb"), {}, "did you mean 'obsm/X_emb'"),
    "no such room": (element("varm/PCs"), {}, "no matrix called 'varm/PCs'"),
    "part of an npy": (lambda f: f"{save('emb.npy', a=VALUES)(f)}#a", {}, "after '#'"),
    "nan is text": (lambda f: "obsm:X_emb", {"nan": "zero"}, "option nan is 'zero'"),
    "nan is infinite": (lambda f: "obsm:X_emb", {"nan": float("inf")}, "option nan is inf"),
    "positional is text": (lambda f: "obsm:X_emb", {"positional": "yes"}, "a str"),
    "unknown option": (lambda f: "obsm:X_emb", {"position": True}, "did you mean 'positional'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(screen, context, tmp_path, case):
    prepare, options, message = BAD[case]
    folder = tmp_path / "given"
    folder.mkdir()
    source = prepare(folder)
    for attempt in (lambda: fingerprint(source, screen, **options), lambda: made(source, screen, context, **options)):
        with pytest.raises(InputError, match=message):
            attempt()


def test_names_of_the_screen_that_repeat(write_screen, context, tmp_path):
    adata = small_adata()
    adata.obs_names = ["same"] * N
    screen = write_screen(adata)
    source, _ = write(tmp_path, "npz")
    with pytest.raises(InputError, match="are not unique"):
        made(source, screen, context)
    found = made(source, screen, context, positional=True)
    np.testing.assert_array_equal(take_rows(found.values), VALUES)


def test_late_text_in_a_long_table(screen, context, tmp_path, monkeypatch):
    from txeval.embed import precomputed

    monkeypatch.setattr(precomputed, "_table_rows", lambda width: 7)
    frame = pd.DataFrame(VALUES, index=NAMES).astype(object)
    frame.to_csv(tmp_path / "emb.csv")
    np.testing.assert_allclose(take_rows(made(tmp_path / "emb.csv", screen, context).values), VALUES, rtol=1e-6)
    many = pd.concat([frame] * 12)
    many.index = [f"cell_{i}" for i in range(len(many))]
    many.iloc[1200, 2] = "late"
    many.to_csv(tmp_path / "emb.csv")
    with pytest.raises(InputError, match="'late' in data row 1201"):
        made(tmp_path / "emb.csv", screen, context)


def test_progress_ends_at_all_samples(screen, context):
    seen = []
    made("obsm:X_emb", screen, replace(context, progress=lambda done, total, text: seen.append((done, total))))
    assert seen[-1] == (N, N)
