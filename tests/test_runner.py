"""A stage runs once, is skipped while nothing changes, says what changed, and never loses a finished result."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import runner
from pipeline.config import Config, load_config
from pipeline.fan_out import naming
from pipeline.records.files import write_json, write_text, written_aside
from pipeline.records.manifest import NAMED_WHERE_READ, Manifest, changes
from pipeline.records.paths import Paths
from pipeline.stages import STAGES, Stage, evaluate, report, submit


class Recorder:
    """Stand-ins for three stages: each copies its input's text and adds its own; counts how often it ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        self.interrupt: str | None = None
        table = (
            Stage("ingest", "", "", "", (), ("dataset", "ingest"), lambda paths: paths.ingest),
            Stage("split", "", "", "", ("ingest",), ("seed",), lambda paths: paths.split),
            Stage("report", "", "", "", ("split",), ("report",), lambda paths: paths.reports, ("report.html",)),
        )
        monkeypatch.setattr(runner, "STAGES", table)
        monkeypatch.setattr(runner, "BY_NAME", {stage.name: stage for stage in table})
        self._module(
            monkeypatch,
            "ingest",
            lambda paths: [paths.raw],
            lambda paths: paths.ingest / "a.txt",
            lambda paths: (paths.raw / "raw.txt").read_text(),
        )
        self._module(
            monkeypatch,
            "split",
            lambda paths: [paths.ingest / "stage.json"],
            lambda paths: paths.split / "b.txt",
            lambda paths: (paths.ingest / "a.txt").read_text().upper(),
        )
        self._module(
            monkeypatch,
            "report",
            lambda paths: [paths.split / "stage.json"],
            lambda paths: paths.reports / "report.html",
            lambda paths: (paths.split / "b.txt").read_text(),
        )

    def _module(self, monkeypatch, name, inputs, output, content) -> None:
        def run(config: Config, paths: Paths) -> list[str]:
            self.runs.append(name)
            own = {"split": config.seed, "report": config.report.cases}.get(name, "")
            write_text(
                output(paths),
                f"{content(paths)} {own}",
            )
            if self.interrupt == name:
                raise KeyboardInterrupt
            return ["done"]

        module = types.ModuleType(name)
        module.inputs, module.run = (lambda config, paths: inputs(paths)), run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"pipeline.stages.{name}", module)

    def go(self, root: Path, name: str, *overrides: str, **flags: bool) -> list[str]:
        self.runs.clear()
        config = load_config(None, list(overrides))
        runner.run(name, config, Paths.of(config, root), **flags)
        return list(self.runs)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    write_text(tmp_path / "data/raw/sample/raw.txt", "raw")
    return Recorder(monkeypatch)


def test_what_is_up_to_date_is_skipped_and_says_so(recorder, tmp_path, capsys) -> None:
    assert recorder.go(tmp_path, "report", with_needs=True) == ["ingest", "split", "report"]
    capsys.readouterr()
    assert recorder.go(tmp_path, "report", with_needs=True) == []
    assert capsys.readouterr().out.count("up to date") == 3


def test_only_what_depends_on_a_setting_is_redone_and_the_reason_is_told(recorder, tmp_path, capsys) -> None:
    recorder.go(tmp_path, "report", with_needs=True)
    capsys.readouterr()
    assert recorder.go(tmp_path, "report", "report.cases=2", with_needs=True) == ["report"]
    assert "settings.report.cases: 4 -> 2" in capsys.readouterr().out
    assert recorder.go(tmp_path, "report", "report.cases=2", "seed=7", with_needs=True) == ["split", "report"]


def test_a_setting_that_came_since_leaves_a_result_alone_at_its_default(recorder, tmp_path) -> None:
    recorder.go(tmp_path, "report", with_needs=True)
    file = tmp_path / "data/ingest/sample/stage.json"
    entry = json.loads(file.read_text())
    del entry["made_from"]["settings"]["ingest"]["layout"]
    write_text(file, json.dumps(entry))
    assert recorder.go(tmp_path, "report", with_needs=True) == []
    assert "ingest" in recorder.go(tmp_path, "report", "ingest.layout=images", with_needs=True)


