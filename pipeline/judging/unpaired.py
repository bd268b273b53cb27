"""Judging without targets: how near the looks of the test strata come to that of the reference strata."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from pipeline.judging.methods import TIMED, Segmenter, head_of, made_by_all, methods_of, timing_of
from pipeline.judging.subject import LARGEST_FIT, Judged, Subject, few
from pipeline.metrics.normalisers import (
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
from pipeline.metrics.stain import structure
from pipeline.records.case import Case
from pipeline.records.rasters import read_image
from pipeline.stains.optical_density import tissue_mask, to_density

LARGEST_SAMPLE = 200
"""Images of the reference that unpaired ones are compared with, and of those; of more, so many evenly spaced ones."""


def judge_laboratories(subject: Subject) -> Judged:
    """Measure how much of the distance between the looks of tissue every method removes, and what structure it keeps.

    Raises ValueError where either side shows no stained tissue.
    """
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

    methods = methods_of(subject, few(known, LARGEST_FIT), read, read)
    segmenter = Segmenter.of(subject)
    sampled_known, sampled = few(known, LARGEST_SAMPLE), {case.case_id for case in few(foreign, LARGEST_SAMPLE)}
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
        made, labels = made_by_all(subject, methods, case, image)
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
    head = head_of(
        subject, methods, content, unscored=len(subject.parts["unlabelled"]), left_out=left_out, reference=described
    )
    return Judged(table, head, timing_of(methods, [(case, read(case)) for case in few(foreign, TIMED)]))


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
