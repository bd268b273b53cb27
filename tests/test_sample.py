"""The embedded sample: whole in its layout, the same everywhere, and not trivial."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage

from pipeline.canvas import MINIMUM_AREA
from pipeline.laboratories import LABORATORIES
from pipeline.records.rle import decode
from pipeline.sample import VERSION, SampleImage, render_sample, sections, write_sample

PIXELS = "3dfddb3ce50667e07885607e36de05b5ea428c4e1916832e9564aa7d4e9cf12e"
"""SHA-256 over the decoded pixels of all images, ordered by id, with VERSION and the seed 1412."""


@pytest.fixture(scope="module")
def folder(sample_folder: Path) -> Path:
    return sample_folder


@pytest.fixture(scope="module")
def groups(folder: Path) -> dict[str, dict[str, str]]:
    return {row["case_id"]: row for row in _rows(folder / "truth" / "groups.csv")}


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _image(folder: Path, case_id: str) -> np.ndarray:
    (file,) = folder.glob(f"stage1_*/{case_id}/images/{case_id}.png")
    image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _masks(folder: Path, case_id: str) -> list[np.ndarray]:
    files = sorted((folder / "stage1_train" / case_id / "masks").glob("*.png"))
    return [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files]


def _concentrations(folder: Path, case_id: str) -> np.ndarray:
    with np.load(folder / "truth" / "concentrations" / f"{case_id}.npz") as stored:
        return stored["concentrations"]


def _train(groups: dict[str, dict[str, str]], folder: Path) -> list[str]:
    return sorted(case_id for case_id in groups if (folder / "stage1_train" / case_id).is_dir())


# --- The data set


def test_decoded_pixels_are_pinned(folder: Path, groups: dict[str, dict[str, str]]) -> None:
    whole = hashlib.sha256()
    for case_id in sorted(groups):
        image = _image(folder, case_id)
        whole.update(repr(image.shape).encode() + image.tobytes())
    assert (VERSION, whole.hexdigest()) == (1, PIXELS)


def test_counts(folder: Path, groups: dict[str, dict[str, str]]) -> None:
    train = _train(groups, folder)
    test = sorted(path.name for path in (folder / "stage1_test").iterdir())
    assert (len(train), len(test), len(groups)) == (112, 16, 128)
    patients = {groups[case_id]["patient"]: groups[case_id]["laboratory"] for case_id in train}
    assert Counter(patients.values()) == {"north": 4, "east": 4, "south": 4, "west": 4}
    held_out = {groups[case_id]["patient"] for case_id in test}
    assert not held_out & set(patients)
    assert {groups[case_id]["laboratory"] for case_id in test} == set(LABORATORIES)
    channels = Counter(_image(folder, case_id).shape[2] for case_id in train)
    assert channels[4] >= 20 and channels[3] >= 20
    blank = [case_id for case_id in train if not _masks(folder, case_id)]
    assert len(blank) == 4
    assert len({_image(folder, case_id).shape[:2] for case_id in train}) >= 6
    copies = [row for row in groups.values() if row["copy"] == "1"]
    assert len(copies) == 8
    fields = Counter(groups[case_id]["field"] for case_id in train if groups[case_id]["copy"] == "0")
    assert Counter(fields.values())[4] == 16


def test_layout_is_the_competitions(folder: Path, groups: dict[str, dict[str, str]]) -> None:
    assert {path.name for path in folder.iterdir()} == {
        *("stage1_train", "stage1_test", "stage1_train_labels.csv", "stage1_sample_submission.csv", "classes.csv"),
        "truth",
    }
    for home in [*(folder / "stage1_train").iterdir(), *(folder / "stage1_test").iterdir()]:
        assert len(home.name) == 64
        parts = ["images", "masks"] if home.parent.name == "stage1_train" else ["images"]
        assert sorted(path.name for path in home.iterdir()) == parts
        assert [path.name for path in (home / "images").iterdir()] == [f"{home.name}.png"]
    submission = _rows(folder / "stage1_sample_submission.csv")
    assert list(submission[0]) == ["ImageId", "EncodedPixels"]
    assert [row["ImageId"] for row in submission] == sorted(path.name for path in (folder / "stage1_test").iterdir())
    classes = {row["filename"].removesuffix(".png"): row for row in _rows(folder / "classes.csv")}
    assert set(classes) == set(groups)
    for case_id, row in classes.items():
        laboratory = LABORATORIES[groups[case_id]["laboratory"]]
        assert (row["foreground"], row["background"]) == (laboratory.foreground, laboratory.background)
    looks = {(laboratory.foreground, laboratory.background) for laboratory in LABORATORIES.values()}
    assert len(looks) == len(LABORATORIES)


def test_labels_file_equals_the_masks(folder: Path, groups: dict[str, dict[str, str]]) -> None:
    runs = defaultdict(list)
    for row in _rows(folder / "stage1_train_labels.csv"):
        runs[row["ImageId"]].append(row["EncodedPixels"])
    assert set(runs) == set(_train(groups, folder))
    for case_id, texts in runs.items():
        height, width = _image(folder, case_id).shape[:2]
        masks = _masks(folder, case_id)
        if texts == [""]:
            assert not masks
            continue
        assert all(mask.dtype == np.uint8 and mask.shape == (height, width) for mask in masks)
        assert all(set(np.unique(mask)) == {0, 255} for mask in masks)
        drawn = sorted((mask > 0).tobytes() for mask in masks)
        assert drawn == sorted(decode(text, height, width).tobytes() for text in texts)
        assert np.sum([mask > 0 for mask in masks], axis=0).max() == 1


def test_every_nucleus_is_one_piece_of_visible_size(folder: Path, groups: dict[str, dict[str, str]]) -> None:
    sizes = []
    for case_id in _train(groups, folder)[::4]:
        for mask in _masks(folder, case_id):
            assert ndimage.label(mask)[1] == 1
            sizes.append(int((mask > 0).sum()))
    assert min(sizes) >= MINIMUM_AREA
    assert np.percentile(sizes, 95) > 3 * np.percentile(sizes, 20)


def test_solution_is_kaggles_format_for_the_test_images(folder: Path) -> None:
    rows = _rows(folder / "truth" / "stage1_solution.csv")
    assert list(rows[0]) == ["ImageId", "EncodedPixels", "Height", "Width", "Usage"]
    cover = {}
    for row in rows:
        mask = decode(row["EncodedPixels"], int(row["Height"]), int(row["Width"]))
        cover[row["ImageId"]] = cover.get(row["ImageId"], 0) + mask
        assert mask.shape == _image(folder, row["ImageId"]).shape[:2]
    assert set(cover) == {path.name for path in (folder / "stage1_test").iterdir()}
    assert all(np.max(count) <= 1 for count in cover.values())
    assert sum(not np.any(count) for count in cover.values()) == 1


def test_crops_of_one_field_continue_each_other(folder: Path, groups: dict[str, dict[str, str]]) -> None:
    """Put together, four crops are one tissue: the step across a seam is no larger than the step beside it."""
    fields = defaultdict(list)
    for row in groups.values():
        if row["copy"] == "0":
            fields[row["field"]].append(row)
    tiled = [rows for rows in fields.values() if len(rows) == 4]
    assert len(tiled) == 16
    for rows in tiled:
        crops = {(int(row["top"]), int(row["left"])): _concentrations(folder, row["case_id"]) for row in rows}
        (top, bottom), (left, right) = (sorted({corner[axis] for corner in crops}) for axis in (0, 1))
        assert crops[top, left].shape[:2] == (bottom, right)
        for first, second in (((top, left), (top, right)), ((bottom, left), (bottom, right))):
            across = np.abs(crops[first][:, -1].astype(float) - crops[second][:, 0]).mean()
            beside = np.abs(crops[first][:, -2].astype(float) - crops[first][:, -1]).mean()
            assert across < 1.6 * beside + 0.005
        for first, second in (((top, left), (bottom, left)), ((top, right), (bottom, right))):
            across = np.abs(crops[first][-1].astype(float) - crops[second][0]).mean()
            beside = np.abs(crops[first][-2].astype(float) - crops[first][-1]).mean()
            assert across < 1.6 * beside + 0.005


def test_copies_are_the_same_tissue_mirrored_or_turned(folder: Path, groups: dict[str, dict[str, str]]) -> None:
    for case_id, row in groups.items():
        if row["copy"] == "0":
            continue
        (origin,) = (other for other, its in groups.items() if its["field"] == row["field"] and other != case_id)
        tissue, copy = _concentrations(folder, origin), _concentrations(folder, case_id)
        turned = [np.rot90(side, quarters) for side in (tissue, tissue[:, ::-1]) for quarters in range(4)]
        assert sum(np.array_equal(candidate, copy) for candidate in turned) == 1
        assert not np.array_equal(tissue, copy)


def test_stored_truth_explains_the_stored_pixels(folder: Path, groups: dict[str, dict[str, str]]) -> None:
    """Scanned again without noise, the stored concentrations give the stored picture up to noise and JPEG."""
    stored = json.loads((folder / "truth" / "laboratories.json").read_text(encoding="utf-8"))
    for case_id in sorted(groups)[::16]:
        laboratory = LABORATORIES[groups[case_id]["laboratory"]]
        assert np.array_equal(stored[laboratory.name]["stain_matrix"], laboratory.stain_matrix)
        again = laboratory.scan(_concentrations(folder, case_id), np.random.default_rng(0))
        difference = again[4:-4, 4:-4].astype(float) - _image(folder, case_id)[4:-4, 4:-4, :3]
        assert np.abs(difference).mean() < 5.0


def test_otsu_on_the_haematoxylin_channel_does_not_solve_it(folder: Path, groups: dict[str, dict[str, str]]) -> None:
    from skimage.color import rgb2hed
    from skimage.filters import threshold_otsu

    scores = []
    for case_id in _train(groups, folder):
        masks = _masks(folder, case_id)
        if masks:
            truth = np.any(masks, axis=0)
            haematoxylin = rgb2hed(_image(folder, case_id)[..., :3])[..., 0]
            found = haematoxylin > threshold_otsu(haematoxylin)
            scores.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert len(scores) == 108
    assert 0.5 < np.mean(scores) <= 0.75


# --- Writing


def _few(seed: int) -> list[SampleImage]:
    images = render_sample(seed)
    return [next(images) for _ in range(5)]


def test_a_finished_sample_is_left_alone_and_a_killed_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = _few(7)
    folder = tmp_path / "sample"

    def killed(seed: int, rounds: int) -> list[SampleImage]:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.sample.render_sample", killed)
    with pytest.raises(KeyboardInterrupt):
        write_sample(folder, seed=7)
    assert not folder.exists()

    monkeypatch.setattr("pipeline.sample.render_sample", lambda seed, rounds: iter(few))
    write_sample(folder, seed=7)
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
    assert sorted(path.name for path in (folder / "stage1_train").iterdir()) == sorted(image.case_id for image in few)
    before = (folder / "classes.csv").stat().st_mtime_ns
    write_sample(folder, seed=7)
    assert (folder / "classes.csv").stat().st_mtime_ns == before
    write_sample(folder, seed=8)
    assert json.loads((folder / "truth" / "sample.json").read_text(encoding="utf-8")) == {"version": VERSION, "seed": 8}
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]


def test_a_folder_with_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(
        ValueError, match="expected a folder that is new, empty or an earlier sample, found other files"
    ):
        write_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_more_rounds_leave_the_first_patients_as_they_are() -> None:
    small, large = ([section.seed for section in sections(1412, rounds)] for rounds in (1, 2))
    assert large[: len(small)] == small
    patients = {section.patient: section.laboratory.name for section in sections(1412, 2) if section.part == "train"}
    assert len(patients) == 32
    assert set(Counter(patients.values()).values()) == {8}
