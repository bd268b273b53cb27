"""Predict: a probability map (or the made image, or a class) for every test and unlabelled case, or of any --images.

Reads:  data/train/<run>/ (settings, model, weights), images of the data set, split.csv
Writes: data/predict/<run>/<case_id>.tif: one 16-bit plane a channel, 65535 = certain; for a run that makes images
        <case_id>.png; for a classification classes.csv: case_id and p_<class> of each class
"""

from __future__ import annotations

import csv
import io
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import __version__
from pipeline.config import ComputeSettings, Config, PredictSettings, load_config
from pipeline.records.case import Case, read_cases
from pipeline.records.files import write_bytes, write_text
from pipeline.records.findings import some
from pipeline.records.manifest import short_name
from pipeline.records.objects import FILE as OBJECTS
from pipeline.records.objects import write_objects
from pipeline.records.paths import Paths
from pipeline.records.split import read_parts

if TYPE_CHECKING:
    from pipeline.case_maps import CaseMaps
    from pipeline.inference import AnyPredictor, Ensemble, Predictor
    from pipeline.pairs import Pairs
    from pipeline.records.images import Readings
    from pipeline.records.slides import View
    from pipeline.trained import TrainedRun


def inputs(config: Config, paths: Paths) -> list[Path]:
    """Return what decides staleness: the run, the images, the split."""
    return [paths.train / "stage.json", paths.ingest / "stage.json", paths.split / "stage.json", *paths.normalised]


def run(config: Config, paths: Paths) -> list[str]:
    """Predict what has no map yet."""
    from tqdm import tqdm

    from pipeline.fan_out import in_order
    from pipeline.inference import ClassPredictor
    from pipeline.records.rasters import read_image
    from pipeline.trained import open_run

    trained = open_run(paths.train)
    parts = read_parts(paths)
    cases = parts["test"] + parts["unlabelled"]
    counts = f"{len(parts['test'])} test and {len(parts['unlabelled'])} unlabelled images"
    if trained.outputs.is_class:
        if config.compute.scheduler:
            print("noted: compute.scheduler is for maps; classes are predicted in this process")
        predict = trained.predictor(config.predict, trained.compute_here(config.compute))
        assert isinstance(predict, ClassPredictor)
        bar = tqdm(cases, desc="predict", unit="image", disable=None)
        rows = predict.classify(read_image(paths.image(case.image)) for case in bar)
        _write_classes(paths.classes, zip((case.case_id for case in cases), rows, strict=True), trained)
        return [f"{counts}, the probabilities of their classes in {paths.classes}"]
    waiting = [case for case in cases if not _map_of(case, paths, trained).exists()]
    # Device, numbers and threads are taken here, once: each worker's own choice would give bytes of its own.
    compute = trained.compute_here(config.compute)
    settings = config.model_copy(update={"compute": compute}).model_dump_json()
    # A worker outlives this command: what it holds open is of this one call.
    call, root = uuid.uuid4().hex, str(paths.root.absolute())
    # The planes of a volume go together: a network of volumes predicts all of them at once.
    together: dict[str, list[Case]] = {}
    for case in waiting:
        together.setdefault(case.source if trained.takes_volumes else case.case_id, []).append(case)
    work = [(settings, root, call, cases) for cases in together.values()]
    made = in_order(_predict_cases, work, config.compute.scheduler, paths.root, name=lambda task: task[-1][0].case_id)
    with tqdm(desc="predict", unit="image", total=len(waiting), disable=None) as bar:
        for count in made:
            bar.update(count)
    _opened.cache_clear()
    return [f"{counts}, one {'image' if trained.outputs.is_image else 'map'} each in {paths.predict}"]


def _map_of(case: Case, paths: Paths, trained: TrainedRun) -> Path:
    return paths.predict / f"{case.case_id}{'.png' if trained.outputs.is_image else '.tif'}"


