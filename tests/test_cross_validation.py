"""Cross-validation: no leak between folds, figures in closed form, and a small one from raw files to its table."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.config import Config, ConfigError
from pipeline.cross_validation import as_table, draw_scores, fold_configs, pool, run_cross_validation
from pipeline.metrics.summary import per_case_table
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image
from pipeline.records.split import read_parts, read_split_table

TINY = [
    "dataset=sample", "run=tiny", "ingest.group_csv=truth/groups.csv", "split.folds=2", "split.test_share=0.25",
    "split.validation_share=0.25", "augment.crop=64", "train.network.width=4", "train.network.depth=2",
    "train.steps=3", "train.batch=2", "train.validations=1", "compute.threads=1", "compute.workers=0",
]  # fmt: skip


def scores(dice: dict[str, float], group: str) -> pd.DataFrame:
    rows = [
        {"case_id": case_id, "group": f"{group}-{n}", "stratum": "one", "dice": value, "iou": value, "tp": 1, "fp": 0,
         "fn": 0}
        for n, (case_id, value) in enumerate(dice.items())
    ]  # fmt: skip
    return per_case_table(rows)


def test_folds_are_pooled_by_case_and_their_spread_is_that_of_their_means() -> None:
    content = pool([scores({"a": 0.5, "b": 0.7, "c": 0.9}, "g"), scores({"d": 0.1}, "h")])
    assert content["out_of_fold"]["dice"]["mean"] == pytest.approx(0.55)
    assert content["by_fold"]["dice"]["means"] == [pytest.approx(0.7), pytest.approx(0.1)]
    assert content["by_fold"]["dice"]["spread"] == pytest.approx(0.6 / 2**0.5, abs=1e-6)
    assert "| all | 4 | 0.550 |" in as_table({"run": "made", **content})


def test_a_group_or_case_in_two_folds_is_refused() -> None:
    with pytest.raises(ValueError, match="found in several: g-0"):
        pool([scores({"a": 0.5}, "g"), scores({"b": 0.5}, "g")])
    with pytest.raises(ValueError, match="found in several: a"):
        pool([scores({"a": 0.5}, "g"), scores({"a": 0.5}, "h")])


def test_the_figure_has_a_panel_a_score(tmp_path: Path) -> None:
    content = {"run": "made", **pool([scores({"a": 0.5, "b": 0.7}, "g"), scores({"c": 0.1}, "h")])}
    draw_scores(content, tmp_path / "one.png")
    content["out_of_fold"]["ap"] = content["out_of_fold"]["dice"]
    draw_scores(content, tmp_path / "two.png")
    one, two = (read_image(tmp_path / name) for name in ("one.png", "two.png"))
    assert two.shape[1] > one.shape[1] and one.std() > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.task=classification"], "expects train.task=segmentation, found classification"),
        (["split.fold=1"], "no split.fold"),
        (["train.members=[a,b]"], "cross-validate the members"),
        (["split.folds=3", "split.fold=3"], "one of the 3 folds, 0 to 2, found 3"),
    ],
)
def test_what_cannot_be_cross_validated_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fold_configs(None, settings)


def with_sample(root: Path, sample: Path) -> Path:
    (root / "data" / "raw").mkdir(parents=True)
    (root / "data" / "raw" / "sample").symlink_to(sample)
    return root


def test_every_case_is_scored_once_by_a_run_that_never_saw_its_group(
    tmp_path: Path, sample_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_cross_validation(None, TINY, with_sample(tmp_path, sample_folder))
    assert "| all |" in capsys.readouterr().out
    tested: list[str] = []
    for config in fold_configs(None, TINY):
        paths = Paths.of(config, tmp_path)
        parts, rows = read_parts(paths), read_split_table(paths.split_table)
        held_out = {case_id for case_id, row in rows.items() if row["part"] == "held_out"}
        groups = {
            part: {rows[case.case_id]["group"] for case in parts[part]} for part in ("train", "validation", "test")
        }
        assert held_out and not {rows[case_id]["group"] for case_id in held_out} & set.union(*groups.values())
        assert not groups["test"] & (groups["train"] | groups["validation"])
        assert not groups["train"] & groups["validation"] and all(groups.values())
        seen = json.loads((paths.train / "thresholds.json").read_text())
        assert not held_out & {*seen["trained_on"], *seen["chosen_on"]["cases"]}
        proof = json.loads(paths.proof.read_text())
        assert proof["held_out"]["cases"] == len(held_out) and not proof["joins_across_parts"]
        tested += [case.case_id for case in parts["test"]]
        assert {*tested} | held_out <= {*rows}
    assert sorted(tested) == sorted({*rows} - held_out)
    folder = tmp_path / "reports" / "cv" / "tiny"
    tables = {}
    for name in ("per_case", "labels_to_check"):
        with (folder / f"{name}.csv").open() as stream:
            tables[name] = list(csv.DictReader(stream))
        assert sorted(row["case_id"] for row in tables[name]) == sorted(tested)
    of_fold = {row["case_id"]: row["fold"] for row in tables["per_case"]}
    assert of_fold == {case_id: rows[case_id]["fold"] for case_id in tested}
    shares = [float(row["contradicted"]) for row in tables["labels_to_check"]]
    assert shares == sorted(shares, reverse=True) and 0.0 <= shares[-1] <= shares[0] <= 1.0
    assert all(read_image(folder / name).std() > 1 for name in ("labels_to_check.png", "scores.png"))
    assert {file.name for file in (tmp_path / "data/augment/sample").iterdir()} == {"tissue-fold-0", "tissue-fold-1"}


def test_killed_it_carries_on_and_trains_nothing_again(
    tmp_path: Path, sample_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_sample(tmp_path, sample_folder)
    ran: list[str] = []
    stage = importlib.import_module("pipeline.stages.train")
    train, tune = stage.run, stage._tune

    def recorded(config: Config, paths: Paths) -> list[str]:
        ran.append(config.run)
        return train(config, paths)

    def killed(*_: object) -> None:
        if ran[-1].endswith("fold-1"):
            raise KeyboardInterrupt
        return tune(*_)

    monkeypatch.setattr(stage, "run", recorded)
    with monkeypatch.context() as once:
        once.setattr(stage, "_tune", killed)
        with pytest.raises(KeyboardInterrupt):
            run_cross_validation(None, TINY, tmp_path)
    assert not (tmp_path / "reports/cv/tiny/metrics.json").exists()
    run_cross_validation(None, TINY, tmp_path)
    assert ran == ["cv/tiny/fold-0", "cv/tiny/fold-1", "cv/tiny/fold-1"]
    folder = tmp_path / "reports/cv/tiny"
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    run_cross_validation(None, TINY, tmp_path)
    assert len(ran) == 3
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    assert not [*folder.parent.glob("tiny~*")]
    run_cross_validation(None, [*TINY, "evaluate.resamples=2001"], tmp_path)
    (kept,) = folder.parent.glob("tiny~*")
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == before and len(ran) == 3


def test_what_a_fold_lacks_is_told_of_every_fold_before_anything_is_trained(
    tmp_path: Path, sample_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_sample(tmp_path, sample_folder)
    monkeypatch.setattr("pipeline.stages.train.run", lambda *_: pytest.fail("something was trained"))
    with pytest.raises(ValueError, match=r"split\.validation_share: expected a share .* found 0"):
        run_cross_validation(None, [*TINY, "split.validation_share=0"], tmp_path)
    assert not (tmp_path / "data/split").exists()
    with monkeypatch.context() as lacking:
        whole = read_parts
        lacking.setattr("pipeline.cross_validation.read_parts", lambda paths: whole(paths) | {"validation": []})
        with pytest.raises(ValueError, match=r"fold 0: .* none in validation\n  fold 1: (.|\n)*Nothing was trained"):
            run_cross_validation(None, TINY, tmp_path)

    class Trained:
        def seen_among(self, cases: list[Case], config: Config, of_split: dict[str, str]) -> str:
            return f"{len(cases)} that did" if config.split.fold else ""

    monkeypatch.setattr("pipeline.trained.open_run", lambda folder: Trained())
    learned = ["normalise.method=learned", "normalise.run=normalisers/unet"]
    with pytest.raises(ValueError, match=r"fold 1: normalise.run=normalisers/unet learned from") as told:
        run_cross_validation(None, [*TINY, *learned], tmp_path)
    assert "fold 0" not in str(told.value)
