"""A trained run submits whatever test images a competition's folder holds, as the stages do, and reads no others."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.config import load_config
from pipeline.hidden_test import submit_hidden_test
from pipeline.records.paths import Paths
from pipeline.records.submission import read_rows
from pipeline.runner import run as run_stage
from pipeline.trained import open_run

SAMPLE = "stage1_sample_submission.csv"

pytestmark = pytest.mark.slow


@pytest.fixture
def here(submitted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the root that a test may change, and works in."""
    shutil.copytree(submitted_run, tmp_path / "root", symlinks=True)
    monkeypatch.chdir(tmp_path / "root")
    return tmp_path / "root"


def swapped(raw: Path, out: Path, kept: int) -> dict[str, str]:
    """Lay out the competition's folder as it is when a notebook runs again; new names of the test images by old ones.

    Some of the test images, under other names; training images that nobody can read.
    """
    names = {old.name: f"hidden{number}" for number, old in enumerate(sorted((raw / "stage1_test").iterdir())[:kept])}
    for old, new in names.items():
        (out / "stage1_test" / new / "images").mkdir(parents=True)
        image = next((raw / "stage1_test" / old / "images").iterdir())
        shutil.copyfile(image, out / "stage1_test" / new / "images" / f"{new}.png")
    for number in range(3):
        (out / f"stage1_train/training{number}/images").mkdir(parents=True)
        (out / f"stage1_train/training{number}/images/training{number}.png").write_bytes(b"not to be read")
    (out / "stage1_train/broken").mkdir()
    (out / "stage1_train/broken/note.txt").touch()
    rows = "".join(f"{new},1 1\n" for new in sorted(names.values(), reverse=True))
    (out / SAMPLE).write_text("ImageId,EncodedPixels\n" + rows)
    return names


def rows_of(file: Path) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for name, cell in read_rows(file)[1]:
        rows.setdefault(name, []).append(cell)
    return rows


def test_the_visible_test_images_give_the_bytes_of_the_stages(here: Path, tmp_path: Path) -> None:
    submit_hidden_test("tiny", here / "data/raw/sample", tmp_path / "out/submission.csv")
    assert (tmp_path / "out/submission.csv").read_bytes() == (here / "reports/tiny/submission.csv").read_bytes()
    assert not list((tmp_path / "out").glob(".*")), "nothing else is left"


