"""The Makefile hands settings on to the right command, and names what there is where a name is misspelt."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.readers import READERS
from pipeline.stains import METHODS

ROOT = Path(__file__).parents[1]
CLASSICAL = "reinhard macenko vahadane ruifrok"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def made(*arguments: str) -> tuple[int, list[str], str]:
    """Exit status, commands (after `python -m pipeline`) and error of a dry run; the environment counts as there."""
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "-o", ".venv/.ready", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    commands = [line.partition("-m pipeline ")[2].strip() for line in done.stdout.splitlines()]
    return done.returncode, commands, done.stderr


def test_settings_of_training_and_of_applying_reach_their_command() -> None:
    _, commands, _ = made("normaliser", "METHOD=unet", "SET=train.steps=3", "APPLY=normalise.fail_if_fallback_over=1")
    assert commands == [
        "report -c configs/normalisers/unet.yaml --with-needs train.steps=3",
        "normalise -c configs/sample.yaml --with-needs normalise.method=learned normalise.run=normalisers/unet "
        "normalise.fail_if_fallback_over=1",
    ]
    _, commands, _ = made("normaliser", "METHOD=macenko", "SET=seed=3", "APPLY=normalise.maximum_gain=3")
    assert commands == [
        "normalise -c configs/sample.yaml --with-needs normalise.method=macenko seed=3 normalise.maximum_gain=3"
    ]


def test_a_cross_validation_takes_config_and_settings() -> None:
    _, commands, _ = made("cv", "CONFIG=configs/dsb2018.yaml", "SET=split.folds=3 seed=3")
    assert commands == ["cv -c configs/dsb2018.yaml split.folds=3 seed=3"]


def test_two_runs_are_compared_and_one_is_not() -> None:
    _, commands, _ = made("compare", "A=one", "B=cv/two", "POOL=purple tissue=purple/purple,purple/white")
    assert commands == ['compare "one" "cv/two" --pool "purple tissue=purple/purple,purple/white"']
    status, commands, error = made("compare", "A=one")
    assert status == 2 and not commands and "expected A=<run> B=<run>" in error and "found A=one B=" in error


def test_a_run_is_scored_on_another_data_set() -> None:
    _, commands, _ = made("transfer", "RUN=a/b", "CONFIG=c.yaml", "METHODS=none,unet", "STRATA=p/w", "SET=seed=3")
    assert commands == ['transfer --run "a/b" -c c.yaml --methods "none,unet" --reference-strata "p/w" seed=3']
    status, commands, error = made("transfer")
    assert status == 2 and not commands and "expected RUN=<a trained segmentation below data/train/>" in error


def test_a_notebook_is_packed_with_what_is_known_of_kaggle() -> None:
    _, commands, _ = made("kaggle-notebook", "CONFIG=c.yaml", "OWNER=me", "WHEELS=all", "KAGGLE_PYTHON=3.12", "SET=a=b")
    assert commands == ['kaggle-notebook -c c.yaml --owner "me" --wheels all --python 3.12 a=b']
    _, commands, _ = made("kaggle-notebook", "IMAGE=my image.txt")
    assert commands == ['kaggle-notebook -c configs/sample.yaml --image "my image.txt"']


@pytest.mark.parametrize("name", ["denoise", "restorers/denoise"])
def test_a_restorer_is_trained_and_judged(name: str) -> None:
    _, commands, _ = made("restorer", f"METHOD={name}", "SET=seed=3")
    assert commands == ["report -c configs/restorers/denoise.yaml --with-needs seed=3"]


@pytest.mark.parametrize("folder", ["normalisers", "restorers"])
def test_every_committed_method_is_reached(folder: str) -> None:
    for file in sorted((ROOT / "configs" / folder).glob("*.yaml")):
        _, commands, _ = made(folder.removesuffix("s"), f"METHOD={file.stem}")
        assert commands[0] == f"report -c configs/{folder}/{file.name} --with-needs"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("normaliser", "METHOD=unett"), f"METHOD=unett: expected one of {CLASSICAL}, or learned: camelyon17 "),
        (("normaliser", "METHOD=denoise"), "that one is a restorer: make restorer METHOD=denoise"),
        (
            ("restorer",),
            "expected METHOD=<one of colourise denoise inpaint watermark> (configs/restorers/), found none",
        ),
        (("restorer", "METHOD=unet"), "(configs/restorers/), found METHOD=unet"),
    ],
)
def test_a_misspelt_method_is_told_with_those_there_are(arguments: tuple[str, ...], told: str) -> None:
    status, commands, error = made(*arguments)
    assert status == 2 and not commands and told in error


def test_the_classical_methods_are_those_of_the_code() -> None:
    assert set(METHODS) == set(CLASSICAL.split())
    assert f"CLASSICAL   := {CLASSICAL}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def layouts() -> list[tuple[str, str, str]]:
    """Layout, target and config of each line of the README's table of layouts; config is empty for one of one's own."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Layouts\n")[2].partition("\n## ")[0]
    rows = [row.strip("|").split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]
    return [(row[1].strip("` "), *(re.findall(r"`make (\w+) CONFIG=(\S+)`", row[3]) or [("", "")])[0]) for row in rows]


def test_every_layout_has_a_line() -> None:
    assert {layout for layout, _, _ in layouts()} == set(READERS)


@pytest.mark.parametrize(("layout", "target", "config"), [row for row in layouts() if row[1]], ids=lambda word: word)
def test_the_line_of_a_layout_makes_all_that_it_says(layout: str, target: str, config: str) -> None:
    last = {"evaluate": "report", "submission": "submit"}[target]
    assert made(target, f"CONFIG={config}")[1] == [f"{last} -c {config} --with-needs"]
    assert load_config(ROOT / config).ingest.layout in ("auto", layout)
