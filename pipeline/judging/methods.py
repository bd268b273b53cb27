"""Every method on the same images: the input, classical normalisers, the run and other runs; and a frozen segmenter."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.config import ComputeSettings, PredictSettings
from pipeline.judging.subject import Apply, Method, Subject, segmenter_run
from pipeline.metrics.normalisers import INPUT
from pipeline.outputs import to_pixels
from pipeline.records.case import Case
from pipeline.records.rasters import read_image, write_png
from pipeline.stains import METHODS
from pipeline.stains.learned import Learned
from pipeline.stains.normaliser import StatisticalNormaliser
from pipeline.stains.tiles import SharedStatistics, Tile, slides_of
from pipeline.trained import TrainedRun

TIMED, TIMED_PIXELS = 8, 4_000_000
"""Images and pixels that the speed of every method is measured on, at most."""


def check_names(subject: Subject) -> None:
    """Raise ValueError where two methods would have one name, or one folder below normalised/."""
    run, beside = subject.config.run, subject.beside
    if run in (INPUT, *METHODS):
        raise ValueError(f"run: expected a name that no method has ({', '.join([INPUT, *METHODS])}), found {run!r}")
    names = [INPUT, *beside, run]
    folders = [name.replace("/", "-") for name in names]
    twice = sorted({name for name, folder in zip(names, folders, strict=True) if folders.count(folder) > 1})
    if twice:
        raise ValueError(
            f"evaluate.beside: expected each method once, and neither {INPUT} nor the run itself, "
            f"found {', '.join(beside)}; leave out {', '.join(name for name in twice if name in beside)}"
        )


def methods_of(
    subject: Subject, reference: Sequence[Case], wanted: Callable[[Case], np.ndarray],
    given: Callable[[Case], np.ndarray],
) -> list[Method]:  # fmt: skip
    """Return the input, what stands beside, and the run itself, in this order; classical ones fitted to reference.

    wanted, given: read the image of a reference case, and of a test case. Classical ones that cannot be fitted are left
    out, and told, where nobody named them. Raises ValueError where evaluate.beside names one.
    """
    methods = [Method(INPUT, "input", lambda _, image: (image, "ok"))]
    for name in subject.beside:
        if name not in METHODS:
            methods.append(Method(name, "run", _application(subject, subject.others[name])))
            continue
        try:
            methods.append(classical(subject, name, reference, wanted, given))
        except ValueError as error:
            if subject.config.evaluate.beside is not None:
                raise ValueError(f"evaluate.beside: {error}") from error
            print(f"noted: {error}")
    return [*methods, Method(subject.config.run, "run", _application(subject, subject.trained))]


def classical(
    subject: Subject, name: str, reference: Sequence[Case], wanted: Callable[[Case], np.ndarray],
    given: Callable[[Case], np.ndarray],
) -> Method:  # fmt: skip
    """Return a classical normaliser, fitted to the reference cases; wanted, given: as of methods_of.

    Raises ValueError where none of them shows stained tissue.
    """
    settings = subject.config.normalise
    normaliser: StatisticalNormaliser = METHODS[name](settings.maximum_gain, settings.white_point)
    try:
        normaliser.fit(wanted(case) for case in reference)
    except ValueError as error:
        raise ValueError(f"method {name} cannot be fitted to the training part, leave it out: {error}") from error
    assert normaliser.reference_index_ is not None
    shared = _shared(subject, normaliser, given)

    def apply(case: Case, image: np.ndarray) -> tuple[np.ndarray, str]:
        made = normaliser.normalise(image, shared(case), prefer_pooled=settings.statistics != "image")
        return made.image, made.status

    return Method(name, "classical", apply, reference[normaliser.reference_index_].case_id)


def _shared(
    subject: Subject, normaliser: StatisticalNormaliser, given: Callable[[Case], np.ndarray]
) -> Callable[[Case], np.ndarray | None]:
    """Return what gives a test case the statistics of its slide or group, as normalise.statistics says."""
    settings, test = subject.config.normalise, subject.parts["test"]
    if settings.statistics == "image":
        return lambda _: None
    if settings.statistics == "slide":
        pools = slides_of([case.case_id for case in test], settings)
    else:
        pools = {case.case_id: subject.groups.get(case.case_id) or None for case in test}
    cases = {subject.paths.image(case.image): case for case in test}
    tiles = [Tile(case.case_id, file, file, pools[case.case_id]) for file, case in cases.items()]
    shared = SharedStatistics(normaliser, tiles, lambda file: given(cases[file]))
    return lambda case: shared.of(pools[case.case_id])


def _application(subject: Subject, trained: TrainedRun) -> Apply:
    """Return what applies a run: as a normaliser where there are no targets, else as stage predict does."""
    if subject.kind == "unpaired":
        normaliser = Learned(trained, subject.config.compute).fit(())
        return lambda _, image: normaliser.transform(image)
    predict = trained.predictor(trained.config.predict, trained.compute_here(subject.config.compute))
    return lambda _, image: (to_pixels(predict(image)), "ok")


def made_by_all(
    subject: Subject, methods: Sequence[Method], case: Case, given: np.ndarray
) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Return and write what every method makes of a case, and columns that say so; the run's is what predict wrote."""
    images, labels = [], []
    for method in methods:
        if method.name == subject.config.run and subject.kind != "unpaired":
            made, status = read_image(subject.paths.predict / f"{case.case_id}.png"), "ok"
        else:
            made, status = method.apply(case, given)
        write_png(subject.paths.made_image(method.name, case.case_id), made)
        images.append(made)
        labels.append(
            {
                "case_id": case.case_id,
                "group": subject.groups.get(case.case_id) or None,
                "stratum": case.stratum,
                "method": method.name,
                "status": status,
            }
        )
    return images, labels


