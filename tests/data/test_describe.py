"""What describe proposes: on every real screen, on the same without their prepared columns, and on made ones."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import anndata as ad
import made
import numpy as np
import pandas as pd
import pytest

from txeval.data import Roles, open_screen
from txeval.data.describe import Description, describe
from txeval.data.harmonise import canonical, control_spelling, find_guide_pattern, find_separator, is_guide_pool
from txeval.data.matrix import open_store
from txeval.data.proposal import render
from txeval.run import build_config, load_config, make_plan

ROLES = ("perturbation", "control", "exclude", "separator", "batch", "cell_line", "layer")

#: File -> what its provenance says: perturbation, controls, labels of no meaning, joiner, batch, cell line or type,
#: layer; scale; and what a description must say in words.
EXPECTED: dict[str, tuple[tuple[Any, ...], str, tuple[str, ...]]] = {
    "papalexi2021_thp1_ecciteseq_299genes": (
        ("perturbation", ["non-targeting"], None, None, "bio_rep", None, None),
        "counts",
        ("panel of 299 genes",),
    ),
    "norman2019_k562_crispra_500hvg": (
        ("perturbation", ["control"], None, None, "gem_group", None, "counts"),
        "counts",
        ("15 labels are combinations", "one only: k562"),
    ),
    "mcfaline2023_gbm_crispri_500hvg": (
        ("perturbation", ["control"], None, None, None, "cell_type", "counts"),
        "counts",
        ("not plate_row: a position",),
    ),
    "datlinger2021_jurkat_scifi_cropseq_2000hvg": (
        ("perturbation", ["control"], None, None, None, None, None),
        "counts",
        ("not plate_row: a position", "'stimulation' may be a further condition", "not well: a position"),
    ),
    "schraivogel2020_k562_tapseq_72genes": (
        ("perturbation", ["non-targeting"], ["unassigned"], None, "lane", None, None),
        "counts",
        ("662 samples", "not batch: the same for all samples"),
    ),
    "hill2018_mcf10a_dox_cropseq_pca20": (
        ("perturbation", ["non-targeting"], ["unassigned"], None, None, None, None),
        "counts",
        ("2,166 samples", "obsm:X_pca"),
    ),
    "kang2018_pbmc_ifnb_muscat": (
        ("condition", ["ctrl"], None, None, "donor", "cell_type", None),
        "counts",
        ("not sample_id: each of its labels has either controls or perturbed samples",),
    ),
    "kang2018_pbmc_ifnb_9015genes": (
        ("condition", ["ctrl"], None, None, None, None, None),
        "counts",
        ("have more than 1,000 counts", "the same grouping as the perturbation"),
    ),
    "zhao2021_gbm_panobinostat_300genes": (
        ("treatment", ["vehicle (DMSO)"], None, None, "patient_id", None, None),
        "counts",
        ("or condition: the same grouping", "300 Ensembl ids carry a version", "no column of var holds symbols"),
    ),
    "l1000_shrna_kd_litmus_plate_976genes": (
        ("perturbation", ["control"], None, None, None, None, None),
        "continuous",
        ("not pert_plate: the same for all samples (LITMUS.KD017)", "not plate_row: a position"),
    ),
    "l1000_ljp005_a375_24h_978genes": (
        ("perturbation", ["control"], None, None, None, None, None),
        "continuous",
        ("one only: A375", "'pert_idose' may be a further condition", "not det_plate: the same"),
    ),
    "tggates_human_hepatocyte_196genes": (
        ("perturbation", ["control"], None, None, "batchid", None, None),
        "continuous",
        ("146 of 146 perturbations occur in one batch", "'duration' may be a further condition"),
    ),
    "ipsc_ec_perturbseq_298targets_x_120programs": (
        ("perturbation", ["safe-targeting"], None, None, None, None, None),
        "continuous",
        ("a map: one sample for each perturbation", "tasks: [relationships]", "map=X"),
    ),
    **{
        f"edistance_map_{name}": (
            ("perturbation", ["control"], None, None, None, None, None),
            "continuous",
            ("a map: one sample", "pairwise values, such as distances", "embeddings: ['obsm:X_mds']", *said),
        )
        for name, said in (
            ("FrangiehIzar2021_RNA", ()),
            ("TianKampmann2021_CRISPRi", ()),
            ("TianKampmann2021_CRISPRa", ()),
            ("NormanWeissman2019_filtered", ("131 labels are combinations joined by '_'",)),
        )
    },
}


@pytest.fixture(scope="module")
def described(data_dir: Path) -> dict[str, Description]:
    return {name: describe(data_dir / f"{name}.h5ad") for name in EXPECTED}


def flat(text: str) -> str:
    """A YAML text with its comments run together."""
    return re.sub(r"\s+", " ", re.sub(r"\n\s*#\s*", " ", text))


def test_no_real_screen_is_left_out(data_dir: Path) -> None:
    assert {path.stem for path in data_dir.glob("*.h5ad")} == set(EXPECTED)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_real_screens(name: str, described: dict[str, Description]) -> None:
    about = described[name]
    roles, scale, words = EXPECTED[name]
    assert {role: about.value(role) for role in ROLES} == dict(zip(ROLES, roles, strict=True))
    assert about.scale == scale
    assert about.complete
    text = flat(render(about))
    assert [word for word in words if word not in text] == []
    assert all(len(proposal.why) > 10 for proposal in about.proposals.values())
    assert not any("Traceback" in proposal.why for proposal in about.proposals.values())


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_yaml_is_accepted_by_a_plan(
    name: str, described: dict[str, Description], data_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(render(described[name]))
    plan = make_plan(load_config(path, {"seeds": 1, "relations": data_dir / "relationships"}))
    about = described[name]
    assert plan.screen.scale == about.scale
    assert list(plan.screen.roles.control) == about.value("control")
    assert plan.screen.roles.batch == about.value("batch")
    for label in about.value("exclude") or ():
        assert label not in plan.screen.samples.perturbations.tolist()


def without(data_dir: Path, folder: Path, name: str, *columns: str) -> tuple[Path, ad.AnnData]:
    """A real screen as it was before somebody added columns to it; and as it is."""
    whole = ad.read_h5ad(data_dir / f"{name}.h5ad")
    bare = whole.copy()
    bare.obs = bare.obs.drop(columns=list(columns))
    bare.write_h5ad(folder / "bare.h5ad")
    return folder / "bare.h5ad", whole


def same_groups(first: pd.Series, second: pd.Series) -> bool:
    pairs = pd.DataFrame({"a": np.asarray(first, dtype=str), "b": np.asarray(second, dtype=str)}).drop_duplicates()
    return len(pairs) == pairs["a"].nunique() == pairs["b"].nunique()


@pytest.mark.parametrize(
    "name",
    [
        "papalexi2021_thp1_ecciteseq_299genes",
        "datlinger2021_jurkat_scifi_cropseq_2000hvg",
        "hill2018_mcf10a_dox_cropseq_pca20",
        "schraivogel2020_k562_tapseq_72genes",
    ],
)
def test_guides_are_read_as_the_targets_that_people_gave_them(data_dir: Path, tmp_path: Path, name: str) -> None:
    path, whole = without(data_dir, tmp_path, name, "perturbation", "control")
    about = describe(path)
    assert about.value("perturbation").startswith("grna~")
    # Some cells were given no target for having too few counts of their guide, whatever it is.
    assigned = (whole.obs["perturbation"] != "unassigned").to_numpy()
    targets = open_store(path).column("obs", about.value("perturbation"))[assigned]
    truth = whole.obs[assigned]
    assert same_groups(targets, truth["perturbation"])
    controls = np.isin(targets.astype(str), about.value("control"))
    assert controls.tolist() == truth["control"].tolist()
    assert targets[~controls].tolist() == truth["perturbation"][~controls].tolist()


def test_controls_of_the_connectivity_map_by_the_type_of_sample(data_dir: Path, tmp_path: Path) -> None:
    path, whole = without(data_dir, tmp_path, "l1000_shrna_kd_litmus_plate_976genes", "perturbation", "control")
    about = describe(path)
    assert about.value("perturbation") == "pert_iname"
    assert set(about.value("control")) == {"EMPTY_VECTOR", "GFP", "UnTrt"}
    screen = open_screen(path, Roles(perturbation="pert_iname", control=tuple(about.value("control"))))
    assert screen.samples.is_control.tolist() == whole.obs["control"].tolist()


def test_controls_of_each_compound_by_a_pattern(data_dir: Path, tmp_path: Path) -> None:
    path, whole = without(data_dir, tmp_path, "tggates_human_hepatocyte_196genes", "perturbation", "control")
    about = describe(path)
    assert about.value("perturbation") == "treatmentid"
    assert about.value("control_column") == "xptype~^(control)$"
    roles = Roles(perturbation="treatmentid", control_column="xptype~^(control)$", batch="batchid")
    screen = open_screen(path, roles)
    assert screen.samples.is_control.tolist() == whole.obs["control"].tolist()


def test_batches_from_barcodes(data_dir: Path, tmp_path: Path) -> None:
    path, whole = without(data_dir, tmp_path, "norman2019_k562_crispra_500hvg", "gem_group")
    about = describe(path)
    assert about.value("batch") == "names~-([0-9]+)$"
    screen = open_screen(path, Roles(perturbation="perturbation", control="control", batch=about.value("batch")))
    found = screen.samples.batches[screen.samples.batch]
    assert found.tolist() == whole.obs["gem_group"].str.removeprefix("gemgroup_").tolist()


def changed(folder: Path, **columns: Any) -> Path:
    """A made screen with other columns; None takes one away."""
    a = made.adata(n=60)
    for name, values in columns.items():
        if values is None:
            del a.obs[name]
        else:
            a.obs[name] = np.resize(np.array(values), a.n_obs)
    a.write_h5ad(folder / "screen.h5ad")
    return folder / "screen.h5ad"


def test_two_sources_of_controls_that_disagree_are_not_decided(tmp_path: Path) -> None:
    path = changed(tmp_path, is_control=None)
    a = ad.read_h5ad(path)
    flag = (a.obs["perturbation"] == "control").to_numpy().copy()
    flag[1] = True
    a.obs["is_control"] = flag
    a.write_h5ad(path)
    about = describe(path)
    assert about.value("control") is None and about.value("control_column") is None
    assert not about.complete
    assert any("two sources of controls disagree" in finding.text for finding in about.findings)
    text = render(about)
    assert text.startswith("# INCOMPLETE: the controls must be filled in")
    assert "do not mark the same samples (12 and 13)" in flat(text)


def test_labels_without_a_control_are_said_to_be_so(tmp_path: Path) -> None:
    about = describe(changed(tmp_path, perturbation=["G1", "G2", "G3"], is_control=None))
    assert about.value("perturbation") == "perturbation"
    assert about.value("control") is None
    assert "none of the labels" in about.proposals["control"].why
    about = describe(changed(tmp_path, perturbation=["G1", "G2", "GFP", "AAVS1"], is_control=None))
    assert about.value("control") is None
    assert "'AAVS1', 'GFP' may be controls" in about.proposals["control"].why


def test_nothing_is_known_of_a_matrix_without_labels(data_dir: Path, tmp_path: Path) -> None:
    a = made.adata()
    a.obs = a.obs[[]]
    a.write_h5ad(tmp_path / "bare.h5ad")
    about = describe(tmp_path / "bare.h5ad")
    assert about.value("perturbation") is None
    assert "--labels" in about.proposals["perturbation"].why
    assert all("have to be known" in lacks for lacks in about.levels.values())
    table = made.adata().obs[["perturbation", "batch"]]
    table.to_csv(tmp_path / "labels.tsv", sep="\t", index_label="cell")
    joined = describe(tmp_path / "bare.h5ad", labels=tmp_path / "labels.tsv")
    assert joined.value("perturbation") == "perturbation" and joined.value("batch") == "batch"
    path = tmp_path / "run.yaml"
    path.write_text(render(joined))
    assert make_plan(load_config(path, {"relations": data_dir / "relationships"})).screen.n == 60


def test_text_that_means_missing_pools_and_doubtful_labels_are_caught(tmp_path: Path) -> None:
    pool = "AAAS_-_53715438.23-P1P2|AAAS_+_53715355.23-P1P2"
    path = changed(tmp_path, perturbation=["control", "G1", "nan", "G2", pool, "unassigned"], is_control=None)
    about = describe(path)
    words = " ".join(finding.text for finding in about.findings)
    assert "10 samples have no label in 'perturbation' (10 as 'nan')" in words
    assert "1 labels of 'perturbation' (10 samples) are pools of guides" in words
    assert about.value("exclude") == ["unassigned"]
    screen = open_screen(path, Roles(perturbation="perturbation", control="control", exclude=("unassigned",)))
    assert screen.n == 40
    assert screen.report["dropped"] == {
        "label 'unassigned' is to be left out": 10,
        "no perturbation label in 'perturbation'": 10,
    }


def test_a_flag_that_says_the_same_and_a_batch_that_is_the_design(tmp_path: Path) -> None:
    labels = ["control", "G1", "G2"]
    path = changed(tmp_path, perturbation=labels, is_control=[True, False, False], batch=["p0", "p1", "p1"])
    about = describe(path)
    assert about.value("control") == ["control"]
    assert "obs column 'is_control' marks the same" in about.proposals["control"].why
    assert about.value("batch") != "batch"
    assert dict(about.proposals["batch"].rejected)["batch"].startswith("each of its labels has either controls")


def test_order_of_combinations_does_not_count(tmp_path: Path) -> None:
    path = changed(tmp_path, perturbation=["control", "G1", "G2", "G1+G2", "G2+G1", "G3+control"], is_control=None)
    about = describe(path)
    assert about.value("separator") == "+"
    assert "'G1+G2' and 'G2+G1'" in about.proposals["separator"].why
    apart = open_screen(path, Roles(perturbation="perturbation", control="control"))
    assert {"G1+G2", "G2+G1", "G3+control"} <= set(apart.samples.perturbations.tolist())
    screen = open_screen(path, Roles(perturbation="perturbation", control="control", separator="+"))
    assert screen.samples.perturbations.tolist() == ["G1", "G1+G2", "G2", "G3", "control"]
    count = np.bincount(screen.samples.perturbation)
    assert count.tolist() == [10, 20, 10, 10, 10]
    assert dict(zip(screen.samples.perturbations, screen.samples.target_genes, strict=True))["G3"] == "G3"
    assert any("renamed by the separator '+'" in warning for warning in screen.report["warnings"])


def test_hostile_labels_stay_text_in_the_yaml(tmp_path: Path) -> None:
    hostile = [
        "control",
        "x: [1]\n- evil",
        "#comment",
        "../../etc/passwd",
        "\x1b[31mred",
        "!!python/object:os.system",
        "'",
    ]
    a = made.adata(n=70)
    a.obs = pd.DataFrame(
        {"perturbation": np.resize(np.array(hostile, dtype=object), 70), "batch\n- evil: #": ["b", "c"] * 35},
        index=a.obs_names,
    )
    folder = tmp_path / "a #b: c"
    folder.mkdir()
    path = folder / "..evil name.h5ad"
    a.write_h5ad(path)
    text = render(describe(path))
    assert "\x1b" not in text
    config = load_config(_written(tmp_path, text), {})
    assert config.screen == path
    assert config.roles.perturbation == "perturbation" and config.roles.control == ("control",)
    assert config.out is not None and config.out.parent == tmp_path


def _written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "label",
    [
        *(
            "non-targeting",
            "Non-Targeting",
            "non_targeting_0017",
            "nontargeting",
            "NonTargetingControlGuideForHuman_sg_179",
        ),
        *("CROPseq_dCas9_DS_non-targeting_00025", "NTC", "ntc_12", "NT", "NTg7", "sgNTC", "control", "CTRL", "ctrl_3"),
        *("neg_ctrl", "NegCtrl0", "negative control", "safe-targeting", "safe_targeting", "scramble", "shSCR"),
        *("DMSO", "dmso_0.1%", "vehicle", "vehicle (DMSO)", "0.1% DMSO", "EMPTY_VECTOR", "UnTrt", "untreated"),
        *("unstimulated", "mock", "PBS", "ctl_vehicle", "ctl_untrt", "Control"),
    ],
)
def test_spellings_of_controls(label: str) -> None:
    found = control_spelling(label)
    assert found is not None and found.sure


@pytest.mark.parametrize("label", ["AAVS1", "GFP", "eGFP", "LacZ", "water", "WT", "none", "ROSA26", "mCherry"])
def test_spellings_that_may_be_controls(label: str) -> None:
    found = control_spelling(label)
    assert found is not None and not found.sure


def test_no_human_gene_is_surely_a_control(data_dir: Path) -> None:
    table = pd.read_csv(data_dir / "model_assets" / "scimilarity" / "gene_order.tsv", header=None, sep="\t")
    names = [str(name) for name in table[0]]
    assert len(names) > 20_000
    sure = [name for name in names if (found := control_spelling(name)) is not None and found.sure]
    assert set(sure) <= {"CTRL"}  # chymotrypsin-like; as a label it is a control


@pytest.mark.parametrize(
    "label", ["TP53", "positive control", "pos_ctrl", "CTR9", "NTS", "SCRIB", "CONTROLLER", "DMSOX"]
)
def test_what_is_no_control(label: str) -> None:
    assert control_spelling(label) is None


def test_guides_pools_and_combinations_apart() -> None:
    assert find_guide_pattern(["HLA-A", "HLA-B", "NKX2-1", "TP53", "MYC", "SPI1"]) is None
    assert find_guide_pattern(["TP53_1", "TP53_2", "MYC_1", "MYC_2", "NTC_1", "NTC_2"]) is not None
    assert not is_guide_pool("KLF1+MAP2K6")
    assert is_guide_pool("NTC_1|NTC_2")
    assert find_separator(["HLA_A", "HLA_B", "TP53"]) is None
    found = find_separator(["AHR", "FEV", "AHR_FEV", "FEV_AHR", "control"])
    assert found is not None and found.text == "_" and found.same == (("AHR_FEV", "FEV_AHR"),)
    assert canonical("B+A+A", "+") == "A+B"
    assert canonical("MYC+NegCtrl0", "+") == "MYC"


def test_a_pattern_that_is_none_and_one_that_finds_nothing(tmp_path: Path) -> None:
    store = open_store(changed(tmp_path))
    from txeval.errors import InputError

    with pytest.raises(InputError, match="no regular expression"):
        store.column("obs", "names~(", role="batch column")
    with pytest.raises(InputError, match="finds nothing"):
        store.column("obs", "names~^x([0-9])", role="batch column")
    with pytest.raises(InputError, match="no obs column called 'nmes~x'"):
        store.column("obs", "nmes~x", role="batch column")


def test_a_run_needs_no_description(data_dir: Path) -> None:
    """The same roles by hand: what describe writes is nothing but a configuration."""
    config = build_config(
        {
            "screen": data_dir / "norman2019_k562_crispra_500hvg.h5ad",
            "roles": {"perturbation": "perturbation", "control": ["control"], "separator": "+", "batch": "gem_group"},
            "embeddings": ["pca"],
        }
    )
    assert config.roles.separator == "+"


def test_the_table_of_the_documentation_is_so(described: dict[str, Description]) -> None:
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("every_screen", root / "benchmarks" / "every_screen.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made_now = module.table([module.row(described[name]) for name in sorted(described)], module.HEAD)
    assert made_now in (root / "docs" / "own_screens.md").read_text(encoding="utf-8")
