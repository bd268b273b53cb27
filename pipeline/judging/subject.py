"""What is judged, and what comes of it: a run that makes images, its input and other methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.config import Config
from pipeline.corruption import damage
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.stains import METHODS
from pipeline.stains.tiles import evenly
from pipeline.trained import TrainedRun, open_run

Kind = Literal["paired", "restored", "unpaired"]
Parts = Mapping[str, Sequence[Case]]
Apply = Callable[[Case, np.ndarray], tuple[np.ndarray, str]]
"""Gives the image that a method makes of a case's, (height, width, 3) uint8 RGB, and its status."""

LARGEST_FIT = 500
"""Images that a classical reference is sought among; of more, so many evenly spaced ones."""


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
        corruption = self.trained.config.train.corruption
        spoilt = set(damage(corruption))
        return not spoilt - {"noise"} if self.kind == "paired" else bool(corruption.restain and not spoilt)

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
            found[name] = open_run(paths.run_folder(name))
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


def few(cases: Sequence[Case], most: int) -> list[Case]:
    """Return up to most cases, evenly spaced."""
    return [cases[index] for index in evenly(len(cases), most)]
