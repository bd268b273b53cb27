"""Normalise: bring every image to the stain of one reference, fitted on training cases; or, with --images, any images.

Reads:  data/ingest/<dataset>/ (cases, images), data/split/<dataset>/<name>/split.csv; with method learned data/train/
Writes: data/normalise/<dataset>/<method, or the run of method learned>/: stain.json (the fitted normaliser, with the
        weights of a learned one in stain.pt), images/<case_id>.png, status.csv (case_id, status, fallback);
        with method none, stain.json alone, which says so
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, NormaliseSettings
from pipeline.records.case import Case, read_cases
from pipeline.records.files import write_bytes, write_json
from pipeline.records.findings import FaultyFile, some
from pipeline.records.images import (
    ENCODING,
    JPEG_QUALITY,
    JPEG_SUFFIXES,
    common_depth,
    encode_image,
    find_images,
    passed_over,
    read_any_image,
)
from pipeline.records.out_folder import check_out, refuse_alike, refuse_foreign, write_anew
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, write_png
from pipeline.records.split import read_groups, read_parts, read_split_table
from pipeline.stains import METHODS, load, normaliser_files
from pipeline.stains.learned import Learned
from pipeline.stains.normaliser import Normaliser, StatisticalNormaliser
from pipeline.stains.tiles import JOURNAL, STATUS, Batch, Read, Tile, evenly, slides_of

STAIN = "stain.json"
LARGEST_FIT = 500
"""Images that the reference is sought among; of more, so many evenly spaced ones."""


def inputs(config: Config, paths: Paths) -> list[Path]:
    """Return what decides staleness: nothing where nothing is done, else the images, the split and a learned run."""
    if config.normalise.method == "none":
        return []
    learned = paths.learned_normaliser
    return [paths.ingest / "stage.json", paths.split / "stage.json", *([learned / "stage.json"] if learned else [])]


def run(config: Config, paths: Paths) -> list[str]:
    """Fit, then normalise what is not there yet.

    Raises ValueError where the reference cannot be used, or too many images fell back.
    """
    settings, file = config.normalise, paths.normalise / STAIN
    if settings.method == "none":
        write_json(file, {"method": "none", "version": 1})
        return ["normalise.method is none: the ingested images are used as they are"]
    if not file.exists():
        _fit(settings, paths)
    tiles = _tiles_of_cases(read_cases(paths.cases), settings, paths)
    batch = Batch(_loaded(file, config), tiles, read_image, settings.statistics)
    batch.normalise(paths.normalise / JOURNAL, write_png)
    if too_many := batch.too_many_fell_back(paths.normalise, settings.fail_if_fallback_over):
        raise ValueError(too_many)
    batch.write_status(paths.normalise, "case_id")
    told = f"what became of each is in {paths.normalise / STATUS}"
    return [*batch.describe(_towards(file)), told, *_seen_of_test(config, paths)]


def normalise_images(images: Path, out: Path, config: Config, reference: Path | None = None) -> None:
    """Normalise an image, or a folder of images and its subfolders, into another folder, each under its own name.

    PNG, TIFF and BMP hold every pixel of the result, JPEG is written as JPEG again; all become RGB of 8 bits, without
    what else a file holds (resolution, colour profile). Beside them: status.csv (file, status, fallback), stain.json.
    reference: the image to bring all others to; by default the one of them that is nearest to the median of all.
    A group is what lies in one folder, images itself or a subfolder. The same command again gives the same bytes;
    another file is never replaced.
    Raises ValueError before anything is written where out cannot be used or no stain be fitted; and, after all others
    were written, with every file that could not be read, and where too many images fell back.
    """
    settings = config.normalise
    _check_settings(settings, reference)
    files, others = find_images(images, nested=True)
    home = images if images.is_dir() else images.parent
    tiles = _tiles_of_files(files, home, out, settings)
    _check_out(images, out, tiles)
    remarks: list[tuple[str, str, str]] = []

    def reader(depth: int) -> Read:
        def read(file: Path) -> np.ndarray:
            image, noted = read_any_image(file, depth)
            name = file.relative_to(home).as_posix() if file.is_relative_to(home) else str(file)
            remarks.extend((remark.fault, name, remark.detail) for remark in noted)
            return image

        return read

    read = reader(common_depth(files))
    if reference is None:
        chosen = [tiles[index] for index in evenly(len(tiles), LARGEST_FIT)]
        towards = _fit_to_images(config, images, chosen, read, out)
    else:
        chosen = [Tile(reference.name, reference, out, None)]
        towards = _fit_to_images(config, reference, chosen, reader(common_depth([reference])), out)
    batch = Batch(_loaded(out / STAIN, config), tiles, read, settings.statistics)
    batch.normalise(out / JOURNAL, _write_anew)
    batch.write_status(out, "file")
    for line in [*_notes(remarks, others, tiles), *batch.describe(towards)]:
        print(line)
    print(f"Written: {len(batch.done)} of {len(tiles)} images, {STATUS} and {STAIN} to {out}")
    too_many = batch.too_many_fell_back(out, settings.fail_if_fallback_over)
    if problems := [problem for problem in (too_many, _told(batch.faults, len(tiles))) if problem]:
        raise ValueError("\n".join(problems))


# --- Fitting ------------------------------------------------------------------------------------------------------


def _fitted(settings: NormaliseSettings, paths: Paths, images: Iterable[np.ndarray], count: int) -> Normaliser:
    """Make the normaliser that the settings name: the run of a learned one is opened, any other is fitted to images."""
    from tqdm import tqdm

    if paths.learned_normaliser is not None:
        return Learned.of_run(paths.learned_normaliser)
    with_bar = tqdm(images, total=count, desc="fit stain", unit="image", disable=None)
    return METHODS[settings.method](settings.maximum_gain, settings.white_point).fit(with_bar)


def _loaded(file: Path, config: Config) -> Normaliser:
    """Read a fitted normaliser; a learned one computes where compute says."""
    normaliser = load(file)
    if isinstance(normaliser, Learned):
        normaliser.compute = normaliser.trained.compute_here(config.compute)
    return normaliser


def _entries(settings: NormaliseSettings, normaliser: Normaliser, names: Sequence[str], key: str) -> dict[str, Any]:
    """Return what stain.json says beside the fitted state: where it comes from, what statistics are measured over."""
    if not isinstance(normaliser, StatisticalNormaliser):
        return {"run": settings.run}
    assert normaliser.reference_index_ is not None
    return {
        key: names[normaliser.reference_index_],
        "fitted_on": len(names),
        "statistics": settings.statistics,
        "slide_pattern": settings.slide_pattern,
    }


def _fit(settings: NormaliseSettings, paths: Paths) -> None:
    """Fit on training cases and write stain.json; the reference is the named case, or the one nearest to the median."""
    training = read_parts(paths)["train"]
    if settings.reference is not None:
        named = [case for case in training if case.case_id == settings.reference]
        if not named:
            raise ValueError(
                f"normalise.reference: expected the id of a training case, found {settings.reference!r}; "
                f"{paths.split_table} has {len(training)}: {some(case.case_id for case in training)}"
            )
        training = named
    chosen = [training[i] for i in evenly(len(training), LARGEST_FIT)]
    normaliser = _fitted(settings, paths, (read_image(paths.ingest / case.image) for case in chosen), len(chosen))
    names = [case.case_id for case in chosen]
    normaliser.save(paths.normalise / STAIN, **_entries(settings, normaliser, names, "reference_case"))


def _fit_to_images(config: Config, where: Path, tiles: Sequence[Tile], read: Read, out: Path) -> str:
    """Fit to images and write stain.json into a folder; return what other images are brought to, in words.

    Raises ValueError where stain.json is there already and holds another reference or other settings.
    """
    settings, paths = config.normalise, Paths.of(config)
    names: list[str] = []
    faults: dict[str, str] = {}

    def sound() -> Iterator[np.ndarray]:
        for tile in tiles:
            try:
                image = read(tile.source)
            except FaultyFile as error:
                faults[tile.name] = str(error)
                continue
            names.append(tile.name)
            yield image

    try:
        normaliser = _fitted(settings, paths, sound(), len(tiles))
    except ValueError as error:
        found = str(error) if names or not faults else "expected an image to fit to, found none that can be read"
        raise ValueError("\n".join(filter(None, [f"{where}: {found}", _told(faults, len(tiles))]))) from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / STAIN
        normaliser.save(file, **_entries(settings, normaliser, names, "reference_image"))
        if not (out / STAIN).exists():
            for made in reversed(normaliser_files(file.parent)):
                write_bytes(out / made.name, made.read_bytes())
        elif (out / STAIN).read_bytes() != file.read_bytes():
            raise ValueError(
                f"--out {out}: expected an empty folder or the result of the same command, found that of another "
                f"reference or of other settings (its {STAIN} differs); name another folder, or remove this one"
            )
    return _towards(out / STAIN)


def _towards(file: Path) -> str:
    content = json.loads(file.read_text(encoding="utf-8"))
    if content["method"] == Learned.method:
        return f"changed by the trained run {content['run']}"
    reference = content["reference_case"] if "reference_case" in content else content["reference_image"]
    return f"brought to the stain of {reference} by {content['method']}"


def _seen_of_test(config: Config, paths: Paths) -> list[str]:
    """Say which test images a learned normaliser learned from: they may be looked at, and never scored."""
    from pipeline.trained import open_run

    test = read_parts(paths)["test"]
    if paths.learned_normaliser is None or not test:
        return []
    trained = open_run(paths.learned_normaliser)
    used, doubt = trained.seen_among(test, config, read_groups(paths)), trained.seen.doubt(config.dataset, test)
    return [
        *([f"noted: test images that took part in the normaliser's training: {used}; training on the others and "
           "scoring these is refused"] if used else []),
        *([f"noted: {config.normalise.run}: {doubt}"] if doubt else []),
    ]  # fmt: skip


# --- Tiles --------------------------------------------------------------------------------------------------------


def _tiles_of_cases(cases: Sequence[Case], settings: NormaliseSettings, paths: Paths) -> list[Tile]:
    """Return the cases of a data set; their groups are those of the split, where it knows the case."""
    pools: dict[str, str | None]
    if settings.statistics == "slide":
        pools = slides_of([case.case_id for case in cases], settings)
    else:
        rows = read_split_table(paths.split_table)
        pools = {case.case_id: rows[case.case_id]["group"] if case.case_id in rows else case.group for case in cases}
    return [
        Tile(case.case_id, paths.ingest / case.image, paths.normalise / case.image, pools[case.case_id])
        for case in cases
    ]


def _tiles_of_files(files: Sequence[Path], home: Path, out: Path, settings: NormaliseSettings) -> list[Tile]:
    """Return the images below a folder; the group of an image is the subfolder that it lies in."""
    unnamed = [file for file in files if file.suffix.lower() not in ENCODING]
    if unnamed:
        raise ValueError(f"{unnamed[0]}: expected a name that ends in {', '.join(ENCODING)}, which it is to keep")
    names = [file.relative_to(home) for file in files]
    if settings.statistics == "slide":
        slides = slides_of([file.stem for file in files], settings)
        pools = [slides[file.stem] for file in files]
    else:
        pools = [name.parent.as_posix() for name in names]
    return [Tile(name.as_posix(), file, out / name, pool) for file, name, pool in zip(files, names, pools, strict=True)]


# --- A folder of images -------------------------------------------------------------------------------------------


def _check_settings(settings: NormaliseSettings, reference: Path | None) -> None:
    if settings.method == "none":
        methods = ", ".join([*METHODS, Learned.method])
        raise ValueError(f"normalise.method: expected one of {methods}, found none; add e.g. normalise.method=macenko")
    if settings.reference is not None:
        raise ValueError(
            f"normalise.reference: names a case of a data set, found {settings.reference!r} beside --images; "
            "give a file with --reference instead"
        )
    if reference is not None and settings.method == Learned.method:
        raise ValueError("--reference: the training of method learned has fixed its reference; leave it out")
    if reference is not None and not reference.is_file():
        raise ValueError(f"--reference {reference}: expected an image file, found {_kind(reference)}")


def _check_out(images: Path, out: Path, tiles: Sequence[Tile]) -> None:
    """Refuse a folder where results would mix with, or take the place of, something else."""
    here, there = images.resolve(), out.resolve()
    check_out(out)
    if there == here.parent or (images.is_dir() and (there == here or here in there.parents or there in here.parents)):
        raise ValueError(f"--out {out}: expected a folder apart from {images}, found the same, or one within the other")
    refuse_alike(images, ((tile.name, tile.name) for tile in tiles))
    ours = {tile.name for tile in tiles} | {STAIN, Path(STAIN).with_suffix(".pt").name, STATUS}
    refuse_foreign(out, ours if (out / STAIN).exists() else ())


def _write_anew(file: Path, image: np.ndarray) -> None:
    """Write an image where there is none, or the same. Raises FaultyFile where another is there."""
    write_anew(file, encode_image(file.name, image))


def _notes(remarks: Iterable[tuple[str, str, str]], others: Sequence[Path], tiles: Sequence[Tile]) -> Iterator[str]:
    """Yield what a user should know of files that were changed otherwise than by normalising, or passed over."""
    if others:
        yield f"noted: {passed_over(others)}"
    by_fault: dict[str, dict[str, str]] = defaultdict(dict)
    for fault, name, detail in remarks:
        by_fault[fault][name] = detail
    for fault, details in sorted(by_fault.items()):
        first = min(details)
        yield f"noted: {fault}: {len(details)} images ({some(details)}); {first}: {details[first]}"
    jpeg = sum(tile.target.suffix.lower() in JPEG_SUFFIXES for tile in tiles)
    if jpeg:
        yield f"noted: {jpeg} JPEG files become JPEG again (quality {JPEG_QUALITY}, 4:4:4), which loses a little"


def _told(faults: dict[str, str], count: int) -> str:
    lines = "".join(f"\n  {name}: {fault}" for name, fault in sorted(faults.items()))
    return f"{len(faults)} of {count} images could not be read or written:{lines}" if faults else ""


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "a file" if path.exists() else "nothing"
