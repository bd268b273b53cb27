"""Both layouts by name, decoding of single files, and the groups that are joined on."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import IngestSettings
from pipeline.readers import READERS, RawDataset, layout_of
from pipeline.readers.layout import root_of, table_of, with_groups
from pipeline.records.raw import RawFolder

PNG = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
SETTINGS = IngestSettings()


def put(folder: Path, *names: str, **tables: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def read(folder: Path, layout: str, settings: IngestSettings = SETTINGS) -> RawDataset:
    with RawFolder(folder) as raw:
        return with_groups(READERS[layout].read(raw, settings), raw, settings)


def ids(dataset: RawDataset, labelled: bool) -> list[str]:
    return [case.case_id for case in dataset.cases if case.labelled == labelled]


# --- Every reader ----------------------------------------------------------------------------------------------------

EXAMPLES = {
    "dsb2018": ("stage1_train/a/images/a.png", "stage1_train/a/masks/1.png"),
    "folder_pairs": ("images/a.png", "masks/a.png"),
    "image_pairs": ("input/a.png", "target/a.png"),
    "idc": ("8863/1/8863_idx5_x51_y1251_class1.png",),
    "hubmap2020": ("train/a.tiff",),
    "hubmap2022": ("train_images/a.tiff",),
    "hubmap2023": ("train/a.tif",),
    "glas": ("train_1.bmp", "train_1_anno.bmp"),
    "pcam": ("train/a.tif",),
    "pannuke": ("fold1/images.npy", "fold1/masks.npy", "fold1/types.npy"),
    "polygons": ("a.tif",),
    "nifti": ("images/a.nii.gz", "masks/a.nii.gz"),
    "slides": ("a.svs",),
}
TABLES = {
    "hubmap2020": {
        "train.csv": "id,encoding\na,1 2\n",
        "HuBMAP-20-dataset_information.csv": "image_file,width_pixels,height_pixels,patient_number\na.tiff,6,4,7\n",
    },
    "hubmap2022": {"train.csv": "id,organ,img_height,img_width,pixel_size,rle\na,lung,4,6,0.4,1 2\n"},
    "hubmap2023": {
        "polygons.jsonl": '{"id": "a", "annotations": []}\n',
        "tile_meta.csv": "id,source_wsi,dataset,i,j\na,1,1,0,0\n",
    },
    "glas": {"Grade.csv": "name,patient ID, grade (GlaS)\ntrain_1, 7, benign\n"},
    "pcam": {"train_labels.csv": "id,label\na,1\n"},
    "polygons": {"a.xml": "<Annotations/>"},
    "slides": {"a.geojson": "[]"},
}
ARRAYS = {
    "fold1/images.npy": np.zeros((1, 4, 6, 3)),
    "fold1/masks.npy": np.zeros((1, 4, 6, 6)),
    "fold1/types.npy": np.array(["Skin"]),
}
CASE_IDS = {
    "nifti": "a_z0000", "idc": "8863_idx5_x51_y1251", "glas": "train_1", "pannuke": "fold1_0000",
    "slides": "a_y000000_x000000",
}  # fmt: skip
ALSO = {"glas": ["folder_pairs"]}
"""Layouts, tried later, that would take the files too, without what the layout's own table tells."""
RECOGNISED = [name for name, reader in READERS.items() if not reader.only_by_name]


@pytest.mark.parametrize("layout", RECOGNISED)
@pytest.mark.parametrize("below", ["", "download/", "download/inner/"])
def test_every_layout_is_recognised_at_any_depth_and_alone(layout: str, below: str, tmp_path: Path) -> None:
    put(tmp_path, *(below + name for name in EXAMPLES[layout]))
    for name, text in TABLES.get(layout, {}).items():
        (tmp_path / below / name).write_text(text)
    for name in EXAMPLES[layout]:
        if name in ARRAYS:
            np.save(tmp_path / below / name, ARRAYS[name])
        if name.endswith(".nii.gz"):
            nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 1), np.uint8), np.eye(4)), tmp_path / below / name)
        if name.endswith(".svs"):
            tifffile.imwrite(tmp_path / below / name, np.zeros((4, 6, 3), np.uint8), photometric="rgb")
    with RawFolder(tmp_path) as raw:
        assert [name for name in RECOGNISED if READERS[name].recognises(raw)] == [layout, *ALSO.get(layout, [])]
        assert layout_of(raw, "auto") == layout_of(raw, layout) == layout
        (case,) = READERS[layout].read(raw, SETTINGS).cases
    assert (case.case_id, case.image, case.labelled) == (
        CASE_IDS.get(layout, "a"), below + EXAMPLES[layout][0], True,
    )  # fmt: skip


