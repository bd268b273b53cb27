"""What a reader gives: one raw case an image, named after files of the raw folder; nothing is decoded yet."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline.config import IngestSettings
from pipeline.records.case import LabelKind
from pipeline.records.decode import IMAGE_SUFFIXES
from pipeline.records.findings import SHOWN, Fault, Finding
from pipeline.records.outline import Outline
from pipeline.records.raw import RawFolder

OTHER_IMAGES = (
    ".webp", ".gif", ".jp2", ".j2k", ".jpx", ".jfif", ".jpe", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".pnm", ".exr",
    ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".czi", ".vsi",
)  # fmt: skip
"""File names of images, and of slides, that no layout of images reads."""
GROUP_COLUMNS = ("case_id", "group", "stratum")
"""Columns of the file that ingest.group_csv names; stratum may be absent."""


@dataclass(frozen=True)
class Patch:
    """A file that holds a part of an image: the place of its first pixel in the image, and the class of all of it."""

    name: str
    top: int
    left: int
    class_id: int


@dataclass(frozen=True)
class RawCase:
    """One image of the raw folder.

    image, masks, raster: names within the raw folder; masks: one file an object; raster: one file for the whole label.
    runs: run-length rows, one an object, an empty row meaning no object; None where no file speaks of the image;
    runs_table: the file that they stand in; only_runs: the layout has no other masks.
    outlines: objects as polygons, where the layout has them.
    target: file with the same tissue in the wanted stain; the image's own name where the two stand side by side in it,
    the image in the left half. class_name: the class of the whole image.
    planes: an array of object ids, one plane a class, of which plane_classes names the first ones. index: place of the
    image within image and planes, which are then arrays (.npy) of many.
    patches: files that the image is stitched from, image being their folder; cell: side in pixels of the squares of
    which each has one class.
    labelled: whether a label is expected. mpp: microns per pixel. size: height and width that a table gives the image.
    windowed: whether the image may be too large for memory, and is read by windows at 1/ingest.shrink of its size.
    plane: which axial plane of the volume that image and raster name.
    part: the data set's own part or fold.
    window: top, left, height and width of the tile of a slide that the case is, in pixels as slides are looked at.
    """

    case_id: str
    image: str
    labelled: bool
    masks: tuple[str, ...] = ()
    raster: str | None = None
    runs: tuple[str, ...] | None = None
    runs_table: str | None = None
    only_runs: bool = False
    outlines: tuple[Outline, ...] | None = None
    target: str | None = None
    class_name: str | None = None
    group: str | None = None
    stratum: str | None = None
    mpp: float | None = None
    size: tuple[int, int] | None = None
    windowed: bool = False
    plane: int | None = None
    planes: str | None = None
    plane_classes: tuple[str, ...] = ()
    index: int | None = None
    patches: tuple[Patch, ...] = ()
    cell: int | None = None
    part: str | None = None
    window: tuple[int, int, int, int] | None = None

    @property
    def source(self) -> str:
        """Where the image lies in the raw folder."""
        return self.image if self.index is None else f"{self.image}[{self.index}]"

    @property
    def segmented(self) -> bool:
        """Whether a label of object or class ids is expected, pixel by pixel."""
        return self.labelled and self.target is None and self.class_name is None


@dataclass(frozen=True)
class RawDataset:
    """Every case of a raw folder, faults seen from names alone, and the sample submission's name where there is one.

    label_kind: what the layout says its labels are; None leaves it to the values.
    """

    cases: tuple[RawCase, ...]
    faults: tuple[Fault, ...] = ()
    findings: tuple[Finding, ...] = ()
    sample_submission: str | None = None
    label_kind: LabelKind | None = None


@dataclass(frozen=True)
class Reader:
    """One layout: how it is recognised, how it is read, and in words what it looks like.

    only_by_name: never recognised, since it would take what another layout's mistake left over; every_image: takes all
    images there are, so that one that nothing here decodes is a fault, and not another thing beside them.
    """

    recognises: Callable[[RawFolder], bool]
    read: Callable[[RawFolder, IngestSettings], RawDataset]
    looks_like: str
    only_by_name: bool = False
    every_image: bool = False


def root_of(raw: RawFolder, folder: str) -> str | None:
    """Prefix ("" or ending in a slash) below which a folder of this name lies nearest to the top; None: nowhere.

    Downloads are often unpacked one folder deeper than wanted.
    """
    found = {
        name[: match.start() + len(match[1])]
        for name in raw.files()
        if (match := re.search(rf"(^|/){re.escape(folder)}/", name))
    }
    return min(found, key=lambda prefix: (prefix.count("/"), prefix), default=None)


def case_ids(keys: Iterable[str], unnamed: Set[str]) -> dict[str, str]:
    """Map keys (paths without suffix) to case ids: what all share is dropped, slashes become `__`.

    unnamed: folders, in small letters, that are dropped wherever they stand, unless ids then repeat.
    """
    parts = {key: tuple(part for part in key.split("/")[:-1] if part.lower() not in unnamed) for key in keys}
    shared = 0
    while len({folders[: shared + 1] for folders in parts.values()}) == 1 and all(
        len(folders) > shared for folders in parts.values()
    ):
        shared += 1
    short = {key: "__".join([*folders[shared:], key.rpartition("/")[2]]) for key, folders in parts.items()}
    unique = len({name.casefold() for name in short.values()}) == len(parts)
    return short if unique else {key: key.replace("/", "__") for key in parts}


def stem_of(name: str) -> str:
    """The path of a raw file without its suffix, letters composed (NFC)."""
    return PurePosixPath(unicodedata.normalize("NFC", name)).with_suffix("").as_posix()


def read_table(raw: RawFolder, name: str, columns: Iterable[str]) -> list[dict[str, str]]:
    """Read a CSV of the raw folder. Raises ValueError where columns are missing or the text is no CSV in UTF-8."""
    return table_of(raw.read(name), raw.origin(name), columns)


def table_of(content: bytes, source: str, columns: Iterable[str]) -> list[dict[str, str]]:
    """Parse a CSV in UTF-8 into rows. Raises ValueError naming missing columns, or every row of another length."""
    try:
        # Composed, as names of files are: a Mac writes the same name, and the same patient, in two ways.
        text = unicodedata.normalize("NFC", content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: expected CSV in UTF-8, found {error}; save it as CSV UTF-8") from error
    csv.field_size_limit(1 << 30)  # run-length rows of large images exceed the default of 131,072 letters
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [column.strip() for column in next(reader, [])]
    missing = [column for column in columns if column not in header]
    if missing:
        other = len(header) == 1 and any(separator in header[0] for separator in ";\t|")
        advice = "save it with commas between the cells" if other else "name them in its first line, or fetch it again"
        raise ValueError(
            f"{source}: expected the columns {', '.join(columns)}, found {', '.join(header) or 'an empty file'}; "
            f"{advice}"
        )
    rows, wrong = [], []
    for cells in filter(None, reader):
        if len(cells) == len(header):
            rows.append(dict(zip(header, map(str.strip, cells), strict=True)))
        else:
            wrong.append(f"line {reader.line_num} has {len(cells)}")
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{source}: expected {len(header)} cells a line ({', '.join(header)}), found: "
            f"{', '.join(wrong[:SHOWN])}{more}; mend these lines (a cell that holds a comma needs quotes), or fetch "
            "the file again"
        )
    return rows


def plain_id(cell: str) -> str:
    """The id that a cell of a table means: of a file its stem, of a spreadsheet's 10044.0 the digits."""
    if cell.lower().endswith(IMAGE_SUFFIXES):
        return PurePosixPath(cell).stem
    return cell.removesuffix(".0") if re.fullmatch(r"\d+\.0", cell) else cell


