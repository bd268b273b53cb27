"""Scores of classes, one an image: area under the ROC curve, accuracies, confusion; with intervals over groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.metrics.summary import MINIMUM_GROUPS, SCHEMA_VERSION, interval
from pipeline.records.case import Case

if TYPE_CHECKING:
    from pandas import DataFrame

SCORES = {
    "auc": "area under the ROC curve; several classes: each against the rest, mean over classes",
    "balanced_accuracy": "share of the images found, mean over classes",
    "accuracy": "share of the images whose most probable class is the true one",
}
"""Empty where the part does not hold every class (auc)."""
PROBABILITY = "p_"
"""What the columns of classes.csv and per_case.csv that hold a class's probability start with."""
DIGITS = 6


def class_scores(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Score images: auc, balanced_accuracy and accuracy, as SCORES says.

    truth: (images,) class numbers; probabilities: (images, classes). auc is None where a class is missing;
    balanced_accuracy is the mean over the classes that are there.
    """
    return _Ranked(truth, probabilities).scores(np.ones(len(truth)))


class _Ranked:
    """Images put in order by the probability of each class, to be scored under many weights.

    Own code, since a bootstrap asks 2000 times: scikit-learn's roc_auc_score, to which it is held equal, sorts anew
    each time and takes 20 times as long.
    """

    def __init__(self, truth: np.ndarray, probabilities: np.ndarray) -> None:
        self.truth, self.classes = truth, probabilities.shape[1]
        self.right = probabilities.argmax(axis=1) == truth
        # Of two classes, the second against the first is the first against the second.
        self.ranked = range(1, 2) if self.classes == 2 else range(self.classes)
        self.ranks = [np.unique(probabilities[:, number], return_inverse=True)[1] for number in self.ranked]

    def scores(self, weights: np.ndarray) -> dict[str, float | None]:
        """Score the images where each counts as often as weights (images,) says."""
        totals = np.bincount(self.truth, weights, self.classes)
        found = np.bincount(self.truth, weights * self.right, self.classes)
        present = totals > 0
        areas = [self._area(number, ranks, weights) for number, ranks in zip(self.ranked, self.ranks, strict=True)]
        return {
            "auc": float(np.mean(areas)) if present.all() else None,
            "balanced_accuracy": float((found[present] / totals[present]).mean()),
            "accuracy": float(found.sum() / totals.sum()),
        }

    def _area(self, number: int, ranks: np.ndarray, weights: np.ndarray) -> float:
        """Share of the pairs of an image of a class and one of another that are in order; equal ones count half."""
        own = self.truth == number
        inside, outside = (np.bincount(ranks, weights * chosen) for chosen in (own, ~own))
        below = np.cumsum(outside) - outside / 2
        return float(np.divide(inside @ below, inside.sum() * outside.sum() or 1.0))


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count images by true class, then by predicted class."""
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (truth, predicted), 1)
    return {name: dict(zip(classes, row, strict=True)) for name, row in zip(classes, counts.tolist(), strict=True)}


def read_classes(file: Path) -> DataFrame:
    """Read classes.csv: case_id as text, p_<class> as numbers. Raises ValueError where it is something else."""
    import pandas as pd

    table = pd.read_csv(file, dtype={"case_id": str}, keep_default_na=False, float_precision="round_trip")
    numbers = [name for name in table.columns if name.startswith(PROBABILITY)]
    if "case_id" not in table.columns or len(numbers) < 2 or not all(table[name].dtype == float for name in numbers):
        raise ValueError(
            f"{file}: expected the columns case_id and {PROBABILITY}<class> of two classes at least, with numbers, "
            f"found {', '.join(table.columns)}; run `make predict` again"
        )
    return table


def per_case_classes(probabilities: DataFrame, cases: Sequence[Case], groups: Mapping[str, str]) -> DataFrame:
    """Lay out per_case.csv: case_id, group, stratum, class (the true one), predicted, and p_<class> of each.

    probabilities: of read_classes; cases: with truth; groups: by case id. Raises ValueError for a case without
    probabilities, and for a true class that training did not have.
    """
    import pandas as pd

    columns = [name for name in probabilities.columns if name.startswith(PROBABILITY)]
    classes = [name.removeprefix(PROBABILITY) for name in columns]
    truths = {case.case_id: str(case.class_name) for case in cases}
    strata = {case.case_id: case.stratum for case in cases}
    unknown = sorted(set(truths.values()) - set(classes))
    missing = sorted(set(truths) - set(probabilities["case_id"]))
    if unknown or missing:
        faults = [f"the class {', '.join(unknown)}, which training did not have"] * bool(unknown)
        faults += [f"no probabilities of {len(missing)} cases ({', '.join(missing[:5])})"] * bool(missing)
        raise ValueError(
            f"expected every test case to have probabilities of its class, one of {', '.join(classes)}, found "
            f"{' and '.join(faults)}; run `make split` and `make train` again"
        )
    scored = probabilities[probabilities["case_id"].isin(truths.keys())].sort_values("case_id", ignore_index=True)
    order = scored["case_id"]
    return pd.DataFrame(
        {
            "case_id": order,
            "group": [groups[name] for name in order],
            "stratum": [strata.get(name) for name in order],
            "class": [truths[name] for name in order],
            "predicted": [classes[at] for at in scored[columns].to_numpy().argmax(axis=1)],
        }
    ).join(scored[columns])