def test_an_unknown_layout_says_what_was_found_and_what_was_expected(tmp_path: Path) -> None:
    put(tmp_path, "slides/a.png")
    with RawFolder(tmp_path) as raw:
        with pytest.raises(
            ValueError, match=r"(?s)found 1 files \(slides/a\.png\).*dsb2018: stage1_train/.*folder_pairs: images"
        ):
            layout_of(raw, "auto")
        with pytest.raises(ValueError, match="none of the expected layouts:\n  dsb2018"):
            layout_of(raw, "dsb2018")


# --- dsb2018 ---------------------------------------------------------------------------------------------------------


def test_dsb2018_reads_masks_runs_strata_and_test_images(tmp_path: Path) -> None:
    put(
        tmp_path, "stage1_train/a/images/a.png", "stage1_train/a/masks/2.png", "stage1_train/a/masks/1.png",
        "stage1_train/b/images/b.png", "stage1_test/t/images/t.png", "stage2_test_final/u/images/u.png",
        stage1_train_labels="ImageId,EncodedPixels\na,1 2\na,5 1\nb,\n",
        classes="filename,foreground,background\na.png,purple,white\nt.png,white,black\nb.png,white,black\n",
        stage1_sample_submission="ImageId,EncodedPixels\nt,1 1\n",
        stage2_sample_submission_final="ImageId,EncodedPixels\nu,1 1\n",
    )  # fmt: skip
    dataset = read(tmp_path, "dsb2018")
    a, b, t = dataset.cases
    assert a.masks == ("stage1_train/a/masks/1.png", "stage1_train/a/masks/2.png") and a.runs == ("1 2", "5 1")
    assert b.masks == () and b.runs == ("",) and (t.labelled, t.runs, t.masks) == (False, None, ())
    assert [case.stratum for case in dataset.cases] == ["purple/white", "white/black", "white/black"]
    assert dataset.sample_submission == "stage1_sample_submission.csv"
    assert dataset.faults == () and dataset.findings == ()
    second = read(tmp_path, "dsb2018", IngestSettings(competition_stage=2))
    assert ids(second, False) == ["u"] and second.sample_submission == "stage2_sample_submission_final.csv"
    assert [found.detail for found in second.findings if found.fault == "no stratum"] == [
        "classes.csv does not name the image"
    ]


def test_dsb2018_notes_what_is_absent(tmp_path: Path) -> None:
    dataset = read(put(tmp_path, *EXAMPLES["dsb2018"]), "dsb2018")
    assert [found.fault for found in dataset.findings] == [
        "no run-length file", "no strata", "no test images", "no sample submission",
    ]  # fmt: skip
    assert dataset.sample_submission is None
    with pytest.raises(ValueError, match="competition_stage=2: expected stage2_test_final/"):
        read(tmp_path, "dsb2018", IngestSettings(competition_stage=2))
    with pytest.raises(ValueError, match=r"label_source=runs: expected stage1_train_labels\.csv, found nothing"):
        read(tmp_path, "dsb2018", IngestSettings(label_source="runs"))


@pytest.mark.parametrize("stage", [1, 2])
def test_dsb2018_names_cases_without_one_image(stage: int, tmp_path: Path) -> None:
    put(
        tmp_path, *EXAMPLES["dsb2018"], "stage1_train/none/masks/1.png", "stage1_train/two/images/1.png",
        "stage1_train/two/images/2.png", "stage2_test_final/u/images/u.png",
        stage1_train_labels="ImageId,EncodedPixels\na,1 2\nnone,1 2\ntwo,1 1\ngone,1 1\ngone,3 1\n",
    )  # fmt: skip
    faults = read(tmp_path, "dsb2018", IngestSettings(competition_stage=stage)).faults
    assert [str(fault) for fault in faults] == [
        "none: missing image: stage1_train/none/images/: expected one image, found none; add it, or delete the folder",
        "two: several images: stage1_train/two/images/: expected one image, found 2 (1.png, 2.png); delete the others",
        "gone: missing image: stage1_train_labels.csv: expected its image in stage1_train/, found none; "
        "fetch it again, or delete its rows",
    ]


