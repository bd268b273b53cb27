"""A competition's files from Kaggle (or a folder) into data/raw/, and a submission back, with Kaggle's own clients."""

from __future__ import annotations

import filecmp
import shutil
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.config import Config
from pipeline.records.files import written_aside
from pipeline.records.paths import Paths

CREDENTIALS = (
    "Kaggle's credentials are missing or were refused. Make a token on kaggle.com (Settings, API) and put it into "
    "~/.kaggle/kaggle.json, or set KAGGLE_USERNAME and KAGGLE_KEY, and accept the competition's rules on its page"
)


@dataclass(frozen=True)
class Competition:
    """Where a data set comes from: Kaggle's name of it, and the files that ingest reads."""

    name: str
    files: tuple[str, ...]
    optional: tuple[str, ...] = ()


COMPETITIONS = {
    "dsb2018": Competition(
        "data-science-bowl-2018",
        ("stage1_train.zip", "stage1_test.zip", "stage1_train_labels.csv", "stage1_sample_submission.csv"),
        ("stage2_test_final.zip", "stage2_sample_submission_final.csv", "stage1_solution.csv", "classes.csv"),
    ),
    "hubmap2020": Competition(
        "hubmap-kidney-segmentation",
        ("train/", "test/", "train.csv", "HuBMAP-20-dataset_information.csv", "sample_submission.csv"),
    ),
    "hubmap2022": Competition(
        "hubmap-organ-segmentation",
        ("train.csv", "train_images/", "test.csv", "test_images/", "sample_submission.csv"),
    ),
    "hubmap2023": Competition(
        "hubmap-hacking-the-human-vasculature",
        ("train/", "test/", "polygons.jsonl", "tile_meta.csv", "sample_submission.csv"),
        ("wsi_meta.csv",),
    ),
    "pcam": Competition(
        "histopathologic-cancer-detection", ("train_labels.csv", "train/", "test/", "sample_submission.csv")
    ),
}
"""Data sets that `make data` knows."""


def fetch(dataset: str, source: Path | None, raw: Path) -> None:
    """Put the files of a data set into raw/<dataset>/.

    source: a folder to take them from; None downloads them with Kaggle's client.
    Raises ValueError saying which files to put where, where neither is possible.
    """
    if dataset == "sample":
        from pipeline.sample import write_sample

        write_sample(raw / dataset)
        print(f"Written: {raw / dataset}\nNext:    make train")
        return
    if dataset not in COMPETITIONS:
        raise ValueError(f"{dataset}: expected one of sample, {', '.join(COMPETITIONS)}; put files of your own into "
                         f"{raw / dataset} and give a config with dataset: {dataset}")  # fmt: skip
    competition, target = COMPETITIONS[dataset], raw / dataset
    if source is not None:
        _take(source, target)
    else:
        _download(competition, target)
    print(f"Written: {target}\nNext:    make train CONFIG=configs/{dataset}.yaml")


def how_to_get(dataset: str, target: Path) -> str:
    """Say which files to put where by hand."""
    if dataset not in COMPETITIONS:
        return f"put the raw files into {target}"
    competition = COMPETITIONS[dataset]
    return (
        f"put these files from https://www.kaggle.com/c/{competition.name}/data into {target}, zipped or unpacked:\n"
        + "\n".join(f"  {name}" for name in competition.files)
        + "".join(f"\n  {name} (optional)" for name in competition.optional)
        + f"\nor give a folder that holds them: make data DATASET={dataset} FROM=<folder>"
    )


def _take(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise ValueError(f"{source}: expected a folder with the competition's files, found none")
    files = [file for file in sorted(source.rglob("*")) if file.is_file()]
    if not files:
        raise ValueError(f"{source}: expected the competition's files, found an empty folder")
    differing = []
    for file in tqdm(files, desc="copy", unit="file", disable=None):
        place = target / file.relative_to(source)
        if place.exists() and filecmp.cmp(place, file, shallow=False):
            continue
        if place.exists():
            differing.append(str(place))
            continue
        with written_aside(place) as aside:
            shutil.copyfile(file, aside)
    if differing:
        raise ValueError(
            f"{len(differing)} files are there already, with another content, and stay ({', '.join(differing[:5])}); "
            f"remove them, then run this again"
        )


def _download(competition: Competition, target: Path) -> None:
    dataset = target.name
    try:
        import kagglehub
        from kagglehub.exceptions import KaggleApiHTTPError, UnauthenticatedError
    except ImportError as error:
        raise ValueError(
            f"{error}: install Kaggle's clients with `pip install 'stainseg[kaggle]'`, or {how_to_get(dataset, target)}"
        ) from error
    try:
        folder = Path(kagglehub.competition_download(competition.name))
    except (UnauthenticatedError, KaggleApiHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{competition.name} could not be downloaded ({reason[0][:200]}).\n{CREDENTIALS}; or\n"
            f"{how_to_get(dataset, target)}"
        ) from error
    _take(folder, target)


def competition_of(config: Config) -> str | None:
    """Return Kaggle's name of the competition that a config is for; None where it is for none that is known."""
    known = COMPETITIONS.get(config.dataset)
    return config.submit.competition or (known.name if known else None)


def hand_in(config: Config, paths: Paths) -> None:
    """Hand reports/<run>/submission.csv in with Kaggle's client.

    Raises ValueError where there is no submission, no competition, or Kaggle refuses.
    """
    file = paths.reports / "submission.csv"
    if not file.exists():
        raise ValueError(f"{file}: expected a submission, found nothing; run `make submission` first")
    name = competition_of(config)
    if name is None:
        raise ValueError(
            f"{config.dataset} is no competition of Kaggle's that is known here; name it with submit.competition=<name>"
        )
    try:
        # The client reads its credentials when it is imported, and leaves the process where there are none.
        from kaggle import api
        from requests.exceptions import ConnectionError as Unreachable
        from requests.exceptions import RequestException
    except ImportError as error:
        raise ValueError(f"{error}: install Kaggle's clients with `pip install 'stainseg[kaggle]'`") from error
    except SystemExit as error:
        raise ValueError(CREDENTIALS) from error
    try:
        answer = api.competition_submit(str(file), config.submit.message, name)
    except Unreachable as error:
        raise ValueError(f"{file} was not handed in: Kaggle could not be reached; try again with a network") from error
    except (RequestException, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{file} was not accepted ({reason[0][:200]}). {CREDENTIALS}") from error
    print(f"Handed in {file} to {name}: {answer}")
