"""A competition's submission file: its format, header and ids from the sample file, decoded back before it is kept."""

from __future__ import annotations

import base64
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.records import rle
from pipeline.records.case import IGNORED
from pipeline.records.files import write_text, written_aside
from pipeline.records.objects import means_by_id

_SHOWN = 5
_SIZES = ("height", "width")
PROBABILITY_DIGITS = 6


@dataclass(frozen=True, eq=False)
class ScoredObjects:
    """Object ids of an image, (height, width) integer, 0 background, and how sure each object is, in [0, 1]."""

    labels: np.ndarray
    confidences: Mapping[int, float]


Truth = np.ndarray | float | ScoredObjects
"""What a submission says of an image: labels of its pixels, also with confidences, or the probability of a class."""


@dataclass(frozen=True)
class SubmissionFormat:
    """How a competition lays out its rows.

    competition: Kaggle's name. headers: the first lines that mean this format. rows: object (a row each, the image's id
    repeats, an image without objects has one row with an empty cell), image (a row each, one binary mask), class (a
    row each, the probability of the second of two classes) or scored (a row an image, with its height, its width and,
    for every object, class 0, confidence, and COCO's run lengths, deflated, in base 64).
    """

    competition: str
    headers: tuple[tuple[str, ...], ...]
    rows: Literal["object", "image", "class", "scored"]


FORMATS = {
    "dsb2018": SubmissionFormat("data-science-bowl-2018", (("ImageId", "EncodedPixels"),), "object"),
    "hubmap2020": SubmissionFormat(
        "hubmap-kidney-segmentation",
        (("id", "predicted"), ("id", "expected"), ("id", "encoding"), ("img", "pixels")),
        "image",
    ),
    "hubmap2022": SubmissionFormat("hubmap-organ-segmentation", (("id", "rle"),), "image"),
    "hubmap2023": SubmissionFormat(
        "hubmap-hacking-the-human-vasculature", (("id", "height", "width", "prediction_string"),), "scored"
    ),
    "pcam": SubmissionFormat("histopathologic-cancer-detection", (("id", "label"),), "class"),
}
"""Known formats. HuBMAP's pages and files show several headers; the sample file's own is what gets written."""


@dataclass(frozen=True)
class Sample:
    """What the competition's sample submission fixes: header, and every id once, in order.

    repeated: ids of several rows. sizes: height and width of the images, as they stand there; empty where the sample
    tells none.
    """

    file: Path
    header: tuple[str, ...]
    ids: tuple[str, ...]
    repeated: tuple[str, ...]
    sizes: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Written:
    """What a kept submission holds; other_sizes: the images that the sample gives a size which is not theirs."""

    format: str
    images: int
    rows: int
    empty_images: int
    other_sizes: tuple[str, ...]


class LabelFiles(Mapping[str, np.ndarray]):
    """Label rasters read from `<folder>/<id>.png` when asked for; only the ids given are there.

    full: height and width of images that are stored smaller than they were, to which their labels are enlarged.
    """

    def __init__(self, folder: Path, ids: Iterable[str], full: Mapping[str, Sequence[int]] | None = None):
        self._files = {name: folder / f"{name}.png" for name in ids}
        self._full = full or {}

    def __getitem__(self, name: str) -> np.ndarray:
        from pipeline.records.rasters import read_label

        label = read_label(self._files[name])
        if name not in self._full:
            return label
        rows, columns = (np.arange(many) * few // many for many, few in zip(self._full[name], label.shape, strict=True))
        return label[rows][:, columns]

    def __iter__(self) -> Iterator[str]:
        return (name for name, file in self._files.items() if file.exists())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class ScoredFiles(Mapping[str, Truth]):
    """Objects of LabelFiles, each as sure as the foreground of its map, `<maps>/<id>.tif`, is on average."""

    def __init__(self, labels: LabelFiles, maps: Path):
        self._labels, self._maps = labels, maps

    def __getitem__(self, name: str) -> Truth:
        from pipeline.records.rasters import read_probabilities

        labels = self._labels[name]
        means = means_by_id(labels, read_probabilities(self._maps / f"{name}.tif")[0])
        return ScoredObjects(labels, {number: float(means[number]) for number in _ids(labels)})

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels)

    def __len__(self) -> int:
        return len(self._labels)


