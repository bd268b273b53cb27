"""Scores of a case, and intervals: constants, hand-made sets, SciPy's bootstrap, and how often the truth is covered."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.metrics.instance import overlaps, panoptic_quality
from pipeline.metrics.summary import (
    IDENTITY_COLUMNS,
    METRICS_SCHEMA,
    SCORE_COLUMNS,
    interval,
    per_case_table,
    score_case,
    score_object_classes,
    summarise,
)
from pipeline.records.case import IGNORED


def dice_table(scores: np.ndarray, groups: list[str | None] | None = None) -> pd.DataFrame:
    """Semantic cases with given Dice, all with the same pixel counts."""
    groups = groups or [f"g{number:03}" for number in range(len(scores))]
    return per_case_table(
        {"case_id": f"c{number:04}", "group": group, "stratum": "a", "height": 9, "width": 9,
         "dice": score, "iou": score, "tp": 3, "fp": 1, "fn": 2}
        for number, (score, group) in enumerate(zip(scores, groups, strict=True))
    )  # fmt: skip


def instance_row(case_id: str, group: str | None, shift: int, stratum: str = "tissue") -> dict[str, Any]:
    truth = np.zeros((20, 40), np.uint16)
    truth[2:12, 5:15] = 7
    return {
        "case_id": case_id,
        "group": group,
        "stratum": stratum,
        **score_case(truth, np.roll(truth, shift, 1), "instance"),
    }


def test_a_case_of_one_nucleus() -> None:
    row = instance_row("a", None, 2)
    assert {key: row[key] for key in ("height", "width", "truth_objects", "predicted_objects")} == {
        "height": 20, "width": 40, "truth_objects": 1, "predicted_objects": 1,
    }  # fmt: skip
    assert row["dice"] == pytest.approx(0.8)
    assert row["iou"] == row["sq"] == row["pq"] == row["aji"] == pytest.approx(2 / 3)
    assert row["ap"] == pytest.approx(0.4)
    assert (row["ap_50"], row["ap_75"], row["f1_50"], row["f1_70"]) == (1.0, 0.0, 1.0, 0.0)
    assert (row["tp"], row["fp"], row["fn"]) == (80, 20, 20)
    assert (row["tp_70"], row["fp_70"], row["fn_70"]) == (0, 1, 1)
    assert {*row} - {"case_id", "group", "stratum", "height", "width"} == {*SCORE_COLUMNS}


def test_semantic_cases_have_no_object_scores() -> None:
    truth = np.array([[0, 1], [1, IGNORED]], np.uint16)
    row = score_case(truth, np.array([[0, 5], [0, 1]]), "semantic")
    assert (row["dice"], row["iou"]) == (pytest.approx(2 / 3), 0.5)
    assert row["truth_objects"] is row["ap"] is row["merged"] is None


def test_classes() -> None:
    truth, prediction = np.array([[1, 1, 2, 0]]), np.array([[1, 2, 2, 0]])
    row = score_case(truth, prediction, "semantic", classes=3)
    assert row["dice_class_1"] == row["dice_class_2"] == pytest.approx(2 / 3)
    assert row["dice_class_3"] is None
    assert row["dice"] == pytest.approx(2 / 3)
    assert (row["tp_class_1"], row["fn_class_1"], row["fp_class_2"], row["tp_class_3"]) == (1, 1, 1, 0)
    table = per_case_table([{"case_id": "a", "group": None, "stratum": None, **row}])
    assert list(table.columns[-12:-8]) == ["dice_class_1", "fn_class_1", "fp_class_1", "tp_class_1"]
    content = summarise(table, "test")["test"]
    assert "dice_class_3" not in content
    assert content["dice_pooled"]["mean"] == pytest.approx(2 / 3, abs=1e-6)
    assert content["iou_pooled"]["mean"] == 0.5


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="found 'none'"):
        score_case(np.zeros((2, 2), int), np.zeros((2, 2), int), "none")
    with pytest.raises(ValueError, match="truth of one class, 0 and 1, found 2"):
        score_case(np.full((2, 2), 2), np.zeros((2, 2), int), "semantic")
    with pytest.raises(ValueError, match="at least 2000 resamples, found 100"):
        summarise(dice_table(np.ones(3)), "test", 100)
    with pytest.raises(ValueError, match="part validation: expected scored cases, found none of 2"):
        summarise(dice_table(np.full(2, np.nan)), "validation")
    with pytest.raises(ValueError, match="every case once, found again: a"):
        per_case_table([instance_row("a", None, 0)] * 2)


def test_a_constant_has_no_spread() -> None:
    content = summarise(dice_table(np.full(12, 0.7)), "test")
    assert content["test"]["dice"] == {"mean": 0.7, "low": 0.7, "high": 0.7, "groups": 12, "cases": 12}
    assert content["test"]["dice_pooled"] == {
        "mean": round(6 / 9, 6), "low": round(6 / 9, 6), "high": round(6 / 9, 6), "groups": 12, "cases": 12,
    }  # fmt: skip
    assert "ap" not in content["test"]
    assert content["objects"] is None


@pytest.mark.parametrize(("count", "given"), [(9, False), (10, True)])
def test_no_interval_below_ten_groups(count: int, given: bool) -> None:
    groups = [f"g{number % count}" for number in range(40)]
    entry = summarise(dice_table(np.linspace(0, 1, 40), groups), "test")["test"]["dice"]
    assert (entry["groups"], entry["cases"]) == (count, 40)
    assert (entry["low"] is not None) == (entry["high"] is not None) == given


def test_a_case_without_group_is_its_own() -> None:
    content = summarise(dice_table(np.linspace(0, 1, 12), ["g0", "g0", None, ""] + [None] * 8), "test")
    assert content["groups"] == content["test"]["dice"]["groups"] == 11


def test_pooled_scores_add_counts_up() -> None:
    table = per_case_table([instance_row("a", "1", 0), instance_row("b", "2", 4)])
    content = summarise(table, "test")
    scores = content["test"]
    assert content["objects"] == 2
    assert scores["dice"]["mean"] == pytest.approx((1 + 0.6) / 2)
    assert scores["dice_pooled"]["mean"] == pytest.approx(2 * 160 / 400)
    assert scores["iou_pooled"]["mean"] == pytest.approx(160 / 240, abs=1e-6)
    assert scores["recall_70_pooled"]["mean"] == scores["precision_70_pooled"]["mean"] == 0.5
    assert scores["f1_70_pooled"]["mean"] == 0.5


def test_pooled_scores_of_empty_images() -> None:
    nothing, something = np.zeros((4, 4), np.uint16), np.ones((4, 4), np.uint16)
    name = {"case_id": "a", "group": None, "stratum": None}
    for prediction, score in ((nothing, 1.0), (something, 0.0)):
        scores = summarise(per_case_table([{**name, **score_case(nothing, prediction, "instance")}]), "test")["test"]
        for metric in (
            "dice",
            "ap",
            "dice_pooled",
            "iou_pooled",
            "recall_70_pooled",
            "precision_70_pooled",
            "f1_70_pooled",
        ):
            assert scores[metric]["mean"] == score, metric


def test_more_images_of_the_same_patients_bring_no_certainty() -> None:
    scores = np.random.default_rng(0).random(15)
    groups: list[str | None] = [f"g{number:03}" for number in range(15)]
    once = summarise(dice_table(scores), "test")["test"]["dice"]
    thrice = summarise(dice_table(np.tile(scores, 3), groups * 3), "test")["test"]["dice"]
    assert {**thrice, "cases": 15} == once


def test_rows_in_another_order_give_the_same_bytes() -> None:
    table = dice_table(np.random.default_rng(0).random(30), [f"g{number % 13}" for number in range(30)])
    again = table.sample(frac=1.0, random_state=1)
    assert json.dumps(summarise(table, "test")) == json.dumps(summarise(again, "test"))
    assert json.dumps(summarise(table, "test")) != json.dumps(summarise(table, "test", seed=5) | {"seed": 1412})


def test_blocks_of_resamples_join(monkeypatch: pytest.MonkeyPatch) -> None:
    table = dice_table(np.random.default_rng(0).random(30))
    whole = summarise(table, "test")
    monkeypatch.setattr("pipeline.metrics.summary._BLOCK_DRAWS", 1000)
    assert summarise(table, "test") == whole


def test_interval_equals_scipys() -> None:
    scores = np.random.default_rng(3).beta(5, 2, 40)
    entry = summarise(dice_table(scores), "test", resamples=20_000)["test"]["dice"]
    theirs = stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(1),
        confidence_level=1 - 2 * float(stats.norm.cdf(-stats.t.ppf(0.975, 39) * np.sqrt(40 / 39))),
    ).confidence_interval  # fmt: skip
    assert (entry["low"], entry["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """20 patients of 1 to 5 images whose scores share the patient's level; the patients' mean is 0.6."""
    random = np.random.default_rng(11)
    covered = narrow = 0
    for _ in range(60):
        images = np.full(20, 3)
        levels = np.repeat(random.normal(0.6, 0.1, 20), images)
        groups: list[str | None] = list(np.repeat([f"g{number:02}" for number in range(20)], images))
        scores = levels + random.normal(0, 0.02, levels.size)
        by_group = summarise(dice_table(scores, groups), "test")["test"]["dice"]
        covered += by_group["low"] <= 0.6 <= by_group["high"]
        spread = 1.96 * scores.std() / np.sqrt(scores.size)
        narrow += abs(scores.mean() - 0.6) <= spread
    assert 0.83 <= covered / 60 <= 1.0
    assert narrow / 60 < 0.85, "taking images as independent would promise too much"


@pytest.mark.parametrize("groups", [10, 16])
def test_intervals_of_few_groups_hold_the_truth_as_often_as_they_say(groups: int) -> None:
    """Of so few the percentiles 2.5 and 97.5 hold it in 90 and 92 of 100."""
    random = np.random.default_rng(5)
    levels = random.normal(0.6, 0.1, (1000, groups))
    drawn = random.multinomial(groups, np.full(groups, 1 / groups), 2000) / groups
    bounds = [interval(drawn @ row, groups) for row in levels]
    assert 0.93 <= np.mean([low <= 0.6 <= high for low, high in bounds]) <= 0.965


def test_strata_and_unscored_cases() -> None:
    rows = [instance_row(f"a{n}", f"p{n}", n % 3, "tissue") for n in range(11)]
    rows += [instance_row(f"b{n}", "q", 3, "fluorescence") for n in range(3)]
    rows += [instance_row("c", None, 1) | {"stratum": None}, {"case_id": "d", "group": None, "stratum": "tissue"}]
    table = per_case_table(rows)
    content = summarise(table, "test", seed=7)
    assert (content["cases"], content["unscored"], content["groups"], content["objects"]) == (15, 1, 13, 15)
    assert list(content["by_stratum"]) == ["fluorescence", "tissue", "unknown"]
    tissue = content["by_stratum"]["tissue"]
    alone = summarise(per_case_table(rows[:11]), "test", seed=7)
    assert tissue == alone["test"]
    assert content["by_stratum"]["fluorescence"]["ap"]["low"] is None


def test_the_schema_names_everything_that_is_written() -> None:
    truth = np.array([[1, 1, 2, 0]])
    named = {"case_id": "b", "group": None, "stratum": None}
    for row in (instance_row("a", None, 1), {**named, **score_case(truth, truth, "semantic", classes=2)}):
        content = summarise(per_case_table([row]), "test")
        documented = " ".join(METRICS_SCHEMA)
        for key in content:
            assert key in METRICS_SCHEMA or key in ("test", "by_stratum")
        for metric, entry in content["test"].items():
            assert re.sub(r"\d+$", "<k>", metric) in documented or metric in documented
            assert list(entry) == ["mean", "low", "high", "groups", "cases"]
        json.dumps(content, allow_nan=False)


def test_per_case_csv_comes_back(tmp_path: Path) -> None:
    table = per_case_table([instance_row("b", "1", 1), instance_row("a", None, 2), {"case_id": "c"}])
    assert list(table.columns) == [*IDENTITY_COLUMNS, *SCORE_COLUMNS]
    assert table["case_id"].tolist() == ["a", "b", "c"]
    file = tmp_path / "per_case.csv"
    table.to_csv(file, index=False, lineterminator="\n")
    assert file.read_text().splitlines()[2].startswith("b,1,tissue,20,40,1,1,0.9,")
    assert summarise(pd.read_csv(file), "test") == summarise(table, "test")


def three_nuclei() -> np.ndarray:
    labels = np.zeros((20, 40), np.uint16)
    for number in range(3):
        labels[2:12, 12 * number : 12 * number + 10] = number + 1
    return labels


def test_an_object_counts_for_its_own_class_alone() -> None:
    truth, names = three_nuclei(), ["a", "b", "c"]
    # Every outline is right; the second object has the wrong class.
    row = score_object_classes(truth, truth, ["a", "b", "a"], ["a", "a", "a"], names)
    assert row["bpq"] == 1.0 and row["pq_class_1"] == pytest.approx(2 / 2.5)  # 2 found, 1 spurious
    assert (row["pq_class_2"], row["pq_class_3"], row["mpq"]) == (0.0, None, pytest.approx(0.4))
    # What the truth has none of says nothing, whatever is predicted.
    empty = np.zeros_like(truth)
    assert set(score_object_classes(empty, truth, [], ["a", "b", "c"], names).values()) == {None}
    assert score_object_classes(truth, empty, ["a", "b", "c"], [], names)["mpq"] == 0.0
    ignored = np.where(truth == 2, IGNORED, truth)
    row = score_object_classes(ignored, truth, ["a", "b", "a"], ["a", "b", "a"], names)
    assert (row["pq_class_1"], row["pq_class_2"], row["mpq"]) == (1.0, None, 1.0)
    with pytest.raises(ValueError, match="classes a, b, c, found d, predicted object 3 beyond the 2 classes told"):
        score_object_classes(truth, truth, ["a", "b", "d"], ["a", "a"], names)


@pytest.mark.parametrize("seed", range(4))
def test_class_scores_are_those_of_each_class_counted_anew(seed: int) -> None:
    random = np.random.default_rng(seed)
    blocks = np.kron(random.integers(0, 30, (10, 10)), np.ones((6, 6), int)).astype(np.uint16)
    truth, prediction = blocks, np.roll(blocks, 2, 1)
    names = ["a", "b", "c"]
    classes = [[names[number] for number in random.integers(0, 3, 30)] for _ in range(2)]
    row = score_object_classes(truth, prediction, *classes, names)
    for number, name in enumerate(names, start=1):
        alone = [
            np.where(np.isin(labels, 1 + np.flatnonzero(np.array(own) == name)), labels, 0)
            for labels, own in ((truth, classes[0]), (prediction, classes[1]))
        ]
        assert row[f"pq_class_{number}"] == pytest.approx(panoptic_quality(overlaps(*alone)).pq)


def test_bpq_and_mpq_are_means_over_strata() -> None:
    rows = []
    for number, (stratum, bpq, mpq) in enumerate(
        [("breast", 0.8, 0.5), ("breast", 0.6, None), ("breast", 0.4, 0.1), ("liver", 0.2, 0.9), ("skin", None, None)]
    ):
        row = instance_row(f"c{number}", None, 0, stratum)
        rows.append(row | {"bpq": bpq, "mpq": mpq, "pq_class_1": mpq})
    content = summarise(per_case_table(rows), "test")
    scores = content["test"]
    assert scores["bpq"]["mean"] == pytest.approx((0.6 + 0.2) / 2)
    assert (scores["mpq"]["mean"], scores["mpq"]["cases"]) == (pytest.approx((0.3 + 0.9) / 2), 3)
    assert scores["pq_class_1"]["mean"] == pytest.approx(0.5)
    assert content["by_stratum"]["breast"]["mpq"]["mean"] == pytest.approx(0.3)
    assert "mpq" not in content["by_stratum"]["skin"]


def test_intervals_of_a_mean_over_strata_hold_what_was_drawn() -> None:
    rows = [
        instance_row(f"c{number:02}", None, 0, "ab"[number % 2]) | {"bpq": float(number % 2), "mpq": None}
        for number in range(24)
    ]
    entry = summarise(per_case_table(rows), "test")["test"]["bpq"]
    # Whatever cases are drawn, a stratum's mean is its constant.
    assert (entry["mean"], entry["low"], entry["high"]) == (0.5, 0.5, 0.5)