def test_dsb2018_refuses_an_image_of_several_strata(tmp_path: Path) -> None:
    rows = "a.png,purple,white\nb.png,white,black\na.png,white,black\na.png,purple,white\nb.png,white,black\n"
    put(
        tmp_path, *EXAMPLES["dsb2018"], "stage1_train/b/images/b.png",
        classes=f"filename,foreground,background\n{rows}c.png,a,b\nc.png,b,a\n",
    )  # fmt: skip
    dataset = read(tmp_path, "dsb2018")
    assert [case.stratum for case in dataset.cases] == ["purple/white", "white/black"]
    assert [str(fault) for fault in dataset.faults] == [
        "a: several strata: classes.csv: expected one pair of colours an image, found purple/white and white/black; "
        "delete the rows that are wrong"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("id,rle\na,1 1\n", "expected the columns ImageId, EncodedPixels, found id, rle; name them in its first line"),
     ("ImageId;EncodedPixels\na;1 1\n", "found ImageId;EncodedPixels; save it with commas between the cells"),
     ("", "found an empty file; name them in its first line, or fetch it again"),
     ("ImageId,EncodedPixels\na\nb,1 1\n\nc,1 1,2 1,\n\"d\n",
      r"expected 2 cells a line \(ImageId, EncodedPixels\), found: line 2 has 1, line 5 has 4, line 6 has 1; mend "
      r"these lines \(a cell that holds a comma needs quotes\), or fetch the file again"),
     ("ImageId,EncodedPixels\n" + "a\n" * 7, "line 6 has 1 and 2 more; mend")],
)  # fmt: skip
def test_a_table_of_another_form_is_refused(text: str, message: str, tmp_path: Path) -> None:
    put(tmp_path, *EXAMPLES["dsb2018"], stage1_train_labels=text)
    with pytest.raises(ValueError, match=rf"stage1_train_labels\.csv.*{message}"):
        read(tmp_path, "dsb2018")


def test_columns_without_a_name_may_follow() -> None:
    assert table_of(b"id,label,,\na,1,,\n\nb,0,,x\n", "x.csv", ("id", "label")) == [
        {"id": "a", "label": "1", "": ""}, {"id": "b", "label": "0", "": "x"},
    ]  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("ab1 ,\"'", max_size=6), st.text("12 ", max_size=6)), max_size=5))
def test_tables_round_trip(rows: list[tuple[str, str]]) -> None:
    import csv

    stream = io.StringIO()
    csv.writer(stream).writerows([("ImageId", "EncodedPixels"), *rows])
    found = table_of(stream.getvalue().encode(), "x.csv", ("ImageId", "EncodedPixels"))
    assert [(row["ImageId"], row["EncodedPixels"]) for row in found] == [(a.strip(), b.strip()) for a, b in rows]


# --- folder_pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "labelled", "unlabelled"),
    [
        (("images/a.png", "masks/a.tif", "images/b.jpg", "masks/b.png"), ["a", "b"], []),
        (("Images/a.png", "Labels/a_label.png"), ["a"], []),
        (("img/a.png", "annotations/a.bmp", "images_test/t.png"), ["a"], ["t"]),
        (("images/a.png", "masks/a.png", "test/t.png"), ["a"], ["t"]),
        (("train/images/a.png", "train/masks/a_mask.png", "test/images/t.png"), ["a"], ["t"]),
        (("a.png", "a_mask.png", "b.tif", "b-seg.png"), ["a", "b"], []),
        (("images/a.png", "images/a_mask.png"), ["a"], []),
        (("images/P1/a.png", "masks/P1/a.png", "images/P2/a.png", "masks/P2/a.png"), ["P1__a", "P2__a"], []),
        (("train/images/a.png", "train/masks/a.png", "test/images/a.png"), ["train__a"], ["a"]),
        (("data/x/images/a.b.png", "data/x/masks/a.b.png", "data/x/readme.txt"), ["a.b"], []),
        (("images/gold_label.png", "masks/gold_label.png"), ["gold_label"], []),
    ],
)  # fmt: skip
def test_pairs_are_joined_on_the_stem(
    names: tuple[str, ...], labelled: list[str], unlabelled: list[str], tmp_path: Path
) -> None:
    dataset = read(put(tmp_path, *names), "folder_pairs")
    assert dataset.faults == ()
    assert ids(dataset, True) == labelled and ids(dataset, False) == unlabelled
    for case in dataset.cases:
        assert (case.raster is not None) == case.labelled


def test_letters_composed_otherwise_are_the_same_stem(tmp_path: Path) -> None:
    (case,) = read(put(tmp_path, "images/cafe\u0301.png", "masks/caf\u00e9.png"), "folder_pairs").cases
    assert case.case_id == "caf\u00e9" and case.raster == "masks/caf\u00e9.png"


def test_a_missing_mask_shifts_nothing(tmp_path: Path) -> None:
    dataset = read(
        put(tmp_path, "images/a.png", "images/b.png", "images/c.png", "masks/a.png", "masks/c.png"), "folder_pairs"
    )
    assert {case.case_id: case.raster for case in dataset.cases} == {"a": "masks/a.png", "b": None, "c": "masks/c.png"}