@lru_cache(maxsize=1)
def _opened(settings: str, root: str, call: str) -> tuple[Paths, TrainedRun, CaseMaps, Pairs]:
    """What a process needs for case after case; settings: the config as JSON, root: of the project.

    call: what the stage's call is told from others by; a run may be trained anew under the same settings.
    """
    from pipeline.case_maps import CaseMaps
    from pipeline.pairs import Pairs
    from pipeline.trained import open_run

    config = Config.model_validate_json(settings)
    paths = Paths.of(config, Path(root))
    trained = open_run(paths.train)
    predict = trained.predictor(config.predict, trained.compute_here(config.compute))
    return paths, trained, CaseMaps(predict, paths, read_cases(paths.cases)), Pairs(trained.config, paths)


def _predict_cases(task: tuple[str, str, str, Sequence[Case]]) -> int:
    """Write the maps, or the made images, of cases; return how many. task: what _opened takes, and the cases."""
    from pipeline.outputs import to_pixels
    from pipeline.records.rasters import write_png, write_probabilities

    settings, root, call, cases = task
    paths, trained, maps, pairs = _opened(settings, root, call)
    for case in cases:
        file = _map_of(case, paths, trained)
        if trained.outputs.is_image:
            write_png(file, to_pixels(maps.predict(pairs.given(case)[0])))
        else:
            write_probabilities(file, maps(case))
    return len(cases)


def _write_classes(file: Path, rows: Iterable[tuple[str, np.ndarray]], trained: TrainedRun) -> None:
    """Write case_id and p_<class> of images: names, each with its probabilities (classes,)."""
    from pipeline.metrics.classification import DIGITS, PROBABILITY

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["case_id", *(PROBABILITY + name for name in trained.outputs.channels)])
    writer.writerows([name, *(f"{value:.{DIGITS}f}" for value in values)] for name, values in rows)
    write_text(file, stream.getvalue())


def predict_images(run: str, images: Path, out: Path, *, overlay: bool = False, overrides: Sequence[str] = ()) -> None:
    """Write <stem>.png (16-bit object ids, class ids, or the made image) for images of a folder, with a trained run.

    A classification writes classes.csv instead: the stem as case_id, and p_<class> of each class. Where objects have
    classes, objects.csv tells them: the stem as case_id, object, class and its probability.
    run: a name below data/train/, or the run's folder; overlay: also <stem>_overlay.png; overrides: settings of predict
    and compute. Every image that cannot be read is named at the end, after all others were written.
    Raises ValueError for unreadable images, two images of one stem, a folder without images, or of volumes too, and
    before anything is written where a result would replace what is read.
    """
    from pipeline.instances import TooManyObjects, label_raster, object_classes
    from pipeline.outputs import to_pixels
    from pipeline.records.findings import refuse_unusable
    from pipeline.records.images import Readings
    from pipeline.records.out_folder import check_results
    from pipeline.records.rasters import write_png
    from pipeline.reporting.overlays import draw_outlines
    from pipeline.trained import named_run

    trained = named_run(run)
    settings = _settings_of(trained, overrides)
    thresholds = None if trained.outputs.is_image or trained.outputs.is_class else trained.thresholds()
    if overlay and thresholds is None:
        raise ValueError(f"--overlay shows masks, and {trained.folder} makes none; leave it out")
    volumes = _volumes_of(images)
    if trained.takes_volumes and not volumes:
        raise ValueError(
            f"{images}: expected NIfTI volumes for the run in {trained.folder}, trained with augment.planes="
            f"{trained.config.augment.planes}, found images"
        )
    if volumes and overlay:
        raise ValueError(
            f"--overlay draws on images, found volumes in {images}; leave it out, and open the masks beside them"
        )
    if volumes:
        check_results(images, out, {file: [_name_of_volume(file)] for file in volumes})
        _predict_volumes(volumes, trained.predictor(*settings), trained, out)
        return
    if load_config(None, [*overrides]).compute.scheduler:
        print("noted: compute.scheduler is for --slides and stage predict; --images are predicted in this process")
    readings = Readings(images, "predict", trained.config.ingest.depth)
    endings = [""] if trained.outputs.is_class else [".png", *(["_overlay.png"] if overlay else [])]
    check_results(images, out, {file: [file.stem + ending for ending in endings] for file in readings.files})
    predict = trained.predictor(*settings)
    classified: list[tuple[str, np.ndarray]] = []
    objects: list[tuple[str, int, str, float]] = []
    restained = _restaining(trained, readings)
    for file, image in readings:
        made = predict(restained(file, image))
        if trained.outputs.is_class:
            classified.append((file.stem, made))
            continue
        try:
            raster = to_pixels(made) if thresholds is None else label_raster(made, trained.outputs, thresholds)
        except TooManyObjects as error:
            readings.faults.append(f"{file}: {error}")
            continue
        write_png(out / f"{file.stem}.png", raster)
        told = object_classes(raster, made, trained.outputs)
        objects += ((file.stem, number, *one) for number, one in enumerate(told, start=1))
        if overlay:
            write_png(out / f"{file.stem}_overlay.png", draw_outlines(image, raster))
    if trained.outputs.is_class:
        _write_classes(out / "classes.csv", classified, trained)
    if trained.outputs.object_classes:
        write_objects(out / OBJECTS, objects)
    for remark in readings.remarks:
        print(f"noted: {remark}")
    files, faults = readings.files, readings.faults
    print(f"Written: {len(files) - len(faults)} of {len(files)} images to {out}")
    refuse_unusable(faults, len(files), "images could not be predicted")


