"""Judging a run that makes images: it, its input and other methods side by side on the same test cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from pipeline.config import Config
from pipeline.metrics.normalisers import (
    INPUT,
    Distances,
    best_classical,
    drawn_pixels,
    long_table,
    mean_distances,
    pixels_of_each,
    split_half,
    summarise_distances,
    summarise_methods,
)
from pipeline.metrics.stain import compare, structure
from pipeline.outputs import to_pixels
from pipeline.pairs import Pairs, learnable
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, write_png
from pipeline.stains import METHODS
from pipeline.stains.learned import Learned
from pipeline.stains.normaliser import StatisticalNormaliser
from pipeline.stains.optical_density import tissue_mask, to_density
from pipeline.stains.tiles import SharedStatistics, Tile, evenly, slides_of
from pipeline.trained import TrainedRun, open_run

Kind = Literal["paired", "restored", "unpaired"]
Parts = Mapping[str, Sequence[Case]]
Apply = Callable[[Case, np.ndarray], tuple[np.ndarray, str]]
"""Gives the image that a method makes of a case's, (height, width, 3) uint8 RGB, and its status."""

LARGEST_FIT = 500
"""Images that a classical reference is sought among; of more, so many evenly spaced ones."""
LARGEST_SAMPLE = 200
"""Images of the reference that unpaired ones are compared with, and of those; of more, so many evenly spaced ones."""
COMPARED_AT_ONCE = 4
"""Threads that compare images with their target: the metrics leave Python's lock alone for most of their time."""
TIMED, TIMED_PIXELS = 8, 4_000_000
"""Images and pixels that the speed of every method is measured on, at most."""


@dataclass(frozen=True)
class Method:
    """One way to make images. kind: input, classical or run; reference_case: what a classical one brings others to."""

    name: str
    kind: str
    apply: Apply
    reference_case: str | None = None


@dataclass(frozen=True)
class Judged:
    """What per_case.csv (a data frame), metrics.json and timing.json hold, and what is worth telling of it."""

    table: Any
    metrics: dict[str, Any]
    timing: dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is judged: a run, on the test part, beside other runs; groups: by case id."""

    config: Config
    paths: Paths
    trained: TrainedRun
    parts: Parts
    groups: Mapping[str, str]
    others: Mapping[str, TrainedRun]

    @property
    def reference_strata(self) -> set[str | None]:
        """Strata whose stain is the wanted one: those named in training, else all that it saw."""
        named = self.trained.config.train.reconstruction.reference_strata
        return set(named) if named else {case.stratum for part in ("train", "validation") for case in self.parts[part]}

    @property
    def kind(self) -> Kind:
        """Whether there are real pairs, spoilt images to restore, or only looks to bring nearer to each other."""
        test = self.parts["test"]
        if any(case.label_kind == "image" for case in test):
            return "paired"
        foreign = any(case.stratum not in self.reference_strata for case in test)
        return "unpaired" if self.trained.config.train.corruption.restain and foreign else "restored"

    @property
    def changes_stain(self) -> bool:
        """Whether stain is what the run changes, and nothing that a classical normaliser knows nothing of."""
        spoilt = self.trained.config.train.corruption
        other = spoilt.holes or spoilt.grey or spoilt.watermark
        return not other if self.kind == "paired" else bool(spoilt.restain and not other and not spoilt.noise)

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the methods beside the run and its input."""
        named = self.config.evaluate.beside
        return named if named is not None else tuple(METHODS) if self.changes_stain else ()