@pytest.mark.parametrize(("strata", "told"), [([], []), (["pink"], ["settings.train.reconstruction.reference_strata"])])
def test_a_setting_that_a_stage_reads_since_leaves_a_result_alone_at_its_default(
    tmp_path: Path, strata: list[str], told: list[str]
) -> None:
    reconstruction = {"task": "reconstruction", "reconstruction": {"reference_strata": strata}}
    config = Config.model_validate({"run": "mine", "train": reconstruction})
    paths, stage = Paths.of(config, tmp_path), next(stage for stage in STAGES if stage.name == "augment")
    manifest = {
        "stage": "augment",
        "outputs": {},
        "provenance": {},
        "made_from": runner.made_from(stage, config, paths),
    }
    write_json(stage.manifest_file(paths), manifest)
    assert runner._state(stage, config, paths)[2] == []
    del manifest["made_from"]["settings"]["train.reconstruction.reference_strata"]
    write_json(stage.manifest_file(paths), manifest)
    assert [difference.partition(":")[0] for difference in runner._state(stage, config, paths)[2]] == told


def test_a_sample_submission_that_comes_late_and_another_note_are_no_reason_to_train_again(tmp_path: Path) -> None:
    outputs = {"cases.jsonl": [1, "a"], "images/a.png": [1, "b"]}
    before = Manifest("ingest", {}, outputs | {"findings.csv": [1, "d"]}, {})
    after = Manifest("ingest", {}, outputs | {"findings.csv": [1, "e"], "sample_submission.csv": [1, "c"]}, {})
    assert before.digest == after.digest != Manifest("ingest", {}, {"cases.jsonl": [1, "a"]}, {}).digest
    config = Config(run="mine")
    paths = Paths.of(config, tmp_path)
    read_by = {paths.sample_submission: [submit], paths.findings: [evaluate, report]}
    assert sorted(file.name for file in read_by) == sorted(NAMED_WHERE_READ)
    assert all(file in stage.inputs(config, paths) for file, stages in read_by.items() for stage in stages)


def test_an_input_that_came_or_went_is_told_as_such() -> None:
    file, other, settings = "0" * 64, "1" * 64, {"split": {"fold": None}}
    inputs = {"late.csv": file, "changed.csv": file, "gone.csv": file}
    assert changes(
        {"inputs": {"changed.csv": other, "gone.csv": file}, "settings": settings},
        {"inputs": inputs | {"gone.csv": "absent"}, "settings": {"split": {"fold": 1}}},
    ) == [
        "inputs.changed.csv: other content",
        "inputs.gone.csv: a file -> absent",
        "inputs.late.csv: absent -> a file",
        "settings.split.fold: None -> 1",
    ]


def test_results_within_one_another_are_refused(tmp_path: Path) -> None:
    train = next(stage for stage in STAGES if stage.name == "train")

    def paths(run: str) -> Paths:
        return Paths.of(Config(run=run), tmp_path)

    write_text(paths("a/fold-0").train / "stage.json", "{}")
    runner._refuse_nested(train, paths("a/fold-0"))
    runner._refuse_nested(train, paths("a/fold-1"))
    for run in ("a", "a/fold-0/b"):
        with pytest.raises(
            runner.StageNotReady, match=r"shares nothing with other results, found .*a/fold-0; give one"
        ):
            runner._refuse_nested(train, paths(run))


def test_evaluate_owns_every_folder_that_it_writes() -> None:
    (stage,) = (stage for stage in STAGES if stage.name == "evaluate")
    assert {"masks", "volumes", "normalised", "metrics.json", "per_case.csv"} <= {*stage.owns}


