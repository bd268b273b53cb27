"""The embedded data set: patients of five laboratories, whose tissue is rendered, so that every nucleus is known.

Everything random comes from numpy's PCG64, seeded by (seed, patient, field).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pipeline.canvas import Traits
from pipeline.laboratories import LABORATORIES, Laboratory, write_laboratories
from pipeline.records.files import write_text
from pipeline.records.rle import encode_labels
from pipeline.tissue import Tissue, TissueKind, render_tissue

VERSION = 1
"""Raised with every change to a pixel, so that an older sample is written anew."""


@dataclass(frozen=True)
class _Plan:
    """One field of a patient: rows x columns crops of one size, or one crop and its copy, mirrored or turned."""

    kind: TissueKind | None
    rows: int
    columns: int
    height: int
    width: int
    copy_quarters: int | None = None
    copy_mirrored: bool = False


_TRAINING_FIELDS: tuple[tuple[_Plan, ...], ...] = (
    (_Plan(None, 2, 2, 128, 128), _Plan(None, 1, 1, 192, 160), _Plan(None, 1, 1, 160, 160, 0, True)),
    (_Plan(None, 2, 2, 128, 144), _Plan(None, 1, 2, 160, 128), _Plan("glass", 1, 1, 144, 160)),
    (_Plan(None, 2, 2, 144, 128), _Plan(None, 1, 1, 176, 128, 1), _Plan(None, 1, 1, 192, 192)),
    (_Plan(None, 2, 2, 128, 128), _Plan(None, 2, 1, 128, 160), _Plan(None, 1, 1, 144, 192)),
)
"""Seven images for each of a laboratory's four patients."""
_TEST_FIELDS: tuple[_Plan, ...] = (_Plan(None, 1, 2, 128, 160), _Plan(None, 1, 1, 160, 192))
_TEST_GLASS = _Plan("glass", 1, 1, 128, 128)
_KINDS: tuple[TissueKind, ...] = ("gland", "nest", "lymphoid", "stroma")


@dataclass(frozen=True)
class SampleImage:
    """One image of the data set with all that is known of it; case_id says nothing of patient or field.

    top, left: where the image was cut from its field, in pixels; copy: the whole field again, mirrored or turned, from
    a second scan. pixels: (height, width, 3) uint8 RGB.
    """

    case_id: str
    part: Literal["train", "test"]
    patient: str
    field: str
    laboratory: Laboratory
    top: int
    left: int
    copy: bool
    pixels: np.ndarray
    tissue: Tissue


def _digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def _scanned(section: Section) -> Iterator[tuple[int, int, bool, np.ndarray, Tissue]]:
    """The images of one section as (top, left, copy, pixels, tissue): its crops are cut from one scan."""
    plan, laboratory, whole = section.plan, section.laboratory, section.grow()
    _, first, second = (np.random.default_rng(part) for part in np.random.SeedSequence(section.seed).spawn(3))
    image = laboratory.scan(whole.concentrations, first)
    for top in range(0, image.shape[0], plan.height):
        for left in range(0, image.shape[1], plan.width):
            crop = image[top : top + plan.height, left : left + plan.width]
            yield top, left, False, crop, whole.cut(top, left, plan.height, plan.width)
    if plan.copy_quarters is not None:
        copy = whole.turned(plan.copy_quarters, plan.copy_mirrored)
        yield 0, 0, True, laboratory.scan(copy.concentrations, second), copy


def _traits(generator: np.random.Generator) -> Traits:
    haematoxylin, eosin, size, haze = generator.uniform((0.82, 0.82, 0.93, 0.6), (1.2, 1.2, 1.08, 1.4))
    return Traits(float(haematoxylin), float(eosin), float(size), float(haze))


def _patients(rounds: int) -> Iterator[tuple[Literal["train", "test"], Laboratory, tuple[_Plan, ...]]]:
    names = list(LABORATORIES)
    for fields in _TRAINING_FIELDS:
        for name in names[:-1]:
            yield "train", LABORATORIES[name], fields
    for name in names:
        yield "test", LABORATORIES[name], (*_TEST_FIELDS, _TEST_GLASS) if name == names[-1] else _TEST_FIELDS
    # Last, so that the first round's patients are the same in every sample.
    for fields in _TRAINING_FIELDS * (rounds - 1):
        for name in names[:-1]:
            yield "train", LABORATORIES[name], fields


@dataclass(frozen=True)
class Section:
    """One field of a patient before it is grown; seed: three numbers that all of its randomness comes from."""

    part: Literal["train", "test"]
    patient: str
    field: str
    laboratory: Laboratory
    kind: TissueKind
    traits: Traits
    seed: tuple[int, int, int]
    plan: _Plan

    def grow(self) -> Tissue:
        """The whole tissue, of which the sample's images are crops."""
        grown = np.random.default_rng(np.random.SeedSequence(self.seed).spawn(1)[0])
        height, width = self.plan.rows * self.plan.height, self.plan.columns * self.plan.width
        return render_tissue(self.kind, height, width, grown, self.traits)