def test_what_has_no_partner_or_several_is_a_fault(tmp_path: Path) -> None:
    put(
        tmp_path, "images/a.png", "masks/a.png", "masks/orphan.png", "images/b.png", "images/b.jpg", "masks/b.png",
        "images/c.png", "masks/c.png", "masks/c.tif",
    )  # fmt: skip
    dataset = read(tmp_path, "folder_pairs")
    assert [(fault.case_id, fault.fault) for fault in dataset.faults] == [
        ("b", "repeated case id"), ("c", "several masks"), ("orphan", "missing image"),
    ]  # fmt: skip
    assert ids(dataset, True) == ["a"]


def test_labels_of_test_images_are_left_unread_and_noted(tmp_path: Path) -> None:
    dataset = read(
        put(tmp_path, "images/a.png", "masks/a.png", "test/images/t.png", "test/masks/t.png"), "folder_pairs"
    )
    assert ids(dataset, False) == ["t"] and dataset.faults == ()
    assert [found.fault for found in dataset.findings] == ["label of a test image"]


# --- Groups ----------------------------------------------------------------------------------------------------------


def test_groups_from_a_table_a_zipped_table_and_a_pattern(tmp_path: Path) -> None:
    put(tmp_path, "images/P1_a.png", "masks/P1_a.png", "images/P2_b.png", "masks/P2_b.png", "test/t.png")
    table = "case_id,group,stratum\nP1_a,one,glass\nP2_b,two,\nother,three,\n"
    put(tmp_path, groups=table)
    dataset = read(tmp_path, "folder_pairs", IngestSettings(group_csv=Path("groups.csv")))
    assert [(case.group, case.stratum) for case in dataset.cases] == [("one", "glass"), ("two", None), (None, None)]
    assert [found.fault for found in dataset.findings] == ["group without case"] and dataset.faults == ()
    with zipfile.ZipFile(tmp_path / "tables.zip", "w") as archive:
        archive.writestr("groups.csv", table)
    assert read(tmp_path, "folder_pairs", IngestSettings(group_csv=Path("tables/groups.csv"))).cases == dataset.cases
    pattern = read(tmp_path, "folder_pairs", IngestSettings(group_pattern="^(P[0-9]+)_"))
    assert [case.group for case in pattern.cases] == ["P1", "P2", None] and pattern.faults == ()


def test_cases_without_a_group_are_named(tmp_path: Path) -> None:
    put(tmp_path, "images/a.png", "masks/a.png", "images/b.png", "masks/b.png", groups="case_id,group\na,one\n")
    for given_by in (IngestSettings(group_csv=Path("groups.csv")), IngestSettings(group_pattern="^(a)")):
        assert [(f.case_id, f.fault) for f in read(tmp_path, "folder_pairs", given_by).faults] == [("b", "no group")]


@pytest.mark.parametrize(
    ("settings", "text", "message"),
    [
        (
            {"group_csv": "groups.csv"},
            "case_id,group\na,one\na,two\n",
            "expected each case_id once, found several times a",
        ),
        ({"group_csv": "groups.csv"}, "case,group\na,one\n", "expected the columns case_id, group, found case, group"),
        ({"group_csv": "none.csv"}, "", r"group_csv=none\.csv: expected a CSV .* found neither"),
        ({"group_csv": "groups.csv", "group_pattern": "(a)"}, "", "expected one of the two, found both"),
    ],
)
def test_groups_that_cannot_be_used_are_refused(settings: dict, text: str, message: str, tmp_path: Path) -> None:
    put(tmp_path, *EXAMPLES["folder_pairs"], groups=text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "folder_pairs", IngestSettings.model_validate(settings))


@pytest.mark.real
def test_the_competitions_files(dsb2018: Path) -> None:
    with RawFolder(dsb2018) as raw:
        assert layout_of(raw, "auto") == "dsb2018" and root_of(raw, "stage1_train") == ""
        dataset = READERS["dsb2018"].read(raw, SETTINGS)
    assert (len(ids(dataset, True)), len(ids(dataset, False))) == (614, 65)
    assert sum(len(case.masks) for case in dataset.cases) == 26_313
    assert dataset.faults == () and dataset.findings == ()
    strata = [case.stratum for case in dataset.cases if case.labelled]
    assert {name: strata.count(name) for name in set(strata)} == {
        "white/black": 501, "purple/purple": 61, "purple/white": 38, "black/white": 14,
    }  # fmt: skip
    json.dumps([case.case_id for case in dataset.cases])


@pytest.mark.real
def test_a_real_folder_of_pairs(real_data: Path) -> None:
    dataset = read(real_data / "nuinsseg_human", "folder_pairs")
    assert len(ids(dataset, True)) == 40 and dataset.faults == ()
    assert all(case.raster == case.image.replace("images/", "masks/") for case in dataset.cases)