def test_other_test_images_are_submitted_and_training_images_are_not_read(
    here: Path, tmp_path: Path, sample_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = swapped(sample_folder, tmp_path / "competition", 5)
    elsewhere = shutil.copytree(here / "data/train/tiny", tmp_path / "renamed")
    shutil.rmtree(here / "data")
    out = tmp_path / "submission.csv"
    assert main(["submit", "--run", str(elsewhere), "--raw", str(tmp_path / "competition"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "noted: ingest.group_csv=truth/groups.csv is not in" in told and "5 masks" in told
    before, after = rows_of(here / "reports/tiny/submission.csv"), rows_of(out)
    assert after == {new: before[old] for old, new in names.items()} and len(after) == 5
    assert list(after) == sorted(names.values(), reverse=True), "in the sample's order"


def test_a_run_brings_its_stain_and_its_members_along(here: Path, tmp_path: Path) -> None:
    settings = ["normalise.method=macenko", "train.steps=6", "train.validations=1"]
    for run, more in (("one", ["train.seed=1"]), ("two", ["train.seed=2"])):
        run_stage("train", *resolved([*settings, *more, f"run={run}"]), with_needs=True)
    config, paths = resolved(["normalise.method=macenko", "train={members: [one, two]}", "run=both"])
    run_stage("submit", config, paths, with_needs=True)
    one, two, both = (open_run(here / "data/train" / run) for run in ("one", "two", "both"))
    assert both.learned_from == one.learned_from | two.learned_from and both.learned_from
    shutil.rmtree(here / "data/normalise")
    submit_hidden_test("both", here / "data/raw/sample", tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").read_bytes() == (here / "reports/both/submission.csv").read_bytes()


def test_members_of_another_stain_are_refused(here: Path) -> None:
    settings = ["normalise.method=reinhard", "train.steps=4", "train.validations=1"]
    fold = ["split.folds=3", "split.fold=0", "split.name=fold-0"]
    run_stage("train", *resolved([*settings, *fold, "run=one"]), with_needs=True)
    run_stage("train", *resolved([*fold, settings[0], "train={members: [one]}", "run=same"]), with_needs=True)
    both = resolved([settings[0], "train={members: [one]}", "run=other"])
    with pytest.raises(ValueError, match=r"one was trained on images of another stain than .*reinhard.* has"):
        run_stage("train", *both, with_needs=True)


def resolved(settings: list[str]) -> tuple:
    config = load_config(Path("tiny.yaml"), settings)
    return config, Paths.of(config)


def test_ids_without_an_image_are_named_with_the_folder_as_it_is_called(
    here: Path, tmp_path: Path, sample_folder: Path
) -> None:
    swapped(sample_folder, tmp_path / "competition", 2)
    with (tmp_path / "competition" / SAMPLE).open("a") as stream:
        stream.write("absent,1 1\n")
    with pytest.raises(ValueError, match="expected one mask for each of its 3 ids, found no mask for absent"):
        submit_hidden_test("tiny", tmp_path / "competition", tmp_path / "submission.csv")
    (tmp_path / "competition/stage1_test/hidden1/images/hidden1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"competition: 1 fault\(s\) in 1 of 2 cases.*\n.*hidden1") as caught:
        submit_hidden_test("tiny", tmp_path / "competition", tmp_path / "submission.csv")
    assert "stainseg-" not in str(caught.value)
    (tmp_path / "competition" / SAMPLE).unlink()
    shutil.rmtree(tmp_path / "competition/stage1_test")
    with pytest.raises(ValueError, match=r"expected images without truth.*found 3 images, all with truth"):
        submit_hidden_test("tiny", tmp_path / "competition", tmp_path / "submission.csv")
    assert not (tmp_path / "submission.csv").exists()


def test_only_the_submission_of_these_settings_is_handed_in(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handed: list[tuple[str, ...]] = []
    client = types.ModuleType("kaggle")
    client.api = types.SimpleNamespace(competition_submit=lambda *given: handed.append(given))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kaggle", client)
    command = ["kaggle-submit", "-c", "tiny.yaml"]
    assert main([*command, "seed=7"]) == 2 and not handed
    told = capsys.readouterr().err
    assert "expected what stage submit makes by these settings" in told and "\n  split: settings.seed" in told
    assert main(command) == 0
    assert handed == [("reports/tiny/submission.csv", "stainseg", "sample-competition")]
    (here / "reports" / "tiny" / "submission.csv").write_text("ImageId,EncodedPixels\n")
    assert main(command) == 2 and "submit: 1 of its files are gone or changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--run", "tiny", "--out", "x.csv"], "--raw is missing"),
        (["--run", "tiny", "--raw", "data/raw/sample", "--out", "data"], "expected a file that ends in .csv"),
        (["--run", "tiny", "--raw", "absent", "--out", "x.csv"], "--raw absent: expected the competition's folder"),
        (["--run", "absent", "--raw", "data", "--out", "x.csv"], "there are the trained runs tiny"),
        (
            ["--run", "tiny", "--raw", "data", "--out", "x.csv", "--force"],
            "brings the run's own settings; leave out --force",
        ),
        (["--run", "tiny", "--raw", "data", "--out", "x.csv", "train.steps=3"], "leave out train.steps=3"),
        (["--run", "tiny", "--raw", "data", "--out", "x.csv", "predict.flip=all"], "did you mean predict.flips"),
    ],
)
def test_what_cannot_be_done_is_told(
    here: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *arguments]) == 2
    assert told in capsys.readouterr().err
