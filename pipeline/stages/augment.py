"""Augment: show what training will see, and write augmented copies where asked.

Reads:  data/ingest/<dataset>/ (images and labels of the training part), data/split/<dataset>/<name>/split.csv,
        data/normalise/<dataset>/<method>/images/ instead of the ingested images where normalise.method is set
Writes: data/augment/<dataset>/<recipe>/: contact_sheet.png; copies/images/ and, of masks, copies/labels/ where
        augment.copies is set (of a run that makes images, what it is given and what it should make of it)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

from pipeline.config import IMAGE_TASKS, Config
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.records.split import read_parts

SHEET = "contact_sheet.png"
OF_PLACES = ("scale", "elastic")
OF_COLOURS = ("stain_jitter", "colour", "tint", "invert", "grey", "blur", "noise", "dropout")
"""Settings of what moves pixels, and of what changes them."""
ROWS = 8
"""Cases on the contact sheet."""


def inputs(config: Config, paths: Paths) -> list[Path]:
    """Return what decides staleness: the images, the split, the normalised images."""
    return [paths.ingest / "stage.json", paths.split / "stage.json", *paths.normalised]


def run(config: Config, paths: Paths) -> list[str]:
    """Write the contact sheet, then the copies that are not there yet."""
    training = read_parts(paths)["train"]
    if not training:
        raise ValueError(f"{paths.split_table}: expected cases in the part train, found none; change split.*_share")
    if config.train.task in IMAGE_TASKS:
        from pipeline.pairs import learnable

        training = learnable(training, config)
    shown = choose_cases(training, config.seed, ROWS)
    _write_sheet(shown, config, paths)
    lines = [f"{len(shown)} training images, augmented, in {paths.augment / SHEET}"]
    if idle := _idle(config):
        lines.append(
            f"noted: augment.{', augment.'.join(idle)} without effect: recipe {config.augment.recipe} of task "
            f"{config.train.task} does not change crops so"
        )
    if config.augment.copies:
        count = _write_copies(training, config, paths)
        lines.append(f"{count} augmented copies of {len(training)} training images in {paths.augment / 'copies'}")
    return lines


def _idle(config: Config) -> list[str]:
    """Settings that were changed, and that the recipe, or a task that makes images, leaves out."""
    settings, fields = config.augment, type(config.augment).model_fields
    moved = settings.recipe != "none"
    coloured = settings.recipe == "tissue" and config.train.task not in IMAGE_TASKS
    left_out = [*(() if moved else OF_PLACES), *(() if coloured else OF_COLOURS)]
    return [name for name in left_out if getattr(settings, name) not in (fields[name].default, 0.0)]


def choose_cases(cases: Sequence[Case], seed: int, count: int) -> list[Case]:
    """Choose up to count cases at random, every stratum in turn, so that each is shown before one is shown twice."""
    generator = np.random.default_rng(seed)
    strata: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.case_id):
        strata.setdefault(case.stratum or "", []).append(case)
    drawn = [[members[i] for i in generator.permutation(len(members))[:count]] for _, members in sorted(strata.items())]
    chosen = [case for turn in zip_longest(*drawn) for case in turn if case is not None]
    return sorted(chosen[:count], key=lambda case: (case.stratum or "", case.case_id))


def _write_sheet(cases: Sequence[Case], config: Config, paths: Paths) -> None:
    from pipeline.augmentation import SHEET_CROPS, contact_sheet, sample_seed
    from pipeline.intensity import INTENSITIES
    from pipeline.records.rasters import write_png

    if config.train.task in IMAGE_TASKS:
        write_png(paths.augment / SHEET, _sheet_of_pairs(cases, config, paths))
        return
    prepare = INTENSITIES[config.train.intensity]
    pairs = [(prepare(image), label) for image, label in (_read(case, paths) for case in cases)]
    seeds = [[sample_seed(config.seed, 0, case.case_id, crop) for crop in range(SHEET_CROPS)] for case in cases]
    write_png(paths.augment / SHEET, contact_sheet(pairs, config.augment, seeds))


def _sheet_of_pairs(cases: Sequence[Case], config: Config, paths: Paths) -> np.ndarray:
    """Show of each case the whole image, then crops as training sees them: what is given and what is wanted."""
    from pipeline.augmentation import lay_out, sample_seed
    from pipeline.pairs import PAIRS_SHOWN, Pairs

    pairs = Pairs(config, paths)
    rows = []
    for case in cases:
        image, target = pairs.read(case)
        seeds = [sample_seed(config.seed, 0, case.case_id, crop) for crop in range(PAIRS_SHOWN)]
        crops = [crop for seed in seeds for crop in pairs.cut(image, target, seed)]
        rows.append([(shown, None) for shown in (image, *crops)])
    return lay_out(rows)


def _write_copies(cases: Sequence[Case], config: Config, paths: Paths) -> int:
    """Write <case_id>_<number>.png, image and, where there is one, label or target; return how many there are."""
    from tqdm import tqdm

    from pipeline.augmentation import Augmentation, sample_seed
    from pipeline.pairs import Pairs
    from pipeline.records.rasters import write_png

    read: Callable[[Case], tuple[np.ndarray, np.ndarray]] = partial(_read, paths=paths)
    cut: Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]] = Augmentation(config.augment)
    makes_images = config.train.task in IMAGE_TASKS
    if makes_images:
        pairs = Pairs(config, paths)
        read, cut = pairs.read, pairs.cut
    images, labels = paths.augment / "copies" / "images", paths.augment / "copies" / "labels"
    for case in tqdm(cases, desc="augment", unit="image", disable=None):
        names = [f"{case.case_id}_{number:02d}.png" for number in range(config.augment.copies)]
        has_label = makes_images or case.label is not None
        # Written last: where it is, the copy is complete.
        if all(((labels if has_label else images) / name).exists() for name in names):
            continue
        image, label = read(case)
        for number, name in enumerate(names):
            crop, crop_label = cut(image, label, sample_seed(config.seed, 0, case.case_id, number))
            write_png(images / name, crop)
            if has_label:
                write_png(labels / name, crop_label)
    return len(cases) * config.augment.copies


def _read(case: Case, paths: Paths) -> tuple[np.ndarray, np.ndarray]:
    from pipeline.records.rasters import read_image, read_label

    image = read_image(paths.image(case.image))
    if case.label is None or case.label_kind == "image":
        return image, np.zeros(image.shape[:2], np.uint16)
    return image, read_label(paths.ingest / case.label)
