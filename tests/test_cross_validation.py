"""Cross-validation: no leak between folds, figures in closed form, and a small one from raw files to its table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.config import ConfigError
from pipeline.cross_validation import as_table, doubtful, fold_configs, pool, run_cross_validation
from pipeline.metrics.summary import per_case_table
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


def test_what_label_and_prediction_share_least_comes_first() -> None:
    table = scores({"a": 0.5, "b": 0.1, "c": 0.9}, "g").assign(fold=0)
    assert doubtful(table)["case_id"].tolist() == ["b", "a", "c"]


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


def test_every_case_is_scored_once_by_a_run_that_never_saw_its_group(
    tmp_path: Path, sample_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "sample").symlink_to(sample_folder)
    run_cross_validation(None, TINY, tmp_path)
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
    with (folder / "per_case.csv").open() as stream:
        assert sorted(row["case_id"] for row in csv.DictReader(stream)) == sorted(tested)
    assert read_image(folder / "labels_to_check.png").shape[1] == 3 * 392
    weights = paths.train / "best.pt"
    made = weights.stat().st_mtime_ns
    run_cross_validation(None, TINY, tmp_path)
    assert weights.stat().st_mtime_ns == made
