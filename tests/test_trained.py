"""A trained run's folder: what is told where there is none, and what a run has seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import Config, dump_config, load_config
from pipeline.outputs import Outputs
from pipeline.records.case import Case, write_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.records.seen import Seen
from pipeline.stages.train import _inherited, _members, _write_chosen
from pipeline.trained import NEEDED, check_seen, named_run, open_run


def put(root: Path, run: str, names: tuple[str, ...]) -> None:
    (root / "data" / "train" / run).mkdir(parents=True)
    for name in names:
        (root / "data" / "train" / run / name).touch()


def test_only_finished_runs_are_offered_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "sample", NEEDED)
    put(tmp_path, "normalisers/unet", NEEDED)
    put(tmp_path, "normalisers/failed", tuple(name for name in NEEDED if name != "best.pt"))
    put(tmp_path, "sample/fold-1", NEEDED)
    for missing in ("absent", "normalisers/absent", "absent/deeper/still"):
        with pytest.raises(ValueError, match=r"runs normalisers/unet, sample, sample/fold-1$"):
            open_run(tmp_path / "data" / "train" / missing)
    with pytest.raises(ValueError, match=r"elsewhere/absent: expected a trained run.*make one with `make train`"):
        open_run(tmp_path / "elsewhere" / "absent")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^data/train/unet: .*there are the trained runs normalisers/unet, sample"):
        named_run("unet")


@pytest.mark.parametrize("content", ["{", "[1]", '{"schema_version": 1}'])
def test_a_damaged_record_is_named(content: str, untrained_run: Path) -> None:
    (untrained_run / "thresholds.json").write_text(content)
    with pytest.raises(ValueError, match=r"tiny/thresholds\.json: expected .* found .*; train again"):
        open_run(untrained_run).thresholds()


def case(case_id: str, group: str | None, dataset: str) -> Case:
    return Case(case_id, dataset, f"{case_id}.png", None, "none", group, None, 9, 9, None, "")


@pytest.fixture
def stain(tmp_path: Path) -> Config:
    """A run that made images of the data set pairs, recorded without the groups that it learned from."""
    config = load_config(None, ["dataset=pairs", "run=stain", "train.task=translation"])
    paths = Paths.of(config, tmp_path)
    write_cases(paths.cases, [case("a", "patient-1", "pairs"), case("b", "patient-2", "pairs")])
    write_text(paths.train / "config.yaml", dump_config(config))
    write_json(paths.train / "model.json", Outputs("image", ("red", "green", "blue"), "identity", "image").as_dict())
    write_json(paths.train / "thresholds.json", {"trained_on": ["a"], "chosen_on": {"cases": []}, "thresholds": {}})
    return config


def test_a_record_without_groups_takes_them_from_the_ingested_cases(stain: Config, tmp_path: Path) -> None:
    assert open_run(Paths.of(stain, tmp_path).train).seen.groups == {"patient-1"}


@pytest.mark.parametrize("groups", ["auto", "given", "pixels", "none"])
def test_a_split_past_patients_looks_past_those_of_its_own_data_set_alone(
    groups: str, stain: Config, tmp_path: Path
) -> None:
    trained = open_run(Paths.of(stain, tmp_path).train)
    here, there = (load_config(None, [f"split.groups={groups}", f"dataset={name}"]) for name in ("pairs", "slides"))
    again = trained.seen_among([case("c", "patient-1", "pairs")], here, {})
    assert bool(again) == (groups in ("auto", "given"))
    assert trained.seen_among([case("a", "patient-1", "pairs")], here, {}).startswith("1 that did (a)")
    assert trained.seen_among([case("x", "patient-1", "slides")], there, {}).startswith("1 that did (x)")
    assert trained.seen_among([case("x", "patient-3", "slides")], there, {}) == ""


@pytest.mark.parametrize("groups", ["auto", "given", "pixels", "none"])
def test_a_run_keeps_the_groups_that_its_split_found(groups: str, stain: Config, tmp_path: Path) -> None:
    paths = Paths.of(stain, tmp_path)
    write_text(paths.split_table, "case_id,group,stratum,part,fold\na1,a0,,train,\nb,b,,test,\n")
    parts = {"train": [case("a1", None, "pairs")], "validation": []}
    _write_chosen(paths, parts, {}, None, Seen())
    trained, here = open_run(paths.train), load_config(None, [f"split.groups={groups}", "dataset=pairs"])
    tested = [case("a2", None, "pairs"), case("b", None, "pairs")]
    told = trained.seen_among(tested, here, {"a2": "a0", "b": "b"})
    assert told == ("1 that did (a2), of them by other images of the groups a0" if groups in ("auto", "pixels") else "")
    if told:
        with pytest.raises(ValueError, match=r"took no part in training .* found 1 that did \(a2\)"):
            check_seen(here, tested, {"a2": "a0", "b": "b"}, [trained])


def test_a_normaliser_that_saw_the_test_patients_elsewhere_is_refused(
    stain: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(None, ["dataset=slides", "normalise.method=learned", "normalise.run=stain"])
    paths = Paths.of(config, tmp_path)
    with pytest.raises(
        ValueError, match=r"found 1 that did \(x\), .* patient-1: normalise.run=stain learned from them"
    ):
        _inherited(config, paths, [case("x", "patient-1", "slides"), case("y", "patient-3", "slides")])
    inherited = _inherited(config, paths, [case("y", "patient-3", "slides")])
    assert json.loads(json.dumps(inherited.as_dict())) == {
        "cases": {"pairs": ["a"]}, "groups": ["patient-1"], "split_groups": {"pairs": []},
    }  # fmt: skip
    assert capsys.readouterr().out == ""
    _inherited(config, paths, [case("z", None, "slides")])
    assert "noted: normalise.run=stain: whether images of pairs" in capsys.readouterr().out


def test_members_of_another_stain_than_the_settings_are_told_as_such(untrained_run: Path) -> None:
    config = load_config(None, ["dataset=sample", "run=both", "train.members=[tiny]", "normalise.method=macenko"])
    with pytest.raises(ValueError, match=r"tiny has normalise\.method none, these settings macenko") as told:
        _members(config, Paths.of(config, untrained_run.parents[2]))
    assert "dimensions" not in str(told.value)