def other_runs(config: Config, paths: Paths) -> dict[str, TrainedRun]:
    """Open the runs that evaluate.beside names. Raises ValueError with every one that is none, or makes no images."""
    found, problems = {}, []
    for name in config.evaluate.beside or ():
        if name in METHODS:
            continue
        try:
            found[name] = open_run(paths.root / "data" / "train" / name)
        except ValueError as error:
            problems.append(str(error))
            continue
        if not found[name].outputs.is_image:
            problems.append(f"{found[name].folder} was trained for {found[name].config.train.task}, makes no images")
    if problems:
        raise ValueError(
            f"evaluate.beside: expected classical normalisers ({', '.join(METHODS)}) and runs that make images:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    return found


def segmenter_run(config: Config, paths: Paths) -> TrainedRun | None:
    """Open the run that evaluate.segmenter names, None where none is. Raises ValueError where it makes no masks."""
    name = config.evaluate.segmenter
    if name is None:
        return None
    try:
        trained = open_run(paths.run_folder(name))
        if trained.outputs.is_image or trained.outputs.is_class:
            raise ValueError(f"{trained.folder} was trained for {trained.config.train.task}, makes no masks")
        trained.thresholds()
    except ValueError as error:
        raise ValueError(f"evaluate.segmenter: expected a trained segmentation, found {name!r}: {error}") from error
    return trained


def judge(subject: Subject) -> Judged:
    """Judge a run and what stands beside it on the test part; write what each makes to reports/<run>/normalised/.

    With targets (real pairs, or the image before it was spoilt) images are compared with them; without, the test strata
    with the reference strata. Raises ValueError where names clash, or there is nothing to judge.
    """
    _check_names(subject)
    return _judge_laboratories(subject) if subject.kind == "unpaired" else _judge_pairs(subject)


# --- With targets ---------------------------------------------------------------------------------------------------


def _judge_pairs(subject: Subject) -> Judged:
    from tqdm import tqdm

    pairs = Pairs(subject.trained.config, subject.paths)
    paired = subject.kind == "paired"
    cases = [case for case in subject.parts["test"] if not paired or case.label_kind == "image"]
    if not cases:
        raise ValueError(f"{subject.paths.split_table}: expected test cases, found none; change split.test_share")
    training = _few(learnable(subject.parts["train"], subject.trained.config), LARGEST_FIT)
    methods = _methods(subject, training, lambda case: pairs.read(case)[1], lambda case: pairs.given(case)[0])
    segmenter = _Segmenter.of(subject)
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(COMPARED_AT_ONCE) as threads:
        for case in tqdm(cases, desc="evaluate", unit="image", disable=None):
            given, target = pairs.given(case)
            made, labels = _made_by_all(subject, methods, case, given)
            scores = threads.map(lambda image, target=target: compare(image, target), made)
            checks = segmenter(given, made) if segmenter else [{}] * len(made)
            rows += [label | score | check for label, score, check in zip(labels, scores, checks, strict=True)]
    kinds = {method.name: method.kind for method in methods}
    table = long_table(rows, [*kinds])
    settings = subject.config.evaluate
    content = summarise_methods(table, subject.config.run, kinds, "test", settings.resamples, subject.config.seed)
    unscored = len(subject.parts["test"]) - len(cases) + len(subject.parts["unlabelled"])
    head = _head(subject, methods, content, unscored=unscored, left_out=0, reference=None)
    return Judged(table, head, _timing(methods, [(case, pairs.given(case)[0]) for case in _few(cases, TIMED)]))


# --- Without targets ------------------------------------------------------------------------------------------------


def _judge_laboratories(subject: Subject) -> Judged:
    from tqdm import tqdm

    wanted = subject.reference_strata
    foreign = [case for case in subject.parts["test"] if case.stratum not in wanted]
    known = [case for part in ("train", "validation") for case in subject.parts[part] if case.stratum in wanted]
    if not known:
        raise ValueError(
            f"{subject.paths.split_table}: expected cases of the reference strata "
            f"({', '.join(sorted(map(str, wanted)))}) in training, found none; keep them out of split.test_strata"
        )
    side = subject.config.evaluate.side or min(min(case.height, case.width) for case in [*foreign, *known])

    def read(case: Case) -> np.ndarray:
        image = read_image(subject.paths.image(case.image))
        return brought_to_one(image, side, subject.config.evaluate.quality)

    methods = _methods(subject, _few(known, LARGEST_FIT), read, read)
    segmenter = _Segmenter.of(subject)
    sampled_known, sampled = _few(known, LARGEST_SAMPLE), {case.case_id for case in _few(foreign, LARGEST_SAMPLE)}
    count = pixels_of_each(len(sampled_known) + len(sampled))
    reference, kept = _tissue_of_all(sampled_known, read, count, subject.config.seed)
    rows: list[dict[str, Any]] = []
    pixels: dict[str, list[np.ndarray]] = {method.name: [] for method in methods}
    compared: list[Case] = []
    for number, case in enumerate(tqdm(foreign, desc="evaluate", unit="image", disable=None)):
        image = read(case)
        tissue = tissue_mask(to_density(image)).reshape(-1)
        shown = case.case_id in sampled and bool(tissue.any())
        if shown:
            compared.append(case)
        made, labels = _made_by_all(subject, methods, case, image)
        checks = segmenter(image, made) if segmenter else [{}] * len(made)
        for method, label, after, check in zip(methods, labels, made, checks, strict=True):
            rows.append(label | {"structure": structure(image, after)} | check)
            if shown:
                # The same pixels before and after, so that a method cannot hide tissue as glass.
                density = to_density(after).reshape(-1, 3)[tissue]
                pixels[method.name].append(drawn_pixels(density, count, subject.config.seed + number))
    if not compared or not len(reference):
        raise ValueError(
            f"evaluate: expected stained tissue in the test strata and the reference strata, found it in "
            f"{len(compared)} and {len(reference)} images; choose other strata"
        )
    own = mean_distances(reference, reference)
    distances = {name: Distances.of(np.stack(found), reference, own) for name, found in pixels.items()}
    each = {(name, case.case_id): value for name, between in distances.items()
            for case, value in zip(compared, between.of_each(), strict=True)}  # fmt: skip
    for row in rows:
        row["energy_distance"] = each.get((row["method"], row["case_id"]))
    kinds = {method.name: method.kind for method in methods}
    table = long_table(rows, [*kinds])
    half = split_half(own, [subject.groups[case.case_id] for case in kept], subject.config.seed)
    found = summarise_distances(
        distances, [case.stratum or "unknown" for case in compared],
        [subject.groups[case.case_id] for case in compared], half,
    )  # fmt: skip
    content = _with_distances(
        summarise_methods(
            table, subject.config.run, kinds, "test", subject.config.evaluate.resamples, subject.config.seed
        ),
        found,
        subject.config.run,
    )
    described = {
        "strata": sorted(map(str, wanted)),
        "cases": len(kept),
        "split_half": round(half, 6),
        "side": side,
        "quality": subject.config.evaluate.quality,
        "pixels_of_each": count,
        "compared": len(compared),
    }
    left_out = len(subject.parts["test"]) - len(foreign)
    head = _head(
        subject, methods, content, unscored=len(subject.parts["unlabelled"]), left_out=left_out, reference=described
    )
    return Judged(table, head, _timing(methods, [(case, read(case)) for case in _few(foreign, TIMED)]))


def brought_to_one(image: np.ndarray, side: int, quality: int) -> np.ndarray:
    """Bring an image to a shorter side by averaging areas, and through JPEG (4:2:0) once; a smaller one is enlarged.

    image: (height, width, 3) uint8 RGB; quality: of the JPEG, 0 to 100.
    """
    height, width = image.shape[:2]
    scale = side / min(height, width)
    if scale != 1.0:
        size = max(side, round(width * scale)), max(side, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _tissue_of_all(
    cases: Sequence[Case], read: Callable[[Case], np.ndarray], count: int, seed: int
) -> tuple[np.ndarray, list[Case]]:
    """(images, count, 3) densities of tissue pixels, and the cases that have any."""
    drawn, kept = [], []
    for number, case in enumerate(cases):
        density = to_density(read(case))
        pixels = drawn_pixels(density[tissue_mask(density)], count, seed + number)
        if len(pixels):
            drawn.append(pixels)
            kept.append(case)
    return np.array(drawn), kept


def _with_distances(content: dict[str, Any], found: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Add the figures of distributions to those that are means over cases, and rank by the excess removed."""
    part = content["part"]
    for name, entry in content["methods"].items():
        entry[part] = found[name]["all"] | entry[part]
        for stratum, scores in entry["by_stratum"].items():
            entry["by_stratum"][stratum] = found[name].get(stratum, {}) | scores
    content |= {part: content["methods"][run][part], "by_stratum": content["methods"][run]["by_stratum"]}
    best = best_classical(content, "excess_removed")
    return content | {"ranked_by": "excess_removed", "best_classical": best, "beyond_classical": {}}


# --- Methods --------------------------------------------------------------------------------------------------------


def _check_names(subject: Subject) -> None:
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


def _methods(
    subject: Subject, reference: Sequence[Case], wanted: Callable[[Case], np.ndarray],
    given: Callable[[Case], np.ndarray],
) -> list[Method]:  # fmt: skip
    """Return the input, what stands beside, and the run itself, in this order; classical ones fitted to reference.

    wanted, given: read the image of a reference case, and of a test case.
    """
    methods = [Method(INPUT, "input", lambda _, image: (image, "ok"))]
    for name in subject.beside:
        if name in METHODS:
            methods.append(_classical(subject, name, reference, wanted, given))
        else:
            methods.append(Method(name, "run", _application(subject, subject.others[name])))
    return [*methods, Method(subject.config.run, "run", _application(subject, subject.trained))]


def _classical(
    subject: Subject, name: str, reference: Sequence[Case], wanted: Callable[[Case], np.ndarray],
    given: Callable[[Case], np.ndarray],
) -> Method:  # fmt: skip
    settings = subject.config.normalise
    normaliser: StatisticalNormaliser = METHODS[name](settings.maximum_gain, settings.white_point)
    try:
        normaliser.fit(wanted(case) for case in reference)
    except ValueError as error:
        raise ValueError(f"evaluate.beside: {name} cannot be fitted to the training part's targets: {error}") from error
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


def _made_by_all(
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


class _Segmenter:
    """A frozen segmenter: its masks before and after a change of stain."""

    def __init__(self, subject: Subject, trained: TrainedRun) -> None:
        from pipeline.stains import load
        from pipeline.trained import STAIN

        self.trained, self.thresholds = trained, trained.thresholds()
        self.predict = trained.predictor(trained.config.predict, trained.compute_here(subject.config.compute))
        stain = trained.folder / STAIN
        self.normaliser = load(stain) if stain.exists() else None

    @classmethod
    def of(cls, subject: Subject) -> _Segmenter | None:
        """Load evaluate.segmenter; None where none is named."""
        trained = segmenter_run(subject.config, subject.paths)
        return None if trained is None else cls(subject, trained)

    def _mask(self, image: np.ndarray) -> np.ndarray:
        from pipeline.instances import label_raster

        seen = self.normaliser.transform(image)[0] if self.normaliser else image
        return label_raster(self.predict(seen), self.trained.outputs, self.thresholds)

    def __call__(self, before: np.ndarray, after: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Return mask_dice of each image after; with objects also objects_before, objects_after, objects_change."""
        from pipeline.metrics.pixel import confusion

        rows = []
        first = self._mask(before)
        for image in after:
            second = self._mask(image)
            found = confusion((first > 0).astype(np.uint16), (second > 0).astype(np.uint16))
            row: dict[str, Any] = {"mask_dice": found.dice}
            if self.trained.outputs.has_objects:
                there, then = int(first.max()), int(second.max())
                change = (then - there) / there if there else None
                row |= {"objects_before": there, "objects_after": then, "objects_change": change}
            rows.append(row)
        return rows


# --- What it comes to -----------------------------------------------------------------------------------------------


def _head(
    subject: Subject, methods: Sequence[Method], content: dict[str, Any], *,
    unscored: int, left_out: int, reference: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    for method in methods:
        if method.reference_case is not None:
            content["methods"][method.name]["reference_case"] = method.reference_case
    config = subject.config
    head = {"run": config.run, "dataset": config.dataset, "kind": subject.kind}
    return head | content | {
        "unscored": unscored, "left_out": left_out, "segmenter": config.evaluate.segmenter, "reference": reference
    }  # fmt: skip


def _timing(methods: Sequence[Method], images: Sequence[tuple[Case, np.ndarray]]) -> dict[str, Any]:
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


def _few(cases: Sequence[Case], most: int) -> list[Case]:
    return [cases[index] for index in evenly(len(cases), most)]