def _restaining(trained: TrainedRun, readings: Readings) -> Callable[[Path, np.ndarray], np.ndarray]:
    """Bring images to the run's stain by the statistics of its settings; the images of a folder are a group.

    An image in whose name normalise.slide_pattern finds no slide belongs to the slide of its folder, which is noted.
    """
    from pipeline.stains import load as load_normaliser
    from pipeline.stains.tiles import Batch, Tile, slide_of
    from pipeline.trained import STAIN

    if not (trained.folder / STAIN).exists():
        return lambda file, image: image
    settings = trained.config.normalise
    pools = {file: str(file.parent) for file in readings.files}
    if settings.statistics == "slide":
        slides = {file: slide_of(file.stem, settings) for file in readings.files}
        nowhere = [file.name for file, slide in slides.items() if slide is None]
        if nowhere:
            readings.remarks.append(
                f"{len(nowhere)} name(s) without a slide by the run's normalise.slide_pattern "
                f"({settings.slide_pattern}): {some(nowhere)}; their folder is taken for one"
            )
        pools = {file: slide or pools[file] for file, slide in slides.items()}
    tiles = [Tile(file.name, file, file, pool) for file, pool in pools.items()]
    batch = Batch(load_normaliser(trained.folder / STAIN), tiles, readings.read, settings.statistics)
    return lambda file, image: batch.apply(image, pools[file]).image


def _volumes_of(images: Path) -> list[Path]:
    """The NIfTI files that a path means: itself, or those of a folder; ValueError where that holds images too."""
    from pipeline.records.decode import IMAGE_SUFFIXES
    from pipeline.records.volumes import SUFFIXES

    inside = sorted(images.iterdir()) if images.is_dir() else [images]
    files = [file for file in inside if file.is_file() and not file.name.startswith(".")]
    volumes = [file for file in files if file.name.lower().endswith(SUFFIXES)]
    others = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if volumes and others:
        raise ValueError(
            f"{images}: expected images or NIfTI volumes, found {len(volumes)} volume(s) and {len(others)} image(s), "
            f"such as {volumes[0].name} and {others[0].name}; give each a folder of their own"
        )
    return volumes