class Segmenter:
    """A frozen segmenter: its masks before and after a change of stain.

    What the run was trained with is part of it: its own normaliser, its thresholds. settings: of predict, by default
    the run's own.
    """

    def __init__(self, trained: TrainedRun, compute: ComputeSettings, settings: PredictSettings | None = None) -> None:
        from pipeline.stains import load
        from pipeline.trained import STAIN

        self.trained, self.thresholds = trained, trained.thresholds()
        self.predict = trained.predictor(settings or trained.config.predict, trained.compute_here(compute))
        stain = trained.folder / STAIN
        self.normaliser = load(stain) if stain.exists() else None

    @classmethod
    def of(cls, subject: Subject) -> Segmenter | None:
        """Load evaluate.segmenter; None where none is named."""
        trained = segmenter_run(subject.config, subject.paths)
        return None if trained is None else cls(trained, subject.config.compute)

    def maps(self, image: np.ndarray) -> np.ndarray:
        """Return (channels, height, width) float32 probabilities for (height, width, 3) uint8 RGB."""
        return self.predict(self.normaliser.transform(image)[0] if self.normaliser else image)

    def mask(self, maps: np.ndarray) -> np.ndarray:
        """Return the (height, width) uint16 objects, or classes, of probabilities."""
        from pipeline.instances import label_raster

        return label_raster(maps, self.trained.outputs, self.thresholds)

    def __call__(self, before: np.ndarray, after: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Return mask_dice of each image after; with objects also objects_before, objects_after, objects_change."""
        from pipeline.metrics.pixel import confusion

        rows = []
        first = self.mask(self.maps(before))
        for image in after:
            second = self.mask(self.maps(image))
            found = confusion((first > 0).astype(np.uint16), (second > 0).astype(np.uint16))
            row: dict[str, Any] = {"mask_dice": found.dice}
            if self.trained.outputs.has_objects:
                there, then = int(first.max()), int(second.max())
                change = (then - there) / there if there else None
                row |= {"objects_before": there, "objects_after": then, "objects_change": change}
            rows.append(row)
        return rows


def head_of(
    subject: Subject, methods: Sequence[Method], content: dict[str, Any], *,
    unscored: int, left_out: int, reference: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Put what was judged before the figures of metrics.json: run, kind, references, what took no part."""
    for method in methods:
        if method.reference_case is not None:
            content["methods"][method.name]["reference_case"] = method.reference_case
    config = subject.config
    head = {"run": config.run, "dataset": config.dataset, "kind": subject.kind}
    return head | content | {
        "unscored": unscored, "left_out": left_out, "segmenter": config.evaluate.segmenter, "reference": reference
    }  # fmt: skip


def timing_of(methods: Sequence[Method], images: Sequence[tuple[Case, np.ndarray]]) -> dict[str, Any]:
    """Megapixels a second of every method, median over images; methods take turns, after one that is not counted."""
    total = 0
    speeds: dict[str, list[float]] = {method.name: [] for method in methods if method.name != INPUT}
    for number, (case, image) in enumerate([images[0], *images]):
        pixels = image.shape[0] * image.shape[1]
        total += pixels
        if number > 1 and total > TIMED_PIXELS:
            break
        for method in methods:
            if method.name == INPUT:
                continue
            started = time.perf_counter()
            method.apply(case, image)
            seconds = time.perf_counter() - started
            if number:
                speeds[method.name].append(pixels / 1e6 / seconds)
    return {
        "megapixels_per_second": {name: round(float(np.median(found)), 3) for name, found in speeds.items()},
        "images": len(next(iter(speeds.values()))),
        "note": "as each runs in this stage, image after image; under whatever else the machine was doing",
    }
