"""Every path below data/ and reports/, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import DEFAULT_SPLIT, IMAGE_TASKS, Config


@dataclass(frozen=True)
class Paths:
    """Where each stage of one configuration writes; root holds data/ and reports/."""

    root: Path
    dataset: str
    split_name: str
    normalise_method: str
    augment_recipe: str
    run: str
    normalise_run: str | None = None
    fold: int | None = None

    @classmethod
    def of(cls, config: Config, root: Path = Path()) -> Paths:
        """Take the names from a configuration."""
        # Where images are learned from images, what training sees depends on more than the recipe.
        of_images = config.train.task in IMAGE_TASKS
        return cls(
            root, config.dataset, config.split.name, config.normalise.method,
            config.run.replace("/", "-") if of_images else config.augment.recipe, config.run, config.normalise.run,
            config.split.fold,
        )  # fmt: skip

    @property
    def raw(self) -> Path:
        """The raw files, never changed."""
        return self.root / "data" / "raw" / self.dataset

    @property
    def ingest(self) -> Path:
        """cases.jsonl, images/, labels/, findings.csv, sample_submission.csv."""
        return self.root / "data" / "ingest" / self.dataset

    @property
    def cases(self) -> Path:
        """One record an image."""
        return self.ingest / "cases.jsonl"

    @property
    def findings(self) -> Path:
        """What ingest repaired or excluded: case_id, action (repaired, excluded, noted), fault, detail."""
        return self.ingest / "findings.csv"

    @property
    def sample_submission(self) -> Path:
        """The competition's sample file, where it has one."""
        return self.ingest / "sample_submission.csv"

    @property
    def split(self) -> Path:
        """split.csv, proof.json, groups.png."""
        return self.root / "data" / "split" / self.dataset / self.split_name

    @property
    def split_table(self) -> Path:
        """case_id, group, stratum, part, fold."""
        return self.split / "split.csv"

    @property
    def proof(self) -> Path:
        """What shows that the split does not leak."""
        return self.split / "proof.json"

    @property
    def normalise(self) -> Path:
        """images/, stain.json, status.csv; the folder has the name of the method, or of the run that method learned
        applies."""
        name = self.normalise_run.replace("/", "-") if self.normalise_run else self.normalise_method
        # Fitted to the training part: splits stand side by side, as folds do.
        of_split = self.fold is None and self.normalise_method != "none" and self.split_name != DEFAULT_SPLIT
        own = f"{name}-{self.split_name}" if of_split else self._of_fold(name)
        return self.root / "data" / "normalise" / self.dataset / own

    @property
    def learned_normaliser(self) -> Path | None:
        """The trained run that method learned applies, None with other methods."""
        return self.run_folder(self.normalise_run) if self.normalise_run else None

    @property
    def augment(self) -> Path:
        """contact_sheet.png, and copies where asked; named after the recipe, or after a run that makes images."""
        return self.root / "data" / "augment" / self.dataset / self._of_fold(self.augment_recipe)

    def _of_fold(self, name: str) -> str:
        """A folder that depends on what is trained on: folds stand side by side instead of replacing each other."""
        return name if self.fold is None else f"{name}-fold-{self.fold}"

    @property
    def train(self) -> Path:
        """checkpoints, history.csv, config.yaml, thresholds.json."""
        return self.root / "data" / "train" / self.run

    @property
    def predict(self) -> Path:
        """One probability map a case."""
        return self.root / "data" / "predict" / self.run

    @property
    def reports(self) -> Path:
        """metrics.json, per_case.csv, masks/ or normalised/, report.html, submission.csv."""
        return self.root / "reports" / self.run

    def made_image(self, method: str, case_id: str) -> Path:
        """What a method made of a test case, for a run that makes images and is judged beside other methods."""
        return self.reports / "normalised" / method.replace("/", "-") / f"{case_id}.png"

    def run_folder(self, run: str) -> Path:
        """The folder of another trained run."""
        return self.root / "data" / "train" / run

    @property
    def classes(self) -> Path:
        """What a classification predicts: case_id and p_<class> of each class."""
        return self.predict / "classes.csv"

    @property
    def normalised(self) -> list[Path]:
        """The manifest of the normalised images, where a method is set: what reads image() depends on it."""
        return [] if self.normalise_method == "none" else [self.normalise / "stage.json"]

    def image(self, case_image: str) -> Path:
        """The image that training and prediction read: ingested, or normalised where a method is set."""
        folder = self.ingest if self.normalise_method == "none" else self.normalise
        return folder / case_image