def _predict_volumes(files: Sequence[Path], predict: AnyPredictor, trained: TrainedRun, out: Path) -> None:
    """Write <stem>.nii.gz of volumes: masks of their axial planes, in the space of the file."""
    from tqdm import tqdm

    from pipeline.instances import TooManyObjects, label_raster
    from pipeline.records.findings import FaultyFile, refuse_unusable
    from pipeline.records.volumes import encode_like, grey_levels, read_volume

    if trained.outputs.is_image or trained.outputs.is_class:
        raise ValueError(f"{trained.folder}: expected a run that makes masks, found task {trained.config.train.task}")
    thresholds, faults = trained.thresholds(), []
    for file in files:
        try:
            volume = read_volume(file.read_bytes())
            levels = grey_levels(volume.values, trained.config.ingest.window)
        except FaultyFile as fault:
            faults.append(f"{file}: {fault}")
            continue
        planes = np.repeat(levels[..., None], 3, axis=3)
        maps = predict(planes).swapaxes(0, 1) if trained.takes_volumes else map(predict, planes)
        bar = tqdm(maps, desc=file.name, unit="plane", total=len(planes), disable=None)
        try:
            masks = [label_raster(np.ascontiguousarray(of_plane), trained.outputs, thresholds) for of_plane in bar]
        except TooManyObjects as error:
            faults.append(f"{file}: {error}")
            continue
        write_bytes(out / _name_of_volume(file), encode_like(volume, np.stack(masks)))
    print(f"Written: {len(files) - len(faults)} of {len(files)} volumes to {out}")
    refuse_unusable(faults, len(files), "volumes could not be predicted")


