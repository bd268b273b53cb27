"""The nine stages, in their one order. The command line lists them, so that nothing is imported here: see runner."""

from __future__ import annotations

# As type checkers know it: typing, and what dataclasses need, take longer to import than --help may.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.records.paths import Paths


class Stage:
    """One stage: what it is for, which earlier stages it needs, which settings it depends on, where it writes.

    settings: sections of the configuration, or single settings of another stage's by their dotted path.
    owns: names it writes in a folder that it shares; empty where the folder is its own.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        reads: str,
        writes: str,
        needs: tuple[str, ...],
        settings: tuple[str, ...],
        folder: Callable[[Paths], Path],
        owns: tuple[str, ...] = (),
    ) -> None:
        self.name, self.summary, self.reads, self.writes = name, summary, reads, writes
        self.needs, self.settings, self.folder, self.owns = needs, settings, folder, owns

    def manifest_file(self, paths: Paths) -> Path:
        """stage.json in its own folder; <stage>.stage.json in a shared one."""
        return self.folder(paths) / (f"{self.name}.stage.json" if self.owns else "stage.json")

    def unfinished_file(self, paths: Paths) -> Path:
        """What an unfinished run was started from; gone when it finished."""
        return self.folder(paths) / f".{self.name}.unfinished.json"


STAGES = (
    Stage(
        "ingest", "check every raw file and write one record an image",
        "data/raw/<dataset>/", "data/ingest/<dataset>/",
        (), ("dataset", "ingest"), lambda paths: paths.ingest,
    ),
    Stage(
        "split", "divide groups into train, validation, test and folds, and prove that nothing leaks",
        "data/ingest/<dataset>/", "data/split/<dataset>/<name>/",
        ("ingest",), ("seed", "split"), lambda paths: paths.split,
    ),
    Stage(
        "normalise", "bring every image to the stain of one reference, fitted on training cases",
        "data/ingest/<dataset>/, split.csv", "data/normalise/<dataset>/<method>/",
        ("ingest", "split"), ("normalise",), lambda paths: paths.normalise,
    ),
    Stage(
        "augment", "show what training will see, and write copies where asked",
        "training images and labels", "data/augment/<dataset>/<recipe>/",
        ("ingest", "split", "normalise"),
        (
            "seed", "augment", "train.task", "train.intensity", "train.corruption",
            "train.reconstruction.reference_strata",
        ),
        lambda paths: paths.augment,
    ),
    Stage(
        "train", "train the network and tune thresholds on the validation part",
        "images, labels, split.csv", "data/train/<run>/",
        ("ingest", "split", "normalise", "augment"), ("seed", "train", "augment", "predict", "compute"),
        lambda paths: paths.train,
    ),
    Stage(
        "predict", "write a probability map for every test and unlabelled case",
        "data/train/<run>/, images", "data/predict/<run>/",
        ("ingest", "split", "normalise", "train"), ("predict", "compute"), lambda paths: paths.predict,
    ),
    Stage(
        "evaluate", "turn probability maps into masks and score the test part",
        "data/predict/<run>/, thresholds.json, labels", "reports/<run>/ metrics.json, per_case.csv, masks/",
        ("ingest", "split", "train", "predict"), ("evaluate", "normalise", "seed"), lambda paths: paths.reports,
        ("metrics.json", "per_case.csv", "masks", "volumes", "normalised", "codes.csv", "objects.csv"),
    ),
    Stage(
        "report", "lay everything out on one page",
        "what the other stages wrote", "reports/<run>/ report.html",
        ("ingest", "split", "normalise", "augment", "train", "evaluate"), ("report",), lambda paths: paths.reports,
        ("report.html",),
    ),
    Stage(
        "submit", "write the competition's file and decode it back",
        "reports/<run>/masks/, sample_submission.csv", "reports/<run>/ submission.csv",
        ("ingest", "evaluate"), ("submit",), lambda paths: paths.reports,
        ("submission.csv",),
    ),
)  # fmt: skip
"""The order of the stages, written once."""

BY_NAME = {stage.name: stage for stage in STAGES}