def rows_of(rows: Iterable[dict[str, str]], column: str, table: str) -> tuple[dict[str, dict[str, str]], list[Fault]]:
    """Return rows by the id in a column, and a fault for each id that has several."""
    of_id: dict[str, dict[str, str]] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        of_id.setdefault(plain_id(row[column]), row)
        counts[plain_id(row[column])] += 1
    return of_id, [
        Fault(name, "repeated row", table, "one row an id", f"{count} rows", "delete the others")
        for name, count in sorted(counts.items())
        if count > 1
    ]


def rows_without_image(missing: Iterable[str], table: str, folder: str) -> list[Fault]:
    """A fault for each id of a table whose image is not there: nothing would be said of what was never fetched."""
    return [
        Fault(name, "missing image", table, f"its image in {folder}", "none", "fetch it again, or delete its rows")
        for name in sorted(missing)
    ]


def images_of(raw: RawFolder, folder: str) -> tuple[dict[str, str], list[Fault]]:
    """Return the images below a folder (ending in a slash) by their stems, and a fault for each stem of several."""
    of_stem: dict[str, list[str]] = {}
    for name in raw.files():
        if name.startswith(folder) and name.lower().endswith(IMAGE_SUFFIXES):
            of_stem.setdefault(PurePosixPath(name).stem, []).append(name)
    return {stem: names[0] for stem, names in of_stem.items() if len(names) == 1}, [
        Fault(stem, "several images", names[0], "one image an id", ", ".join(names), "delete or rename the others")
        for stem, names in of_stem.items()
        if len(names) > 1
    ]


