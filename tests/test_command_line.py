"""Help answers at once and lists every setting; mistakes give a message and no trace."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import main
from pipeline.commands import GROUPS, MODULES, SUMMARIES
from pipeline.commands.stage import what_next
from pipeline.config import Config, describe
from pipeline.records.paths import Paths
from pipeline.stages import STAGES

ROOT = Path(__file__).parents[1]


def seconds_of(*command: str) -> float:
    """The shortest of five runs of a command."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    return min(times)


def test_help_answers_within_half_a_second() -> None:
    assert seconds_of("-m", "pipeline", "train", "--help") < 0.5


def test_the_list_of_commands_imports_nothing_that_python_has_not() -> None:
    # What `-m` itself needs is there in both.
    script = (
        "import sys; before = set(sys.modules); import pipeline.__main__ as m; m.main(['--help']); "
        "print(sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = ["pipeline", "pipeline.__main__", "pipeline.commands", "pipeline.stages"]
    assert done.stderr.strip() == str(["__future__", *ours])
    for name, summary in SUMMARIES.items():
        assert f"{name} " in done.stdout and summary in done.stdout


@pytest.mark.parametrize("name", MODULES)
def test_each_command_of_the_list_has_its_own_help(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([name, "--help"])
    assert leaving.value.code == 0
    told = capsys.readouterr().out
    assert f"usage: python -m pipeline {name}" in told and f"{name}: " in told


def test_each_module_has_the_commands_that_the_list_gives_it() -> None:
    for _, module, commands in GROUPS:
        assert list(importlib.import_module(f"pipeline.commands.{module}").COMMANDS) == list(commands)


def test_a_misspelt_command_is_told_which_was_meant(capsys) -> None:
    assert main(["evalute"]) == 2
    assert "did you mean evaluate?" in capsys.readouterr().err
    assert main([]) == 2
    told = capsys.readouterr()
    assert "expected a command" in told.err and "kaggle-notebook" in told.err and not told.out
    assert main(["--version"]) == 0


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_each_stage_lists_its_settings_with_defaults(stage, capsys) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([stage.name, "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    rows = list(describe(Config()))
    for path, _, _, _ in rows:
        if path.split(".")[0] in stage.settings:
            assert f"  {path} = " in text
    assert "Reads" in text or "reads" in text


def test_mistakes_are_told_without_a_trace(capsys) -> None:
    assert main(["train", "-c", "configs/absent.yaml"]) == 2
    assert main(["config", "train.step=3"]) == 2
    assert main(["score", "no.csv", "no.csv"]) == 2
    text = capsys.readouterr().err
    assert "did you mean train.steps?" in text
    assert "Traceback" not in text


def test_predicting_images_says_which_flag_is_missing(capsys) -> None:
    assert main(["predict", "--images", "here"]) == 2
    assert "--run, --out is missing" in capsys.readouterr().err


def test_predicting_into_a_file_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "note").write_text("mine")
    assert main(["predict", "--run", "absent", "--images", str(ROOT), "--out", str(tmp_path / "note")]) == 2
    assert "note: expected a folder, found a file; name another folder" in capsys.readouterr().err


def test_what_the_system_refuses_is_told_without_a_trace(tmp_path: Path, capsys) -> None:
    # A folder where a file is expected.
    assert main(["score", str(tmp_path), str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("score: ") and str(tmp_path) in told


def test_settings_with_spaces_come_through_make_and_shell(capsys) -> None:
    # As make hands over SET="ingest.exclude=[10044, b] split.published={a: train, b: test} seed=7".
    words = ["ingest.exclude=[10044,", "b]", "split.published={a:", "train,", "b:", "test}", "seed=7"]
    assert main(["config", "-c", str(ROOT / "configs/pannuke.yaml"), *words]) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    assert told["ingest"]["exclude"] == ["10044", "b"] and told["seed"] == 7
    assert told["split"]["published"] == {"a": "train", "b": "test"}


def test_settings_may_stand_on_both_sides_of_an_option(capsys) -> None:
    assert main(["config", "seed=7", "-c", "configs/sample.yaml", "run=mine", "--trace", "split.folds=3"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["seed"], printed["run"], printed["split"]["folds"]) == (7, "mine", 3)


def test_what_comes_next_is_there_and_can_be_pasted(tmp_path: Path) -> None:
    (report,) = (stage for stage in STAGES if stage.name == "report")
    config, paths = Config(run="mine"), Paths.of(Config(run="mine"), tmp_path)
    settings = ['ingest.exclude=["1", b]', "ingest.group_pattern=^(p[0-9]+)_.*$", "seed=7"]
    options = Namespace(config=Path("configs/mine.yaml"), settings=settings)
    assert "Next:" not in what_next(report, options, config, paths)
    paths.sample_submission.parent.mkdir(parents=True)
    paths.sample_submission.touch()
    *_, line = what_next(report, options, config, paths).splitlines()
    _, make, *arguments = shlex.split(line)
    assert make == "make" and arguments[:2] == ["submission", "CONFIG=configs/mine.yaml"]
    shown = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.ready", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shlex.split(shown.stdout)[-len(settings) :] == settings
    submit = next(stage for stage in STAGES if stage.name == "submit")
    # The sample is no competition: from there one's own images are next.
    *_, line = what_next(submit, options, config, paths).splitlines()
    assert line.startswith("Yours:   python -m pipeline predict --run mine --images ")
    assert "make kaggle-submit" in what_next(submit, options, Config(dataset="dsb2018"), paths)


def test_the_resolved_settings_are_printed(capsys) -> None:
    assert main(["config", "-c", str(ROOT / "configs/sample.yaml"), "seed=7"]) == 0
    text = capsys.readouterr().out
    assert "seed: 7" in text and "run: sample" in text


def test_the_reference_network_has_the_papers_numbers(capsys) -> None:
    assert main(["summary", "--reference"]) == 0
    text = capsys.readouterr().out
    assert "39,393,410" in text and "235.07" in text and "[1, 2, 388, 388]" in text
