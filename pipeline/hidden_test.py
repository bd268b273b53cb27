"""The submission for whatever test images lie in a competition's folder now, by a trained run.

A code competition runs a notebook again with other test images than one has seen. The stages ingest, normalise,
predict, evaluate and submit do here what they do elsewhere, in a folder that is gone afterwards; training images are
left unread, and stain, weights and thresholds are the run's.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config, load_config
from pipeline.records.files import write_bytes, write_text, written_aside
from pipeline.records.paths import Paths
from pipeline.stages import evaluate, ingest, normalise, predict, submit
from pipeline.stains import normaliser_files

if TYPE_CHECKING:
    from pipeline.trained import TrainedRun

OF_USE = ("ingest", "predict", "submit", "compute")
"""Sections whose settings may be laid over the run's own."""
SPLIT_COLUMNS = "case_id,group,stratum,part,fold\n"


def submit_hidden_test(run: str, raw: Path, out: Path, overrides: Sequence[str] = ()) -> None:
    """Write the submission for the images without truth in a competition's folder, with a trained run.

    run: a name below data/train/, or the run's folder; raw: the folder as Kaggle mounts it, read only, with the sample
    submission whose header, ids and order are taken; out: the CSV file; overrides: settings of ingest, predict, submit
    and compute, laid over the run's own (of compute: over the defaults, since this may be another machine).
    What is written between lies in the system's temporary folder (TMPDIR): every test image and its maps.
    Raises ValueError for a run that makes no submission, settings that have no effect, images that cannot be read, and
    ids of the sample without an image.
    """
    from pipeline.trained import FROZEN, named_run

    if out.is_dir() or out.suffix != ".csv":
        raise ValueError(f"--out {out}: expected a file that ends in .csv, found {'a folder' if out.is_dir() else out}")
    idle = [setting for setting in overrides if setting.partition("=")[0].split(".")[0] not in OF_USE]
    if idle:
        raise ValueError(f"submit --run takes settings of {', '.join(OF_USE)} alone; leave out {', '.join(idle)}")
    trained = named_run(run)
    if trained.outputs.is_image:
        raise ValueError(
            f"{trained.folder}: expected a run that makes masks or classes, found task {trained.config.train.task}"
        )
    config = _config(trained, raw, load_config(trained.folder / FROZEN, ["compute={}", *overrides]))
    with tempfile.TemporaryDirectory(prefix="stainseg-") as folder:
        paths = _laid_out(trained, config, raw, Path(folder))
        try:
            for line in _each_stage(config, paths):
                print(line.replace(f"{paths.root}/", ""))
        except ValueError as error:
            # The raw folder is named as the user knows it.
            raise ValueError(str(error).replace(str(paths.raw), str(raw))) from error
        with written_aside(out) as aside:
            shutil.copyfile(paths.reports / "submission.csv", aside)
    print(f"\nWritten: {out}")


def _config(trained: TrainedRun, raw: Path, config: Config) -> Config:
    """Return the run's settings as they hold for other images than it was trained beside."""
    table = config.ingest.group_csv
    if table is not None and not (raw / table).is_file():
        print(f"noted: ingest.group_csv={table} is not in {raw}: test images are of no group")
        table = None
    # What is to be left out was named among other images; how many fall back was judged over those of training too.
    return config.model_copy(
        update={
            "run": trained.folder.absolute().relative_to(trained.home.absolute()).as_posix(),
            "ingest": config.ingest.model_copy(update={"exclude": (), "group_csv": table}),
            "normalise": config.normalise.model_copy(update={"fail_if_fallback_over": 1.0}),
        }
    )


def _laid_out(trained: TrainedRun, config: Config, raw: Path, root: Path) -> Paths:
    """Put what the stages read where they look for it: the raw folder, the run, its stain, and a split of no case."""
    if not raw.is_dir():
        raise ValueError(
            f"--raw {raw}: expected the competition's folder, found {'a file' if raw.exists() else 'none'}"
        )
    paths = Paths.of(config, root)
    for place, target in ((paths.raw, raw), (root / "data" / "train", trained.home)):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.resolve(), target_is_directory=True)
    write_text(paths.split_table, SPLIT_COLUMNS)
    if config.normalise.method != "none":
        for file in normaliser_files(trained.folder):
            write_bytes(paths.normalise / file.name, file.read_bytes())
    return paths


def _each_stage(config: Config, paths: Paths) -> list[str]:
    lines = ingest.run(config, paths, unlabelled_only=True)
    if config.ingest.depth is None:
        lines += _depth(paths)
    if config.normalise.method != "none":
        lines += normalise.run(config, paths)
    lines += predict.run(config, paths)
    if config.train.task == "segmentation":
        lines += evaluate.run(config, paths)
    return [*lines, *submit.run(config, paths)]


def _depth(paths: Paths) -> list[str]:
    """Say how deep images were scaled where the run, which learned from none, does not say it."""
    with paths.findings.open(encoding="utf-8", newline="") as stream:
        deep = {row["detail"] for row in csv.DictReader(stream) if row["fault"] == "deep image"}
    return [f"noted: images of more than 8 bits: {found}, by the largest value of these images" for found in deep]