def test_a_former_result_is_kept_and_taken_back(recorder, tmp_path, capsys) -> None:
    recorder.go(tmp_path, "report", with_needs=True)
    recorder.go(tmp_path, "report", "seed=7", "report.cases=2", with_needs=True)
    assert len(list((tmp_path / "data/split/sample").glob("default~*/b.txt"))) == 1
    assert len(list((tmp_path / "reports").glob("sample~report-*/report.html"))) == 1
    capsys.readouterr()
    assert recorder.go(tmp_path, "report", with_needs=True) == []
    assert (tmp_path / "data/split/sample/default/b.txt").read_text() == "RAW  1412"
    assert (tmp_path / "reports/sample/report.html").read_text().endswith(" 4")
    assert "taken back" in capsys.readouterr().out


def test_a_changed_raw_file_of_the_same_size_is_noticed(recorder, tmp_path) -> None:
    recorder.go(tmp_path, "split", with_needs=True)
    write_text(tmp_path / "data/raw/sample/raw.txt", "war")
    assert recorder.go(tmp_path, "split", with_needs=True) == ["ingest", "split"]


def test_a_touched_raw_file_reruns_nothing(recorder, tmp_path) -> None:
    recorder.go(tmp_path, "split", with_needs=True)
    write_text(tmp_path / "data/raw/sample/raw.txt", "raw")
    assert recorder.go(tmp_path, "split", with_needs=True) == []


def test_the_same_result_redone_upstream_leaves_the_rest_alone(recorder, tmp_path) -> None:
    recorder.go(tmp_path, "report", with_needs=True)
    config = load_config(None)
    runner.run("ingest", config, Paths.of(config, tmp_path), force=True)
    assert recorder.go(tmp_path, "report", with_needs=True) == []


def test_a_missing_output_is_made_again(recorder, tmp_path, capsys) -> None:
    recorder.go(tmp_path, "split", with_needs=True)
    (tmp_path / "data/split/sample/default/b.txt").unlink()
    capsys.readouterr()
    assert recorder.go(tmp_path, "split", with_needs=True) == ["split"]
    assert "1 of its files are gone" in capsys.readouterr().out


@pytest.mark.parametrize(("suffix", "noticed"), [("csv", True), ("yaml", True), ("png", False)])
def test_a_table_edited_to_the_same_size_is_made_again_and_kept(
    recorder, tmp_path, monkeypatch, suffix: str, noticed: bool
) -> None:
    module = sys.modules["pipeline.stages.split"]
    run = module.run

    def writes_a_table(config: Config, paths: Paths) -> list[str]:
        write_text(paths.split / f"table.{suffix}", "a,train\n")
        made: list[str] = run(config, paths)
        return made

    monkeypatch.setattr(module, "run", writes_a_table)
    recorder.go(tmp_path, "split", with_needs=True)
    table = tmp_path / f"data/split/sample/default/table.{suffix}"
    table.write_text("b,train\n")
    assert recorder.go(tmp_path, "split", with_needs=True) == ["split"] * noticed
    assert table.read_text() == ("a" if noticed else "b") + ",train\n"
    kept = [file.read_text() for file in (tmp_path / "data/split/sample").glob(f"default~*/table.{suffix}")]
    assert kept == ["b,train\n"] * noticed


def test_a_stage_alone_names_what_is_missing_and_how_to_make_it(recorder, tmp_path) -> None:
    with pytest.raises(runner.StageNotReady, match=r"finished result of stage ingest.*not there.*--with-needs"):
        recorder.go(tmp_path, "split")
    recorder.go(tmp_path, "report", with_needs=True)
    with pytest.raises(runner.StageNotReady, match=r"stage split, found that settings\.seed: 1412 -> 7"):
        recorder.go(tmp_path, "report", "seed=7")


def test_an_interrupted_stage_is_not_finished_and_carries_on(recorder, tmp_path, capsys) -> None:
    recorder.interrupt = "split"
    with pytest.raises(KeyboardInterrupt):
        recorder.go(tmp_path, "split", with_needs=True)
    assert not (tmp_path / "data/split/sample/default/stage.json").exists()
    recorder.interrupt = None
    capsys.readouterr()
    assert recorder.go(tmp_path, "split", with_needs=True) == ["split"]
    assert "carrying on" in capsys.readouterr().out