def unread_images(raw: RawFolder, dataset: RawDataset) -> tuple[Fault, ...]:
    """A fault for each image of a format that nothing here decodes, of a stem that no case and no other fault has.

    One in the topmost folder, where no image of a case is, is a data set's cover rather than one of its images.
    """
    told = [*(case.image for case in dataset.cases), *(fault.file for fault in dataset.faults)]
    known = {PurePosixPath(name).stem for name in told}
    flat = any("/" not in case.image for case in dataset.cases)
    unread = [name for name in raw.files() if name.lower().endswith(OTHER_IMAGES) and (flat or "/" in name)]
    expected, advice = f"an image as {', '.join(IMAGE_SUFFIXES)}", "save it as one of them, or delete it"
    return tuple(
        Fault(stem_of(name).replace("/", "__"), "unread format", name, expected, PurePosixPath(name).suffix, advice)
        for name in unread
        if PurePosixPath(name).stem not in known
    )


def sample_of(raw: RawFolder, name: str) -> tuple[str | None, list[Finding]]:
    """The sample submission of a competition; without it a note, since only submit asks for it, hours later."""
    if name in raw:
        return name, []
    return None, [Finding("", "noted", "no sample submission", f"expected {name}: submit needs it")]


def side_cars(raw: RawFolder, test: Set[str]) -> list[Finding]:
    """Tell of files that could hold the answer for a test image, which are never read."""
    paths = [PurePosixPath(name) for name in raw.files()]
    return [
        Finding(path.stem, "noted", "label of a test image", f"{path}: labels of test images are left unread")
        for path in paths
        if path.stem in test and path.suffix.lower() in (".json", ".geojson", ".npy")
    ]


def with_groups(dataset: RawDataset, raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Give cases the groups (and strata) of ingest.group_csv or ingest.group_pattern; faults where a case gets none."""
    if settings.group_csv is None and settings.group_pattern is None:
        return dataset
    if settings.group_csv is not None and settings.group_pattern is not None:
        raise ValueError("ingest.group_csv and ingest.group_pattern: expected one of the two, found both; drop one")
    cases, faults = list(dataset.cases), list(dataset.faults)
    findings = list(dataset.findings)
    if settings.group_csv is not None:
        source, rows = _group_rows(raw, settings)
        known = {case.case_id for case in cases}
        rows = [row if row["case_id"] in known else row | {"case_id": plain_id(row["case_id"])} for row in rows]
        table = {row["case_id"]: row for row in rows}
        if rows and not known & table.keys():
            raise ValueError(
                f"{source}: expected the ids of cases in the column case_id, such as {min(known, default='none')!r}, "
                f"found none of them in {len(rows)} rows, such as {rows[0]['case_id']!r}"
            )
        repeated = sorted(case_id for case_id, count in Counter(row["case_id"] for row in rows).items() if count > 1)
        if repeated:
            raise ValueError(f"{source}: expected each case_id once, found several times {', '.join(repeated[:10])}")
        cases = [
            replace(
                case,
                group=table.get(case.case_id, {}).get("group") or None,
                stratum=table.get(case.case_id, {}).get("stratum") or case.stratum,
            )
            for case in cases
        ]
        unknown = len(table.keys() - {case.case_id for case in cases})
        if unknown:
            findings.append(Finding("", "noted", "group without case", f"{source}: {unknown} case ids have no image"))
        expected, advice = "a group", "add the case to the file"
    else:
        source = f"ingest.group_pattern {settings.group_pattern!r}"
        pattern = re.compile(str(settings.group_pattern))
        matches = {case.case_id: pattern.search(case.case_id) for case in cases}
        cases = [replace(case, group=match[1] if (match := matches[case.case_id]) else None) for case in cases]
        expected, advice = "a case id that it matches", "widen the pattern"
    faults += [
        Fault(case.case_id, "no group", source, expected, "none", advice)
        for case in cases
        if case.labelled and not case.group
    ]
    return replace(dataset, cases=tuple(cases), faults=tuple(faults), findings=tuple(findings))


def _group_rows(raw: RawFolder, settings: IngestSettings) -> tuple[str, list[dict[str, str]]]:
    file = settings.group_csv
    assert file is not None
    name = PurePosixPath(file.as_posix()).as_posix()
    if name in raw:
        return name, read_table(raw, name, GROUP_COLUMNS[:2])
    if file.is_file():
        return str(file), table_of(file.read_bytes(), str(file), GROUP_COLUMNS[:2])
    raise ValueError(
        f"ingest.group_csv={file}: expected a CSV with the columns case_id and group, "
        f"found neither {raw.folder / file} nor {file}"
    )