def _name_of_volume(file: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", file.name, flags=re.IGNORECASE) + ".nii.gz"


def predict_slides(
    run: str, slides: Path, out: Path, *, mpp: float | None = None, overrides: Sequence[str] = ()
) -> None:  # fmt: skip
    """Segment slides with a trained run: <stem>.tif (object or class ids), .geojson, _overview.png and .html of each.

    run: a name below data/train/, or the run's folder; slides: a file, or a folder of which every file is taken that
    has a suffix of slides or images; mpp: microns per pixel that they are looked at with, by default their finest level
    as it is; overrides: settings of predict and compute. A slide is read and written block by block; a killed call
    carries on, slide by slide and block by block, where run, settings and file are the same.
    Raises ValueError for a run that makes no masks, before anything is written where a result would replace what is
    read, and, after all others were written, with every slide that failed.
    """
    from pipeline.fan_out import in_order
    from pipeline.records.findings import refuse_unusable
    from pipeline.records.images import passed_over
    from pipeline.records.out_folder import check_results
    from pipeline.slide_prediction import results_of
    from pipeline.trained import named_run

    trained = named_run(run)
    if trained.outputs.is_image or trained.outputs.is_class:
        raise ValueError(f"{trained.folder}: expected a run that makes masks, found task {trained.config.train.task}")
    if trained.takes_volumes:
        raise ValueError(
            f"{trained.folder}: expected a run that looks at images, found one of NIfTI volumes; train one with "
            "augment.planes=1"
        )
    if trained.outputs.cell is not None:
        raise ValueError(
            f"{trained.folder}: expected a run that maps pixels, found one of squares of {trained.outputs.cell} "
            "pixels, which slides are not cut into; cut them into images, and take --images"
        )
    files, others = _slides_in(slides)
    check_results(slides, out, {file: results_of(file.stem) for file in files})
    if others:
        print(f"noted: {passed_over(others)}")
    if trained.outputs.object_classes:
        print("noted: what is written of slides does not tell the classes of objects; predict --images does")
    given = load_config(None, [*overrides]).compute
    compute = trained.compute_here(given)
    # Device, numbers and threads are taken here, once: each worker's own choice would give bytes of its own.
    taken = (f"compute.{key}={getattr(compute, key)}" for key in ("device", "precision", "channels_last", "threads"))
    settings = (*overrides, *taken)
    run_folder, here = str(trained.folder.absolute()), str(out.absolute())
    out.mkdir(parents=True, exist_ok=True)
    work = [(run_folder, str(file.absolute()), here, mpp, settings) for file in files]
    faults = []
    for told, fault in in_order(_predict_slide, work, given.scheduler, out, name=lambda task: task[1]):
        if fault:
            faults.append(fault)
        else:
            print(told, flush=True)
    _for_slides.cache_clear()
    print(f"Written: {len(files) - len(faults)} of {len(files)} slides to {out}")
    refuse_unusable(faults, len(files), "slides failed")


def _slides_in(where: Path) -> tuple[list[Path], list[Path]]:
    """The slides that a path means, itself or those of a folder, and what else lies there but for hidden files."""
    from pipeline.records.decode import IMAGE_SUFFIXES
    from pipeline.records.slides import PLAIN, SCANNED

    if not where.is_dir():
        return [where], []
    suffixes = {*SCANNED, *PLAIN, *IMAGE_SUFFIXES}
    inside = [file for file in sorted(where.iterdir()) if file.is_file() and not file.name.startswith(".")]
    files = [file for file in inside if file.suffix.lower() in suffixes]
    if not files:
        raise ValueError(f"{where}: expected slides ({', '.join(sorted(suffixes))}), found none")
    return files, [file for file in inside if file.suffix.lower() not in suffixes]


def _predict_slide(task: tuple[str, str, str, float | None, tuple[str, ...]]) -> tuple[str, str]:
    """Segment one slide; return what became of it, and why it failed where it did.

    task: folder of the run, slide, folder that is written to, microns per pixel, overrides.
    """
    from pipeline.device import give_freed_memory_back
    from pipeline.records.findings import FaultyFile
    from pipeline.records.slides import View, open_slide
    from pipeline.slide_prediction import finished, predict_slide, remove_maps
    from pipeline.stains import load as load_normaliser
    from pipeline.trained import STAIN, open_run

    give_freed_memory_back()
    folder, slide_file, here, mpp, overrides = task
    trained, file, out = open_run(Path(folder)), Path(slide_file), Path(here)
    normaliser = load_normaliser(trained.folder / STAIN) if (trained.folder / STAIN).exists() else None
    try:
        with open_slide(file) as slide:
            view = View.at(slide, mpp)
            settings, compute = _settings_of(trained, overrides)
            made_from = _made_from(trained, settings, compute, view)
            done = finished(out, file.stem, made_from)
            if done is None:
                predict = _for_slides(folder, trained.digest, overrides)
                thresholds = trained.thresholds()
                done = predict_slide(
                    view, predict, trained.outputs, thresholds, out, file.stem, normaliser, made_from
                )  # fmt: skip
            else:
                remove_maps(out, file.stem)
    except (FaultyFile, ValueError, OSError) as error:
        return "", f"{file}: {error}"
    counted = "" if done.objects is None else f", {done.objects:,} objects"
    cut = f"; {done.cut} very large piece(s) of foreground were cut" if done.cut else ""
    return (
        f"{file.name}: {view.height} x {view.width} pixels{counted}; {done.tissue} of {done.blocks} blocks hold "
        f"tissue{cut}"
    ), ""


@lru_cache(maxsize=1)
def _for_slides(folder: str, digest: str, overrides: tuple[str, ...]) -> Predictor | Ensemble:
    """Return what one slide after another is seen by: to make it takes seconds, and memory that PyTorch never frees.

    folder: of the run; digest: by which a worker that outlives a command tells another run in the same folder.
    """
    from pipeline.inference import VolumePredictor
    from pipeline.trained import open_run

    trained = open_run(Path(folder))
    if trained.digest != digest:
        raise ValueError(
            f"{folder}: expected the run to stay as it is while slides are predicted, found it changed; "
            "give the same command again"
        )
    predict = trained.predictor(*_settings_of(trained, overrides))
    assert not isinstance(predict, VolumePredictor), "refused before any slide is opened"
    return predict


def _made_from(trained: TrainedRun, settings: PredictSettings, compute: ComputeSettings, view: View) -> str:
    """Return in one word all that the result of a slide depends on."""
    status = view.slide.file.stat()
    made_from = {
        "stainseg": __version__, "run": trained.digest, "predict": settings.model_dump(mode="json"),
        "compute": compute.model_dump(mode="json", exclude={"workers", "scheduler"}), "scale": view.scale,
        "slide": [status.st_size, status.st_mtime_ns],
    }  # fmt: skip
    return short_name(made_from)


def _settings_of(trained: TrainedRun, overrides: Sequence[str]) -> tuple[PredictSettings, ComputeSettings]:
    """Return the run's own settings but for those that are given."""
    given = load_config(None, [*overrides])
    names = [override.partition("=")[0].split(".") for override in overrides]
    own = {name[1]: getattr(given.predict, name[1]) for name in names if name[0] == "predict" and len(name) > 1}
    return trained.config.predict.model_copy(update=own), trained.compute_here(given.compute)