def sections(seed: int = 1412, rounds: int = 1) -> Iterator[Section]:
    """Every section of the sample: rounds x 16 patients of four laboratories to train on, five for the test set."""
    for number, (part, laboratory, plans) in enumerate(_patients(rounds)):
        traits = _traits(np.random.default_rng(np.random.SeedSequence([seed, number])))
        patient = f"patient-{number + 1:02d}"
        for index, plan in enumerate(plans):
            kind = plan.kind or _KINDS[(number + number // 4 + index) % len(_KINDS)]
            field = f"{patient}-field-{index + 1}"
            yield Section(part, patient, field, laboratory, kind, traits, (seed, number, index), plan)


def render_sample(seed: int = 1412, rounds: int = 1) -> Iterator[SampleImage]:
    """Render every image of every section, one at a time."""
    for section in sections(seed, rounds):
        for crop, (top, left, copy, pixels, tissue) in enumerate(_scanned(section)):
            case_id = _digest("stainseg", VERSION, *section.seed, crop)
            yield SampleImage(
                case_id, section.part, section.patient, section.field, section.laboratory, top, left, copy, pixels,
                tissue,
            )  # fmt: skip


def _png(raster: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", raster, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done
    return encoded.tobytes()


def _table(header: list[str], rows: list[list[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _runs(image: SampleImage) -> list[str]:
    """One run-length text a nucleus; one empty text where there is none."""
    return list(encode_labels(image.tissue.label).values()) or [""]


def _write_image(folder: Path, image: SampleImage) -> None:
    home = folder / f"stage1_{image.part}" / image.case_id
    (home / "images").mkdir(parents=True)
    pixels = image.pixels[..., ::-1]
    if int(image.case_id[:2], 16) % 3 == 0:
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    (home / "images" / f"{image.case_id}.png").write_bytes(_png(np.ascontiguousarray(pixels)))
    np.savez_compressed(
        folder / "truth" / "concentrations" / f"{image.case_id}.npz",
        concentrations=image.tissue.concentrations.astype(np.float16),
    )
    if image.part == "test":
        return
    (home / "masks").mkdir()
    for number in range(1, int(image.tissue.label.max()) + 1):
        mask = np.where(image.tissue.label == number, np.uint8(255), np.uint8(0))
        (home / "masks" / f"{_digest(image.case_id, number)}.png").write_bytes(_png(mask))


def _write_tables(folder: Path, images: list[SampleImage]) -> None:
    images = sorted(images, key=lambda image: image.case_id)
    runs = {image.case_id: _runs(image) for image in images}
    test = [image for image in images if image.part == "test"]
    train = [image for image in images if image.part == "train"]
    tables: dict[str, tuple[list[str], list[list[object]]]] = {
        "stage1_train_labels.csv": (
            ["ImageId", "EncodedPixels"],
            [[image.case_id, text] for image in train for text in runs[image.case_id]],
        ),
        "stage1_sample_submission.csv": (["ImageId", "EncodedPixels"], [[image.case_id, "1 1"] for image in test]),
        "classes.csv": (
            ["filename", "foreground", "background"],
            [[f"{i.case_id}.png", i.laboratory.foreground, i.laboratory.background] for i in images],
        ),
        "truth/stage1_solution.csv": (
            ["ImageId", "EncodedPixels", "Height", "Width", "Usage"],
            [[i.case_id, text, *i.tissue.label.shape, "Public"] for i in test for text in runs[i.case_id]],
        ),
        "truth/groups.csv": (
            ["case_id", "group", "patient", "field", "laboratory", "top", "left", "copy"],
            [[i.case_id, i.patient, i.patient, i.field, i.laboratory.name, i.top, i.left, int(i.copy)] for i in images],
        ),
    }
    for name, (header, rows) in tables.items():
        write_text(folder / name, _table(header, rows))
    write_laboratories(folder / "truth" / "laboratories.json")


def write_sample(folder: Path, seed: int = 1412, rounds: int = 1) -> None:
    """Write the sample into a folder in the Data Science Bowl 2018's own layout, with the truth about it apart.

    As in the competition: stage1_train/<ImageId>/{images,masks}, stage1_train_labels.csv, stage1_test/<ImageId>/images,
    stage1_sample_submission.csv, and classes.csv, whose pair of colours names the laboratory (see LABORATORIES).
    truth/, which no stage reads by itself: stage1_solution.csv, the test images' nuclei in Kaggle's solution format;
    groups.csv (case_id, group = patient, patient, field, laboratory, top, left, copy); laboratories.json;
    concentrations/<ImageId>.npz, float16 (height, width, 2), exactly what was rendered; sample.json, version and seed.
    rounds: for each, 16 more patients of the same laboratories. A sample of this version, seed and rounds is left as it
    is, one of another is replaced; a killed run leaves nothing in the folder. Raises ValueError where the folder holds
    something that is not a sample.
    """
    wanted = {"version": VERSION, "seed": seed} | ({"rounds": rounds} if rounds > 1 else {})
    with replaced_whole(folder, "sample.json", wanted) as aside:
        if aside is None:
            return
        (aside / "truth" / "concentrations").mkdir(parents=True)
        images = []
        for image in render_sample(seed, rounds):
            _write_image(aside, image)
            images.append(image)
        _write_tables(aside, images)


@contextmanager
def replaced_whole(folder: Path, name: str, wanted: dict[str, int]) -> Iterator[Path | None]:
    """Give a folder to render into, which takes the place of this one when the block ends without an error.

    name, wanted: the file in truth/ that says what was rendered, and what it shall say. Gives None where it says so
    already. Raises ValueError where the folder holds something that was not rendered so.
    """
    marker = folder / "truth" / name
    if marker.is_file():
        if json.loads(marker.read_text(encoding="utf-8")) == wanted:
            yield None
            return
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder}: expected a folder that is new, empty or an earlier sample, found other files; "
            "move them away or write the sample elsewhere"
        )
    aside = folder.with_name(f".{folder.name}.part")
    earlier = folder.with_name(f".{folder.name}.earlier")
    for left_behind in (aside, earlier):
        shutil.rmtree(left_behind, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    write_text(aside / "truth" / name, json.dumps(wanted) + "\n")
    if folder.exists():
        folder.replace(earlier)
    aside.replace(folder)
    shutil.rmtree(earlier, ignore_errors=True)