def recognise_format(header: tuple[str, ...]) -> str:
    """Name the format of a header, a key of FORMATS. Raises ValueError listing the known headers."""
    for name, entry in FORMATS.items():
        if header in entry.headers:
            return name
    known = "; ".join(f"{','.join(known)} ({name})" for name, entry in FORMATS.items() for known in entry.headers)
    raise ValueError(
        f"header {','.join(header)!r}: expected one of {known}; set submit.format to write it all the same"
    )


def read_rows(file: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Read a CSV as text: the header, and every row as one cell a column.

    Quotes around cells and a byte-order mark are taken off; blank lines are passed over. Raises ValueError for an
    unreadable or empty file and for rows of another width, naming their lines.
    """
    # Python's csv reader stops at cells of 131,072 characters, which the runs of a slide exceed; no cell holds a comma.
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected a CSV file in UTF-8: {error}") from error
    rows = [
        (number, tuple(cell.strip().strip('"') for cell in line.split(",")))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not rows:
        raise ValueError(f"{file}: expected a header and rows, found an empty file")
    header = rows[0][1]
    wrong = [f"line {number} has {len(cells)}" for number, cells in rows[1:] if len(cells) != len(header)]
    if wrong:
        raise ValueError(f"{file}: expected {len(header)} cells a line ({','.join(header)}), found: {_listed(wrong)}")
    return header, [cells for _, cells in rows[1:]]


def read_sample_file(file: Path) -> Sample:
    """Read a sample submission. Raises ValueError unless it has two or four columns and rows, whose ids are not empty.

    An id that repeats on neighbouring rows, as where a row is an object, counts once; elsewhere it is refused.
    """
    header, rows = read_rows(file)
    if len(header) not in (2, 4) or not rows:
        found = f"{len(header)} and {len(rows)}"
        raise ValueError(f"{file}: expected two columns (or four) and at least one row, found {found}")
    ids = _in_order(cells[0] for cells in rows)
    faults = [f"{name!r} comes back after other ids" for name in _repeated(ids)] + ["an empty id"] * ("" in ids)
    if faults:
        raise ValueError(f"{file}: expected every id once, found {_listed(faults)}; download the sample file again")
    sizes = {cells[0]: (cells[1], cells[2]) for cells in rows} if header[1:3] == _SIZES else {}
    return Sample(file, header, tuple(ids), tuple(_repeated([cells[0] for cells in rows])), sizes)


def write_submission(
    file: Path, labels: Mapping[str, Truth], sample: Sample, submission_format: str = "auto"
) -> Written:
    """Write a submission with the sample's header, ids and order; it is kept only if check_submission accepts it.

    labels: {id: (height, width) integer labels, 0 background}; each is read twice, so a mapping that reads files keeps
    memory to one image. dsb2018 takes object ids, hubmap2020 and hubmap2022 anything above 0, hubmap2023 ScoredObjects,
    pcam {id: probability of class 1}. Lines end in a line feed: the same labels give the same bytes. Raises ValueError
    naming every id that is missing or not in the sample, or that has several rows there where the format has one an
    image, and for masks where the format wants probabilities, or the other way round.
    """
    name = recognise_format(sample.header) if submission_format == "auto" else submission_format
    if name not in FORMATS:
        raise ValueError(f"submit.format: expected auto or one of {', '.join(FORMATS)}, found {name!r}")
    if sample.repeated and FORMATS[name].rows != "object":
        raise ValueError(
            f"{sample.file}: expected a row an image, as the format {name} has, found several of "
            f"{_listed([*sample.repeated])}; download the sample file again"
        )
    missing, unknown = sorted(set(sample.ids) - set(labels)), sorted(set(labels) - set(sample.ids))
    faults = [f"no mask for {_listed(missing)}"] * bool(missing) + [f"not in the sample: {_listed(unknown)}"] * bool(
        unknown
    )
    if faults:
        raise ValueError(
            f"{sample.file}: expected one mask for each of its {len(sample.ids)} ids, found {'; '.join(faults)}; "
            "predict the images of the competition stage that this sample belongs to; of images that ingest left out "
            "(see findings.csv) mend the files"
        )
    lines, empty, other_sizes = [",".join(sample.header)], 0, []
    for image in sample.ids:
        cells = _cells(labels[image], name)
        if FORMATS[name].rows == "scored" and all(sample.sizes.get(image, ("",))):
            given, own = " x ".join(sample.sizes[image]), " x ".join(cells[0].split(",")[:2])
            other_sizes += [f"{image} ({own}, not {given})"] if own != given else []
        lines += [f"{image},{cell}" for cell in cells]
        empty += not cells[0].rpartition(",")[2]
    with written_aside(file) as aside:
        write_text(aside, "\n".join(lines) + "\n")
        check_submission(aside, sample, labels, name)
    return Written(name, len(sample.ids), len(lines) - 1, empty, tuple(other_sizes))


def check_submission(file: Path, sample: Sample, labels: Mapping[str, Truth], submission_format: str = "auto") -> None:
    """Decode a submission and compare it with the masks, pixel by pixel, or with the probabilities.

    Raises ValueError listing: another header; ids that are missing, unknown or out of the sample's order; runs that are
    unsorted, out of bounds or overlap within an image; an empty cell beside other rows; pixels that differ.
    """
    name = recognise_format(sample.header) if submission_format == "auto" else submission_format
    header, rows = read_rows(file)
    faults = []
    if header != sample.header:
        faults.append(f"header {','.join(header)!r} where the sample has {','.join(sample.header)!r}")
    ids = _in_order(cells[0] for cells in rows)
    faults += _id_faults(ids, sample.ids)
    by_image: dict[str, list[str]] = {}
    for cells in rows:
        by_image.setdefault(cells[0], []).append(",".join(cells[1:]))
    for image in sample.ids:
        if image in by_image and image in labels:
            faults += [f"{image}: {fault}" for fault in _image_faults(by_image[image], labels[image], name)]
    if faults:
        raise ValueError(f"{file}: not a valid submission: {_listed(faults, '; ')}")


_GIVEN = {"class": "a probability", "scored": "objects with confidences", "image": "a mask", "object": "a mask"}


def _cells(labels: Truth, submission_format: str) -> list[str]:
    """What follows the id in the rows of one image: run lengths, a probability, or size and scored objects."""
    rows = FORMATS[submission_format].rows
    kinds = {float: "a probability", ScoredObjects: "objects with confidences"}
    found = kinds.get(type(labels), "a mask")
    if found != _GIVEN[rows]:
        raise ValueError(
            f"submit.format={submission_format}: expected {_GIVEN[rows]} for each image, found {found}; a run of "
            f"train.task=classification gives probabilities, one of segmentation masks, of objects with confidences"
        )
    if isinstance(labels, float):
        return [f"{labels:.{PROBABILITY_DIGITS}f}"]
    if isinstance(labels, ScoredObjects):
        height, width = labels.labels.shape
        objects = [
            f"0 {labels.confidences[number]:.{PROBABILITY_DIGITS}f} {_packed(labels.labels == number)}"
            for number in _ids(labels.labels)
        ]
        return [f"{height},{width},{' '.join(objects)}"]
    if rows == "image":
        return [rle.encode((labels > 0) & (labels != IGNORED))]
    return list(rle.encode_labels(labels).values()) or [""]


def _ids(labels: np.ndarray) -> list[int]:
    return [number for number in np.unique(labels).tolist() if 0 < number != IGNORED]


def _packed(mask: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(rle.encode_coco(mask), zlib.Z_BEST_COMPRESSION)).decode()


def _scored_faults(cell: str, objects: ScoredObjects) -> list[str]:
    """Decode the cells of an image and compare sizes, confidences and every object's pixels."""
    height, width, text = cell.split(",")
    shape = objects.labels.shape
    if (height, width) != tuple(map(str, shape)):
        return [f"expected {shape[0]} x {shape[1]} pixels, found {height} x {width}"]
    words = text.split()
    wanted = _ids(objects.labels)
    if len(words) != 3 * len(wanted):
        return [f"expected {len(wanted)} objects of three words each, found {len(words)} words"]
    faults = []
    for number, name, confidence, packed in zip(wanted, words[::3], words[1::3], words[2::3], strict=True):
        try:
            mask = rle.decode_coco(zlib.decompress(base64.b64decode(packed, validate=True)), *shape)
        except (ValueError, zlib.error) as error:
            faults.append(f"object {number}: {error}")
            continue
        if name != "0" or confidence != f"{objects.confidences[number]:.{PROBABILITY_DIGITS}f}":
            faults.append(
                f"object {number}: expected class 0 and {objects.confidences[number]}, found {name} {confidence}"
            )
        faults += _pixel_faults(mask != (objects.labels == number))
    return faults


def _image_faults(cells: list[str], labels: Truth, submission_format: str) -> list[str]:
    if FORMATS[submission_format].rows != "object" and len(cells) != 1:
        return [f"expected one row, found {len(cells)}"]
    if isinstance(labels, float):
        return [] if cells == _cells(labels, submission_format) else [f"expected {labels}, found {cells[0]!r}"]
    if isinstance(labels, ScoredObjects):
        return _scored_faults(cells[0], labels)
    if "" in cells and len(cells) > 1:
        return ["an empty cell beside other rows"]
    try:
        if FORMATS[submission_format].rows == "image":
            different = rle.decode(cells[0], *labels.shape) != ((labels > 0) & (labels != IGNORED))
            return _pixel_faults(different)
        decoded = rle.decode_labels([cell for cell in cells if cell], *labels.shape)
    except ValueError as error:
        return [str(error)]
    # Rows are numbered from 1 while object ids may have gaps; both rise together.
    expected = np.where(labels == IGNORED, 0, labels)
    objects = np.unique(expected[expected > 0])
    if decoded.max(initial=0) != objects.size:
        return [f"expected {objects.size} objects, found {decoded.max(initial=0)}"]
    return _pixel_faults(np.concatenate(([0], objects))[decoded] != expected)


def _pixel_faults(different: np.ndarray) -> list[str]:
    count = int(np.count_nonzero(different))
    return [f"{count} pixels differ from the mask"] if count else []


def _id_faults(ids: list[str], wanted: tuple[str, ...]) -> list[str]:
    missing, unknown = sorted(set(wanted) - set(ids)), sorted(set(ids) - set(wanted))
    apart = _repeated(ids)
    faults = [f"missing ids: {_listed(missing)}"] * bool(missing) + [f"unknown ids: {_listed(unknown)}"] * bool(unknown)
    faults += [f"ids whose rows stand apart: {_listed(apart)}"] * bool(apart)
    if not faults and ids != list(wanted):
        found, expected = next(
            (found, expected) for found, expected in zip(ids, wanted, strict=True) if found != expected
        )
        faults.append(f"ids out of the sample's order from {found!r} on, where {expected!r} was expected")
    return faults


def _in_order(ids: Iterable[str]) -> list[str]:
    """Ids in order of appearance, neighbouring repeats once."""
    kept: list[str] = []
    for name in ids:
        if not kept or kept[-1] != name:
            kept.append(name)
    return kept


def _repeated(ids: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(ids).items() if count > 1)


def _listed(items: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more