def test_a_full_disk_is_told_with_stage_and_file_and_carries_on(recorder, tmp_path, capsys) -> None:
    module = sys.modules["pipeline.stages.split"]
    run = module.run

    def fills_the_disk(config: Config, paths: Paths) -> list[str]:
        run(config, paths)
        with naming("case a"), written_aside(paths.split / "c.txt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    module.run = fills_the_disk  # type: ignore[attr-defined]
    file = re.escape(str(tmp_path / "data/split/sample/default/c.txt"))
    with pytest.raises(
        OSError, match=f"^{file}: expected room for what stage split writes, .* the same command carries"
    ):
        recorder.go(tmp_path, "split", with_needs=True)
    module.run = run  # type: ignore[attr-defined]
    capsys.readouterr()
    assert recorder.go(tmp_path, "split", with_needs=True) == ["split"]
    assert "carrying on" in capsys.readouterr().out


def test_a_second_command_waits_for_the_first_and_makes_nothing_twice(recorder, tmp_path, capsys) -> None:
    module = sys.modules["pipeline.stages.split"]
    begun, go_on, run = threading.Event(), threading.Event(), module.run

    def slow(config: Config, paths: Paths) -> list[str]:
        begun.set()
        assert go_on.wait(20)
        return run(config, paths)

    module.run = slow  # type: ignore[attr-defined]
    config = load_config(None, [])
    paths = Paths.of(config, tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(runner.run, "split", config, paths, with_needs=True)
        assert begun.wait(20)
        second = pool.submit(runner.run, "split", config, paths, with_needs=True)
        while "waiting for another command" not in (said := capsys.readouterr().out):
            assert not second.done()
            time.sleep(0.01)
        go_on.set()
        first.result(20)
        second.result(20)
    assert f"split     waiting for another command that makes {paths.split}" in said
    assert recorder.runs.count("split") == 1


def test_what_a_running_stage_stands_on_is_not_replaced(recorder, tmp_path) -> None:
    recorder.go(tmp_path, "report", with_needs=True)
    module = sys.modules["pipeline.stages.report"]
    config, other = load_config(None, ["report.cases=2"]), load_config(None, ["seed=7"])
    paths, run = Paths.of(config, tmp_path), module.run

    def meanwhile(*arguments: object) -> list[str]:
        with pytest.raises(runner.StageNotReady, match=r"default: expected a result that nothing reads.*split\.name"):
            runner.run("split", other, paths)
        runner.run("split", config, paths)
        done: list[str] = run(*arguments)
        return done

    module.run = meanwhile  # type: ignore[attr-defined]
    runner.run("report", config, paths, with_needs=True)
    assert (tmp_path / "reports/sample/report.html").read_text() == "RAW  1412 2"
    assert not list((tmp_path / "data/.locks").glob("*.read"))
    # One that was killed holds nothing.
    write_text(tmp_path / "data/.locks/data-split-sample-default-stage.json.0.read", "")
    runner.run("split", other, paths)
    assert (tmp_path / "data/split/sample/default/b.txt").read_text() == "RAW  7"


def test_what_another_command_replaced_before_it_was_read_is_refused(recorder, tmp_path, monkeypatch) -> None:
    config, other = load_config(None, []), load_config(None, ["seed=7"])
    paths, make = Paths.of(config, tmp_path), runner._make

    def interfering(stage: Stage, own: Config, paths: Paths, *, force: bool) -> None:
        make(stage, own, paths, force=force)
        if stage.name == "split" and own is config:
            monkeypatch.setattr(runner, "_make", make)
            pool.submit(runner.run, "split", other, paths, force=True)
            time.sleep(0.2)

    monkeypatch.setattr(runner, "_make", interfering)
    with ThreadPoolExecutor(1) as pool:
        reading = runner._reading

        def later(stage: Stage, *arguments: object) -> object:
            if stage.name == "report":
                pool.submit(lambda: None).result(20)
            return reading(stage, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(runner, "_reading", later)
        with pytest.raises(
            runner.StageNotReady, match=r"default: expected the result that this command found, found an"
        ):
            runner.run("report", config, paths, with_needs=True)
    assert "report" not in recorder.runs


def test_what_a_stage_does_not_read_is_neither_held_nor_required(recorder, tmp_path) -> None:
    """Ingest comes before the report and is read by split alone: a report stands on it through split."""
    recorder.go(tmp_path, "report", with_needs=True)
    module = sys.modules["pipeline.stages.report"]
    config = load_config(None, ["report.cases=2"])
    paths, run = Paths.of(config, tmp_path), module.run

    def meanwhile(*arguments: object) -> list[str]:
        runner.run("ingest", config, paths, force=True)
        done: list[str] = run(*arguments)
        return done

    module.run = meanwhile  # type: ignore[attr-defined]
    runner.run("report", config, paths, with_needs=True)
    real = load_config(None, ["dataset=d"])
    names = [stage.name for stage in runner._read_for("report", real, Paths.of(real, tmp_path))]
    assert "ingest" in names


@pytest.mark.parametrize("name", ["predict", "evaluate", "submit"])
def test_a_sheet_of_augmented_images_is_no_reason_to_refuse_what_a_run_is_used_for(tmp_path: Path, name: str) -> None:
    config = load_config(None, ["dataset=d"])
    read = [stage.name for stage in runner._read_for(name, config, Paths.of(config, tmp_path))]
    assert "augment" not in read and {"ingest", "split", "train"} <= {*read}
    assert "augment" in [stage.name for stage in runner.needed_for(name)]


def test_normalised_images_of_two_splits_stand_side_by_side(tmp_path: Path) -> None:
    def folder(*settings: str) -> str:
        config = load_config(None, ["dataset=d", *settings])
        return Paths.of(config, tmp_path).normalise.name

    assert folder("split.name=n2") == folder() == "none"
    assert folder("normalise.method=macenko") == "macenko"
    assert folder("normalise.method=macenko", "split.name=n2") == "macenko-n2"
    assert folder("normalise.method=macenko", "split.folds=3", "split.fold=1") == "macenko-fold-1"


def test_what_a_stage_refused_is_not_kept(recorder, tmp_path) -> None:
    module = sys.modules["pipeline.stages.split"]
    run = module.run

    def refuses(*arguments: object) -> list[str]:
        run(*arguments)
        raise ValueError("three masks are damaged")

    module.run = refuses  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="damaged"):
        recorder.go(tmp_path, "split", with_needs=True)
    module.run = run  # type: ignore[attr-defined]
    recorder.go(tmp_path, "split", "seed=7")
    assert not list((tmp_path / "data/split/sample").glob("default~*"))
    recorder.interrupt = "ingest"
    write_text(tmp_path / "data/raw/sample/raw.txt", "mended")
    with pytest.raises(KeyboardInterrupt):
        recorder.go(tmp_path, "ingest")
    recorder.interrupt = None
    write_text(tmp_path / "data/raw/sample/raw.txt", "mended again")
    recorder.go(tmp_path, "ingest")
    # What was finished is kept, what was begun from files that are gone is not.
    assert len(list((tmp_path / "data/ingest").glob("sample~*"))) == 1


def test_what_was_begun_with_other_settings_is_kept_and_taken_up_again(recorder, tmp_path, capsys) -> None:
    recorder.interrupt = "split"
    with pytest.raises(KeyboardInterrupt):
        recorder.go(tmp_path, "split", with_needs=True)
    write_text(tmp_path / "data/split/sample/default/half.txt", "hours of work")
    with pytest.raises(KeyboardInterrupt):
        recorder.go(tmp_path, "split", "seed=7")
    said = capsys.readouterr().out
    assert "was interrupted with other settings: settings.seed: 1412 -> 7" in said and "is kept in" in said
    recorder.interrupt = None
    recorder.go(tmp_path, "split")
    assert (tmp_path / "data/split/sample/default/half.txt").read_text() == "hours of work"
    assert "carrying on where it was interrupted" in capsys.readouterr().out
    recorder.go(tmp_path, "split", "seed=7")
    assert (tmp_path / "data/split/sample/default/b.txt").read_text() == "RAW  7"


def killed_at(step: int, root: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[[], object]) -> bool:
    """Kill a command at its so-many-th change to files below reports/; False where it made fewer, and ended."""
    changes_made = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            nonlocal changes_made
            changes_made += str(root / "reports") in str(given[0])
            if changes_made > step:
                raise KeyboardInterrupt
            return change(*given, **named)

        return wrapped

    with monkeypatch.context() as patch:
        for where, name in ((os, "link"), (shutil, "rmtree"), (Path, "rename"), (Path, "replace"), (Path, "unlink")):
            patch.setattr(where, name, counted(getattr(where, name)))
        try:
            command()
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("links", [True, False])
def test_killed_at_any_step_of_setting_aside_or_taking_back_no_result_of_a_shared_folder_is_lost(
    recorder, tmp_path, monkeypatch, links: bool
) -> None:
    stage, module = runner.BY_NAME["report"], sys.modules["pipeline.stages.report"]
    stage.owns, made = ("report.html", "masks", "objects.csv"), module.run
    shown, former, former_and_other = (tmp_path / name for name in ("reports", "former", "former and other"))

    def with_more_files(config: Config, paths: Paths) -> list[str]:
        for name in ("masks/b.png", "objects.csv"):
            write_text(paths.reports / name, f"of {config.report.cases}")
        done: list[str] = made(config, paths)
        return done

    def refused(*_: object) -> None:
        raise OSError("no links here")

    def killed_anywhere(begin: Path, cases: int) -> Iterator[None]:
        for step in range(60):
            shutil.rmtree(shown)
            shutil.copytree(begin, shown)
            killed = killed_at(
                step, tmp_path, monkeypatch, lambda: recorder.go(tmp_path, "report", f"report.cases={cases}")
            )
            yield
            if not killed:
                return
        raise AssertionError("more steps than were looked for")

    module.run = with_more_files  # type: ignore[attr-defined]
    if not links:
        monkeypatch.setattr(os, "link", refused)
    recorder.go(tmp_path, "report", with_needs=True)
    shutil.copytree(shown, former)
    recorder.go(tmp_path, "report", "report.cases=2")
    shutil.copytree(shown, former_and_other)
    for _ in killed_anywhere(former, 2):
        assert recorder.go(tmp_path, "report") == []
        assert (shown / "sample" / "masks" / "b.png").read_text() == "of 4"
    for _ in killed_anywhere(former_and_other, 4):
        for cases in (2, 4):
            assert recorder.go(tmp_path, "report", f"report.cases={cases}") == []
            assert (shown / "sample" / "masks" / "b.png").read_text() == f"of {cases}"


def test_an_interrupted_stage_with_other_settings_starts_clean(recorder, tmp_path) -> None:
    recorder.interrupt = "split"
    with pytest.raises(KeyboardInterrupt):
        recorder.go(tmp_path, "split", with_needs=True)
    write_text(tmp_path / "data/split/sample/default/stale.txt", "of the other seed")
    recorder.interrupt = None
    recorder.go(tmp_path, "split", "seed=7", with_needs=True)
    assert not (tmp_path / "data/split/sample/default/stale.txt").exists()


def test_force_overwrites_and_keeps_nothing_aside(recorder, tmp_path) -> None:
    recorder.go(tmp_path, "split", with_needs=True)
    assert recorder.go(tmp_path, "split", "seed=7", force=True) == ["split"]
    assert not list((tmp_path / "data/split/sample").glob("default~*"))


@pytest.mark.parametrize("name", ["split", "report"])
def test_what_is_refused_under_force_leaves_the_former_result(recorder, tmp_path, monkeypatch, name: str) -> None:
    recorder.go(tmp_path, "report", with_needs=True)
    folder = {"split": tmp_path / "data/split/sample", "report": tmp_path / "reports"}[name]
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def refuses(*_: object) -> list[str]:
        raise ValueError("test cases took part in training")

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[f"pipeline.stages.{name}"], "run", refuses)
        with pytest.raises(ValueError, match="took part"):
            recorder.go(tmp_path, name, force=True)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert recorder.go(tmp_path, name) == []
