"""Scores of classes: by hand, against scikit-learn, and over groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from pipeline.metrics.classification import (
    _Ranked,
    class_scores,
    confusion,
    per_case_classes,
    read_classes,
    summarise_classes,
    table_of_classes,
)
from pipeline.metrics.summary import MINIMUM_GROUPS
from pipeline.records.case import Case


def case(case_id: str, class_name: str, group: str = "g") -> Case:
    return Case(case_id, "d", f"{case_id}.png", None, "class", group, None, 5, 5, None, "", None, class_name)


def table(truth: list[str], positive: list[float], groups: list[str]) -> pd.DataFrame:
    numbers = range(len(truth))
    frame = pd.DataFrame({"case_id": [f"c{n:03d}" for n in numbers], "p_0": [1 - p for p in positive], "p_1": positive})
    cases = [case(f"c{n:03d}", name) for n, name in enumerate(truth)]
    return per_case_classes(frame, cases, {f"c{n:03d}": group for n, group in enumerate(groups)})


def test_scores_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4]])
    scores = class_scores(np.array([0, 0, 1, 1, 1]), probabilities)
    # Of six pairs of a negative and a positive, five are in order: 0.6 stands above 0.4.
    assert scores["auc"] == pytest.approx(5 / 6)
    assert scores["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["accuracy"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_equal_those_of_scikit_learn(classes: int) -> None:
    generator = np.random.default_rng(classes)
    truth = np.concatenate([np.arange(classes), generator.integers(0, classes, 80)])
    probabilities = generator.dirichlet(np.ones(classes), len(truth)).round(2)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    weights = generator.integers(0, 4, len(truth)).astype(float)
    weights[:classes] = 1
    scores = _Ranked(truth, probabilities).scores(weights)
    if classes == 2:
        area = roc_auc_score(truth, probabilities[:, 1], sample_weight=weights)
    else:
        repeated = np.repeat(np.arange(len(truth)), weights.astype(int))
        area = roc_auc_score(truth[repeated], probabilities[repeated], multi_class="ovr", average="macro")
    assert scores["auc"] == pytest.approx(area)
    balanced = balanced_accuracy_score(truth, probabilities.argmax(axis=1), sample_weight=weights)
    assert scores["balanced_accuracy"] == pytest.approx(balanced)


def test_one_class_has_no_area() -> None:
    scores = class_scores(np.zeros(3, int), np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]))
    assert scores == {"auc": None, "balanced_accuracy": pytest.approx(2 / 3), "accuracy": pytest.approx(2 / 3)}


def test_confusion_by_hand() -> None:
    counted = confusion(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0]), ["a", "b", "c"])
    assert counted == {"a": {"a": 1, "b": 1, "c": 0}, "b": {"a": 0, "b": 1, "c": 0}, "c": {"a": 1, "b": 0, "c": 1}}


def test_one_group_has_no_interval_and_says_so() -> None:
    content = summarise_classes(table(["0", "0", "1", "1"], [0.1, 0.6, 0.7, 0.8], ["p"] * 4), "test")
    assert content["groups"] == 1 and content["cases"] == 4
    assert content["test"]["auc"] == {"mean": 1.0, "low": None, "high": None, "groups": 1, "cases": 4}
    lines = table_of_classes(content | {"groups_also_in_training": 1})
    assert f"No intervals: 1 group is too few ({MINIMUM_GROUPS} are needed)." in lines
    assert any("nothing of other patients" in line for line in lines)


def test_intervals_draw_whole_groups() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 400)
    scores = (0.5 + 0.2 * (truth - 0.5) + 0.2 * generator.normal(size=400)).clip(0, 1)
    names = [str(name) for name in truth]

    def width(groups: list[str]) -> float:
        entry = summarise_classes(table(names, scores.tolist(), groups), "test")["test"]["auc"]
        assert entry["low"] < entry["mean"] < entry["high"]
        return entry["high"] - entry["low"]

    alone = [str(n) for n in range(400)]
    # 40 copies of ten patients say no more than the ten: their interval is wider than that of 400 patients.
    ordered = np.argsort(scores)
    together = [""] * 400
    for place, at in enumerate(ordered):
        together[at] = str(place // 40)
    assert width(together) > 1.5 * width(alone)
    # Hanley and McNeil 1982 (doi:10.1148/radiology.143.1.7063747), equation 1.
    area = roc_auc_score(truth, scores)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    positive, negative = truth.sum(), (1 - truth).sum()
    variance = (area * (1 - area) + (positive - 1) * (q1 - area**2) + (negative - 1) * (q2 - area**2)) / (
        positive * negative
    )
    assert width(alone) == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.25)


def test_the_order_of_the_cases_does_not_matter() -> None:
    generator = np.random.default_rng(5)
    whole = table([str(n % 2) for n in range(40)], generator.random(40).tolist(), [str(n // 3) for n in range(40)])
    assert summarise_classes(whole, "test") == summarise_classes(whole.sample(frac=1, random_state=1), "test")


def test_unknown_classes_and_missing_cases_are_refused_together() -> None:
    frame = pd.DataFrame({"case_id": ["a"], "p_0": [0.5], "p_1": [0.5]})
    with pytest.raises(
        ValueError, match=r"the class 2, which training did not have and no probabilities of 1 cases \(b\)"
    ):
        per_case_classes(frame, [case("a", "2"), case("b", "0")], {"a": "g", "b": "g"})


def test_case_ids_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    file = tmp_path / "classes.csv"
    file.write_text("case_id,p_0,p_1\n001,0.250000,0.750000\nNA,1.000000,0.000000\n")
    assert read_classes(file)["case_id"].tolist() == ["001", "NA"]
    file.write_text("case_id,p_0\n001,0.25\n")
    with pytest.raises(ValueError, match="expected the columns case_id and p_<class> of two classes at least"):
        read_classes(file)