def summarise_classes(table: DataFrame, part: str, resamples: int = 2000, seed: int = 1412) -> dict[str, Any]:
    """Summarise the table of per_case_classes: the content of metrics.json, laid out as `summary.METRICS_SCHEMA` says.

    <part>.<score> and by_stratum for each of SCORES, with the 95 % interval from resampled groups (whole groups drawn
    with replacement; resamples without one of the classes are left out), null below MINIMUM_GROUPS groups; confusion:
    images by true, then by predicted class.
    """
    columns = [name for name in table.columns if name.startswith(PROBABILITY)]
    classes = [name.removeprefix(PROBABILITY) for name in columns]
    ordered = table.sort_values("case_id", ignore_index=True)
    truth = np.array([classes.index(name) for name in ordered["class"]])
    predicted = np.array([classes.index(name) for name in ordered["predicted"]])
    probabilities = ordered[columns].to_numpy(np.float64)
    groups = ordered["group"].astype(str).to_numpy(dtype=str)
    strata = np.array([name if isinstance(name, str) and name else "unknown" for name in ordered["stratum"]])

    def summary(chosen: np.ndarray) -> dict[str, Any]:
        return _with_intervals(truth[chosen], probabilities[chosen], groups[chosen], resamples, seed)

    return {
        "schema_version": SCHEMA_VERSION,
        "part": part,
        "cases": len(ordered),
        "groups": int(np.unique(groups).size),
        "classes": classes,
        "resamples": resamples,
        "seed": seed,
        part: summary(np.ones(len(ordered), bool)),
        "by_stratum": {name: summary(strata == name) for name in sorted(set(strata))},
        "confusion": confusion(truth, predicted, classes),
    }


def _with_intervals(
    truth: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    names, numbers = np.unique(groups, return_inverse=True)
    ranked = _Ranked(truth, probabilities)
    values: dict[str, list[float]] = {name: [] for name in SCORES}
    if len(names) >= MINIMUM_GROUPS:
        generator = np.random.default_rng(seed)
        for _ in range(resamples):
            drawn = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))
            for name, value in ranked.scores(drawn[numbers].astype(np.float64)).items():
                values[name] += [] if value is None else [value]
    content = {}
    for name, value in ranked.scores(np.ones(len(truth))).items():
        if value is None:
            continue
        low, high = interval(values[name], len(names)) if values[name] else (None, None)
        content[name] = {
            "mean": round(value, DIGITS),
            "low": None if low is None else round(low, DIGITS),
            "high": None if high is None else round(high, DIGITS),
            "groups": len(names),
            "cases": len(truth),
        }
    return content


def cautions_of_classes(metrics: Mapping[str, Any]) -> list[str]:
    """Say what limits the figures of metrics.json."""
    told = []
    groups, shared = metrics["groups"], metrics["groups_also_in_training"]
    if groups < MINIMUM_GROUPS:
        told.append(
            f"No intervals: {groups} group{'s are' if groups > 1 else ' is'} too few ({MINIMUM_GROUPS} are needed)."
        )
    if shared:
        told.append(
            f"{'Every group' if shared == groups else f'{shared} of the {groups} groups'} (patient or slide) of this "
            f"part also gave images to training: the figures say how well other images of the same groups are told "
            f"apart, and nothing of other patients."
        )
    return told


def table_of_classes(metrics: Mapping[str, Any]) -> list[str]:
    """Lay the figures out for the terminal: scores with intervals, confusion, and what limits them."""
    part, classes = metrics["part"], metrics["classes"]
    groups = metrics["groups"]
    lines = [f"{metrics['cases']} {part} images in {groups} group{'s' if groups > 1 else ''}"]
    for name, entry in metrics[part].items():
        interval = "" if entry["low"] is None else f"   95 %: {entry['low']:.3f} to {entry['high']:.3f}"
        lines.append(f"{name.replace('_', ' '):<22}{entry['mean']:>9.3f}{interval}")
    lines.append(f"{'true, then predicted':<22}" + "".join(f"{name[:8]:>9}" for name in classes))
    lines += [
        f"{name[:21]:<22}" + "".join(f"{count:>9}" for count in metrics["confusion"][name].values()) for name in classes
    ]
    return lines + cautions_of_classes(metrics)
