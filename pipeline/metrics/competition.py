"""A local copy of the competitions' own scores: a solution file and a submission file, as Kaggle takes them.

data-science-bowl-2018: for IoU above 0.50, 0.55, ..., 0.95 TP / (TP + FP + FN); an image's score is the mean over the
ten, the final score the mean over images. hubmap-kidney-segmentation: Dice of each image, mean over images. Both count
an image that is empty in solution and submission as 1. Source: the competitions' evaluation pages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.metrics import instance
from pipeline.records import rle
from pipeline.records.submission import FORMATS, read_rows, recognise_format

_SHOWN = 20
_IMAGE_SUFFIX = re.compile(r"\.(png|jpe?g|tiff?)$", re.IGNORECASE)


@dataclass(frozen=True)
class ImageScore:
    """One image: its score in [0, 1], objects (or, with a row an image, masks) on both sides, and its stratum."""

    image_id: str
    score: float
    truth_objects: int
    predicted_objects: int
    stratum: str | None


@dataclass(frozen=True)
class Score:
    """The competition's figure, mean over images in [0, 1], and what it is made of.

    by_stratum: {stratum: (mean, images)}, empty without a classes file.
    """

    format: str
    metric: str
    mean: float
    images: tuple[ImageScore, ...]
    by_stratum: dict[str, tuple[float, int]]


@dataclass(frozen=True)
class _Solution:
    """Cells and (height, width) of each image; None as size means that the image is not scored."""

    cells: dict[str, list[str]]
    sizes: dict[str, tuple[int, int] | None]


def score_submission(solution: Path, submission: Path, classes: Path | None = None) -> Score:
    """Score a submission against a solution; the solution's header says which competition it is.

    solution: id and runs columns as in the submission, Height and Width in pixels, and optionally Usage: images of
    usage Ignored must be in the submission and are not scored. classes: CSV of image id (or file name) and stratum, or
    the Data Science Bowl's filename, foreground, background. Raises ValueError listing every fault of a file: missing
    and unknown ids, runs that are malformed, unsorted, out of bounds or overlap within an image, repeated rows.
    """
    name, truth = _read_solution(solution)
    given = _read_submission(submission, name, truth)
    strata = _read_strata(classes) if classes else None
    scored_one = _score_objects if FORMATS[name].rows == "object" else _score_mask
    images = []
    for image, size in truth.sizes.items():
        if size is not None:
            stratum = strata.get(image, "unknown") if strata is not None else None
            images.append(ImageScore(image, *scored_one(truth.cells[image], given[image], *size), stratum))
    groups = sorted({image.stratum for image in images if image.stratum is not None})
    return Score(
        format=name,
        metric="mean AP over IoU above 0.50:0.05:0.95" if FORMATS[name].rows == "object" else "mean Dice",
        mean=float(np.mean([image.score for image in images])),
        images=tuple(images),
        by_stratum={stratum: _mean_of(images, stratum) for stratum in groups},
    )


def print_score(solution: Path, submission: Path, classes: Path | None = None) -> None:
    """Print the score, a table by stratum where a classes file is given, and the worst images."""
    score = score_submission(solution, submission, classes)
    print(f"{score.metric}: {score.mean:.6f} over {len(score.images)} images ({score.format})")
    if score.by_stratum:
        width = max(len(name) for name in score.by_stratum)
        for name, (mean, count) in score.by_stratum.items():
            print(f"  {name:<{width}}  {mean:.4f}  {count} images")
    worst = sorted(score.images, key=lambda image: (image.score, image.image_id))[:5]
    print("lowest:")
    for image in worst:
        print(
            f"  {image.image_id}  {image.score:.4f}  truth {image.truth_objects}, submitted {image.predicted_objects}"
        )


def _score_objects(truth: list[str], submitted: list[str], height: int, width: int) -> tuple[float, int, int]:
    """Average precision of one image, true objects, submitted objects."""
    found = _overlaps([cell for cell in truth if cell], [cell for cell in submitted if cell], height, width)
    return instance.average_precision(found), found.truth_ids.size, found.predicted_ids.size


def _overlaps(truth: list[str], submitted: list[str], height: int, width: int) -> instance.Overlaps:
    """Compare object by object: a solution's objects may share pixels, a submission's may not."""
    labels = rle.decode_labels(submitted, height, width).ravel(order="F")
    runs = [rle.read_runs(cell, height, width) for cell in truth]
    areas = np.array([lengths.sum() for _, lengths in runs], np.int64)
    predicted_areas = np.bincount(labels, minlength=len(submitted) + 1)[1:]
    under = [np.bincount(labels[rle.run_pixels(*run)], minlength=len(submitted) + 1)[1:] for run in runs]
    table = np.array(under, np.int64).reshape(len(truth), len(submitted))
    pair_truth, pair_predicted = np.nonzero(table)
    return instance.Overlaps(
        truth_ids=np.arange(1, len(truth) + 1),
        truth_areas=areas,
        predicted_ids=np.arange(1, len(submitted) + 1),
        predicted_areas=predicted_areas,
        predicted_ignored=np.zeros_like(predicted_areas),
        pair_truth=pair_truth,
        pair_predicted=pair_predicted,
        intersections=table[pair_truth, pair_predicted],
    )


def _score_mask(truth: list[str], submitted: list[str], height: int, width: int) -> tuple[float, int, int]:
    """Dice of one image, whether the truth has a mask, whether the submission has one; slides are never unrolled."""
    true_starts, true_lengths = rle.read_runs(truth[0], height, width)
    starts, lengths = rle.read_runs(submitted[0], height, width)
    covered = np.concatenate(([0], np.cumsum(true_lengths)))

    def true_pixels_before(positions: np.ndarray) -> np.ndarray:
        run = np.searchsorted(true_starts, positions, side="right")
        last = np.maximum(run - 1, 0)
        inside = np.minimum(positions - true_starts[last], true_lengths[last])
        return covered[last] + np.where(run > 0, inside, 0)

    total = int(true_lengths.sum() + lengths.sum())
    if not total:
        return 1.0, 0, 0
    shared = 0
    if starts.size and true_starts.size:
        shared = int((true_pixels_before(starts + lengths) - true_pixels_before(starts)).sum())
    return 2 * shared / total, int(true_starts.size > 0), int(starts.size > 0)


def _read_solution(file: Path) -> tuple[str, _Solution]:
    header, rows = read_rows(file)
    lowered = [column.lower() for column in header]
    if len(header) < 4 or not {"height", "width"} <= set(lowered[2:]):
        raise ValueError(
            f"{file}: expected the columns of the submission, then Height, Width and optionally Usage, "
            f"found {','.join(header)}; add each image's size in pixels"
        )
    name = recognise_format(header[:2])
    height_at, width_at = lowered.index("height"), lowered.index("width")
    usage_at = lowered.index("usage") if "usage" in lowered else None
    solution, faults = _Solution({}, {}), []
    for row in rows:
        image, cell = row[0], row[1]
        size: tuple[int, int] | None = None
        if usage_at is None or row[usage_at].lower() != "ignored":
            # A table with empty cells in a column comes out of pandas as 53.0.
            height, width = (row[at].removesuffix(".0") for at in (height_at, width_at))
            if not (height.isdecimal() and width.isdecimal()):
                found = f"{row[height_at]!r} and {row[width_at]!r}"
                faults.append(f"{image}: expected whole pixels as Height and Width, found {found}; mend its rows")
                continue
            size = int(height), int(width)
            try:
                rle.read_runs(cell, *size)
            except ValueError as error:
                faults.append(f"{image}: {error}")
        if solution.sizes.setdefault(image, size) != size:
            faults.append(f"{image}: rows of differing size or usage")
        solution.cells.setdefault(image, []).append(cell)
    faults += _row_faults({image: solution.cells[image] for image, size in solution.sizes.items() if size}, name)
    if not any(solution.sizes.values()):
        faults.append("no image that is scored")
    _refuse(file, [*dict.fromkeys(faults)])
    return name, solution


def _read_submission(file: Path, name: str, truth: _Solution) -> dict[str, list[str]]:
    header, rows = read_rows(file)
    faults = []
    if header not in FORMATS[name].headers:
        known = " or ".join(",".join(known) for known in FORMATS[name].headers)
        raise ValueError(f"{file}: expected the header {known}, as the solution is of {name}, found {','.join(header)}")
    cells: dict[str, list[str]] = {}
    for row in rows:
        cells.setdefault(row[0], []).append(row[1])
    missing, unknown = sorted(set(truth.sizes) - set(cells)), sorted(set(cells) - set(truth.sizes))
    faults += [f"missing id {image}" for image in missing] + [f"unknown id {image}" for image in unknown]
    scored = {image: size for image, size in truth.sizes.items() if size is not None and image in cells}
    faults += _row_faults({image: cells[image] for image in scored}, name)
    for image, size in scored.items():
        faults += _run_faults(image, cells[image], size, name)
    _refuse(file, faults)
    return cells


def _run_faults(image: str, cells: list[str], size: tuple[int, int], name: str) -> list[str]:
    try:
        if FORMATS[name].rows == "object":
            rle.decode_labels([cell for cell in cells if cell], *size)
        else:
            rle.read_runs(cells[0], *size)
    except ValueError as error:
        return [f"{image}: {error}"]
    return []


def _row_faults(cells: dict[str, list[str]], name: str) -> list[str]:
    if FORMATS[name].rows == "image":
        return [f"{image}: expected one row, found {len(rows)}" for image, rows in cells.items() if len(rows) != 1]
    return [
        f"{image}: an empty cell beside other rows" for image, rows in cells.items() if "" in rows and len(rows) > 1
    ]


def _read_strata(file: Path) -> dict[str, str]:
    header, rows = read_rows(file)
    if len(header) not in (2, 3):
        raise ValueError(f"{file}: expected image id and stratum, or filename, foreground, background, found {header}")
    return {_IMAGE_SUFFIX.sub("", row[0]): "/".join(row[1:]) for row in rows}


def _mean_of(images: list[ImageScore], stratum: str) -> tuple[float, int]:
    chosen = [image.score for image in images if image.stratum == stratum]
    return float(np.mean(chosen)), len(chosen)


def _refuse(file: Path, faults: list[str]) -> None:
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ValueError(f"{file}: {len(faults)} faults: {'; '.join(faults[:_SHOWN])}{more}")
