"""The scores of each case, and their summary with intervals: what per_case.csv and metrics.json hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.metrics import instance, pixel
from pipeline.records.case import IGNORED, UNKNOWN_STRATUM, LabelKind

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame

SCHEMA_VERSION = 1
_BLOCK_DRAWS = 1 << 21
MINIMUM_GROUPS = 10
"""Fewer groups than this give no interval: a bootstrap over a handful of groups promises too much."""

EMPTY_POLICY = (
    "Nothing in truth nor prediction: every score is 1. Something in only one of them: every score is 0, so false "
    "positives on an empty truth count. Ignored pixels count for neither."
)

IDENTITY_COLUMNS = ("case_id", "group", "stratum", "height", "width")
SCORE_COLUMNS = {
    "truth_objects": "objects in the truth",
    "predicted_objects": "objects in the prediction with pixels that are not ignored",
    "dice": "Dice of the foreground; several classes: mean over the classes present in truth or prediction",
    "iou": "intersection over union, likewise",
    "ap": "TP / (TP + FP + FN) of objects, mean over IoU above 0.50, 0.55, ..., 0.95",
    "ap_50": "the same at IoU above 0.50",
    "ap_75": "the same at IoU above 0.75",
    "f1_50": "F1 of objects at IoU above 0.50",
    "f1_70": "F1 of objects at IoU above 0.70",
    "precision_70": "share of predicted objects that match at IoU above 0.70",
    "recall_70": "share of true objects that are matched at IoU above 0.70",
    "pq": "panoptic quality",
    "sq": "mean IoU of the matches at IoU above 0.50",
    "rq": "F1 at IoU above 0.50",
    "aji": "aggregated Jaccard index (Kumar 2017)",
    "missed": "true objects without match that no merge or split explains",
    "spurious": "predicted objects without match that no merge or split explains, nor ignored pixels",
    "merged": "predicted objects that cover two or more true ones",
    "split": "true objects covered by two or more predicted ones",
    "tp_70": "objects matched at IoU above 0.70",
    "fp_70": "predicted objects without match there, but for those of which more than 0.70 is ignored in the truth",
    "fn_70": "true objects without match there",
    "tp": "true positive pixels; several classes: summed over classes",
    "fp": "false positive pixels",
    "fn": "false negative pixels",
}
"""Columns of per_case.csv after case_id, group, stratum, height and width; counts are whole numbers.

Several classes add dice_class_<k>, tp_class_<k>, fp_class_<k> and fn_class_<k>. Cells are empty where a score does not
apply: object columns without object labels, every score without truth.
"""

_MEANS = (
    "dice", "iou", "ap", "ap_50", "ap_75", "f1_50", "f1_70", "precision_70", "recall_70", "pq", "sq", "rq", "aji",
)  # fmt: skip
_COUNTS = (
    "height", "width", "truth_objects", "predicted_objects", "missed", "spurious", "merged", "split",
    "tp_70", "fp_70", "fn_70", "tp", "fp", "fn",
)  # fmt: skip

CLASS_COLUMNS = {
    "bpq": "panoptic quality of all objects, whatever their class; empty without true objects",
    "mpq": "mean of pq_class_<k> over the classes that the truth has",
}
"""Columns that per_case.csv has besides where objects have classes, beside pq_class_<k>, the panoptic quality of the
objects of class k, empty where the truth has none: bPQ and mPQ of Gamper et al. 2020, as their code leaves out what the
truth does not have. Of several cases bpq and mpq are the mean over strata (tissues) of the mean over cases."""

METRICS_SCHEMA = {
    "schema_version": "version of this table",
    "part": "part of the split that was scored: test or validation",
    "cases": "cases with truth",
    "unscored": "cases without truth, which have masks and no score",
    "groups": "groups (patients, slides, fields) among the scored cases; a case without a group is its own",
    "objects": "true objects in the scored cases, null without object labels",
    "resamples": "bootstrap resamples of groups behind each interval",
    "seed": "seed of the bootstrap",
    "empty_policy": "how empty masks are scored",
    "<part>.<metric>.mean": "mean over cases; of pooled metrics the score of all counts added up",
    "<part>.<metric>.low, .high": f"95 % interval from resampled groups, null below {MINIMUM_GROUPS} groups",
    "<part>.<metric>.groups, .cases": "groups and cases behind the figure",
    "by_stratum.<stratum>.<metric>": "the same for the cases of one stratum",
    "calibration.error, .brier": "expected calibration error and Brier score of the probability of any foreground",
    "calibration.unsure.share, .error": "share of the pixels that were given 0.1 to 0.9, and the calibration error of "
    "those alone: that of all is small where most pixels are plain background; null without any",
    "calibration.bins": "of the pixels in each tenth of probability that has some: mean probability said, share of "
    "foreground seen, and how many they are; ignored pixels count for nothing",
    "ranked.ap_50, .ap_60, .ap_75": "average precision of the objects of all cases, ranked by the mean probability of "
    "foreground over each, at IoU above 0.50, 0.60 (HuBMAP 2023's score) and 0.75: area under precision over recall",
    "validation.metric, .score, .test, .gap": "the score that weights and thresholds were chosen by (ap of objects, "
    "else dice), on the cases that they were chosen on, on the test part, and by how much that falls short",
    **{f"<metric> {name}": SCORE_COLUMNS[name] for name in _MEANS},
    "<metric> dice_class_<k>": "Dice of class k, mean over the cases where it is in truth or prediction",
    "<metric> bpq, mpq": "bPQ and mPQ (Gamper 2020): mean over strata (tissues) of the mean over cases",
    "<metric> pq_class_<k>": "panoptic quality of the objects of class k, mean over the cases that have some in truth",
    "classes.<k>": "name of class k of objects",
    "cell": "of coarse labels: side in pixels of the squares that every count and score counts instead of pixels",
    "<metric> dice_pooled, iou_pooled": "from the pixels of all cases together; several classes: mean over classes",
    "<metric> precision_70_pooled, recall_70_pooled, f1_70_pooled": "from the objects of all cases together",
}
"""Where everything stands in metrics.json; a metric that applies to no case is left out, NaN is never written."""


def score_case(truth: np.ndarray, prediction: np.ndarray, label_kind: LabelKind, classes: int = 1) -> dict[str, Any]:
    """Score one case: height, width and the columns of SCORE_COLUMNS, None where a score does not apply.

    truth, prediction: (height, width) integer labels, 0 background; truth pixels of 65535 are left out.
    label_kind: instance, semantic or coarse. classes: number of foreground classes of a semantic data set; at 1 any
    predicted id is foreground, above 1 the columns of each class are added. Raises ValueError for other label kinds,
    differing shapes, class ids above classes.
    """
    if label_kind not in ("instance", "semantic", "coarse"):
        raise ValueError(f"scores need an instance, semantic or coarse label, found {label_kind!r}")
    row: dict[str, Any] = {"height": truth.shape[0], "width": truth.shape[1], **dict.fromkeys(SCORE_COLUMNS)}
    if label_kind == "instance":
        objects = _object_scores(instance.overlaps(truth, prediction))
        return row | _pixel_scores(pixel.confusion(truth, prediction)) | objects
    if classes > 1:
        counted = pixel.confusion(truth, prediction, classes)
        return row | _pixel_scores(counted) | _class_scores(counted)
    largest = int(truth.max(initial=0, where=truth != IGNORED))
    if largest > 1:
        raise ValueError(
            f"expected truth of one class, 0 and 1, found {largest}; give the data set's number of classes"
        )
    return row | _pixel_scores(pixel.confusion(truth, prediction))


def score_object_classes(
    truth: np.ndarray,
    prediction: np.ndarray,
    truth_classes: Sequence[str],
    predicted_classes: Sequence[str],
    names: Sequence[str],
) -> dict[str, float | None]:
    """Score one case whose objects have classes: the columns bpq, mpq and pq_class_<k>, k from 1 in the names' order.

    truth, prediction: (height, width) integer labels of objects 1..n, 0 background; truth pixels of 65535 are left out.
    truth_classes, predicted_classes: of object 1, 2, ...; names: all classes there are. An object is found only by one
    of its own class. Raises ValueError for a class that is none of the names, or objects without one.
    """
    unknown = sorted({*truth_classes, *predicted_classes} - {*names})
    found = instance.overlaps(truth, prediction)
    beyond = [
        f"{side} object {ids.max()} beyond the {len(classes)} classes told"
        for side, ids, classes in (
            ("true", found.truth_ids, truth_classes), ("predicted", found.predicted_ids, predicted_classes)
        )
        if ids.max(initial=0) > len(classes)
    ]  # fmt: skip
    if unknown or beyond:
        raise ValueError(f"expected objects of the classes {', '.join(names)}, found {', '.join([*unknown, *beyond])}")
    of_truth = np.array([*truth_classes], dtype=str)[found.truth_ids - 1]
    of_prediction = np.array([*predicted_classes], dtype=str)[found.predicted_ids - 1]
    pairs = [found, *(found.between(of_truth == name, of_prediction == name) for name in names)]
    whole, *each = (instance.panoptic_quality(pair).pq if pair.truth_ids.size else None for pair in pairs)
    told = [value for value in each if value is not None]
    return {
        "bpq": whole,
        "mpq": float(np.mean(told)) if told else None,
        **{f"pq_class_{number}": value for number, value in enumerate(each, start=1)},
    }


def _class_scores(counted: pixel.Confusion) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for at in range(counted.tp.size):
        row[f"dice_class_{at + 1}"] = float(counted.dice_by_class[at]) if counted.present[at] else None
        row |= {f"{name}_class_{at + 1}": int(getattr(counted, name)[at]) for name in ("tp", "fp", "fn")}
    return row


def _pixel_scores(counted: pixel.Confusion) -> dict[str, Any]:
    counts = {name: int(getattr(counted, name).sum()) for name in ("tp", "fp", "fn")}
    return {"dice": counted.dice, "iou": counted.iou, **counts}


def _object_scores(found: instance.Overlaps) -> dict[str, Any]:
    at_50, at_70, at_75 = (instance.detections(found, threshold) for threshold in (0.50, 0.70, 0.75))
    panoptic, wrong = instance.panoptic_quality(found), instance.errors(found)
    return {
        "truth_objects": found.truth_ids.size,
        "predicted_objects": found.predicted_ids.size,
        "ap": instance.average_precision(found),
        "ap_50": at_50.accuracy,
        "ap_75": at_75.accuracy,
        "f1_50": at_50.f1,
        "f1_70": at_70.f1,
        "precision_70": at_70.precision,
        "recall_70": at_70.recall,
        "pq": panoptic.pq,
        "sq": panoptic.sq,
        "rq": panoptic.rq,
        "aji": instance.aggregated_jaccard(found),
        **{name: int(getattr(wrong, name).size) for name in ("missed", "spurious", "merged", "split")},
        "tp_70": at_70.tp,
        "fp_70": at_70.fp,
        "fn_70": at_70.fn,
    }


def per_case_table(rows: Iterable[Mapping[str, Any]]) -> DataFrame:
    """Put rows of score_case, each with case_id, group and stratum added, into the order and types of per_case.csv.

    Rows are ordered by case_id; a case without truth needs no scores. Raises ValueError where a case_id repeats.
    """
    import pandas as pd

    listed = list(rows)
    by_class = sorted(
        {name for row in listed for name in row if "_class_" in name},
        key=lambda name: (int(name.rsplit("_", 1)[1]), name),
    )
    classed = [name for name in CLASS_COLUMNS if any(name in row for row in listed)]
    table = pd.DataFrame(listed, columns=[*IDENTITY_COLUMNS, *SCORE_COLUMNS, *classed, *by_class]).sort_values(
        "case_id"
    )
    repeated = sorted(set(table.loc[table["case_id"].duplicated(), "case_id"]))
    if repeated:
        raise ValueError(f"per_case table: expected every case once, found again: {', '.join(repeated)}")
    for name in table.columns[3:]:
        whole = name in _COUNTS or name.startswith(("tp_class_", "fp_class_", "fn_class_"))
        table[name] = table[name].astype("Int64" if whole else "float64")
    return table.reset_index(drop=True)


def read_per_case(file: Path) -> DataFrame:
    """Read per_case.csv again: names as they were written, what is empty as missing, all else as numbers.

    A patient of the name NA, or None, is one, as ingest has it.
    """
    import pandas as pd

    names = {"case_id": str, "group": str, "stratum": str}
    return pd.read_csv(file, dtype=names, keep_default_na=False, na_values=[""])


@dataclass(frozen=True)
class _Statistic:
    """A ratio of sums over cases: parts / wholes, averaged over the columns (classes) with anything present.

    1 where nothing is present in any column; 0 for a column whose whole is 0 though something is present.
    cases: (all cases,) bool, those it applies to; parts, wholes, present: (cases it applies to, columns) float64.
    """

    cases: np.ndarray
    parts: np.ndarray
    wholes: np.ndarray
    present: np.ndarray

    def by_group(self, numbers: np.ndarray, count: int) -> _Statistic:
        """Add up the cases of each group; numbers: the cases' group, below count."""
        sums = (
            np.stack([np.bincount(numbers, weights=column, minlength=count) for column in values.T], axis=1)
            for values in (self.parts, self.wholes, self.present)
        )
        return _Statistic(self.cases, *sums)

    def value(self, weights: np.ndarray) -> np.ndarray:
        """(resamples,) values where each row counts weights (resamples, rows) times."""
        return _ratios(weights @ self.parts, weights @ self.wholes, weights @ self.present > 0)

    def of_each(self) -> np.ndarray:
        """(rows,) values of every row alone."""
        return _ratios(self.parts, self.wholes, self.present > 0)


def _ratios(parts: np.ndarray, wholes: np.ndarray, present: np.ndarray) -> np.ndarray:
    ratios = np.divide(parts, wholes, out=np.zeros(parts.shape), where=wholes > 0)
    columns = present.sum(axis=1)
    return np.divide(ratios.sum(axis=1), columns, out=np.ones(len(parts)), where=columns > 0)


def summarise(per_case: DataFrame, part: str, resamples: int = 2000, seed: int = 1412) -> dict[str, Any]:
    """Summarise the cases' scores: the content of metrics.json as METRICS_SCHEMA lays it out.

    per_case: the table of per_case_table, or per_case.csv read back with case_id, group and stratum as text; the order
    of its rows does not matter. Intervals are percentiles of the statistic over resampled groups (Efron 1979; the
    cluster bootstrap, Field and Welsh 2007): whole groups are drawn with replacement; which percentiles, says
    `interval`. Raises ValueError without scored
    cases or with fewer than 2000 resamples.
    """
    if resamples < 2000:
        raise ValueError(f"bootstrap: expected at least 2000 resamples, found {resamples}")
    ordered = per_case.sort_values("case_id").reset_index(drop=True)
    scored = ordered[ordered["dice"].notna()].reset_index(drop=True)
    if scored.empty:
        raise ValueError(f"part {part}: expected scored cases, found none of {len(ordered)}; give a part with labels")
    groups = _group_numbers(scored)
    strata = np.array([UNKNOWN_STRATUM if _is_missing(name) else str(name) for name in scored["stratum"]])
    objects = scored["truth_objects"].dropna()
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "part": part,
        "cases": len(scored),
        "unscored": len(ordered) - len(scored),
        "groups": int(np.unique(groups).size),
        "objects": int(objects.sum()) if len(objects) else None,
        "resamples": resamples,
        "seed": seed,
        "empty_policy": EMPTY_POLICY,
        part: _summary(_statistics(scored), groups, resamples, seed),
        "by_stratum": {},
    }
    for stratum in sorted(set(strata)):
        chosen = strata == stratum
        content["by_stratum"][stratum] = _summary(_statistics(scored[chosen]), groups[chosen], resamples, seed)
    return content


def _group_numbers(scored: DataFrame) -> np.ndarray:
    """(cases,) whole numbers; a case without group has a number of its own."""
    missing = np.array([_is_missing(name) for name in scored["group"]])
    names = scored["group"].astype(str).to_numpy(dtype=str)
    numbers = len(scored) + np.arange(len(scored))
    numbers[~missing] = np.unique(names[~missing], return_inverse=True)[1]
    return numbers


def _is_missing(name: object) -> bool:
    return name is None or name == "" or name != name  # NaN, which an empty cell of a CSV becomes


def summarise_means(
    table: DataFrame, columns: Sequence[str], resamples: int = 2000, seed: int = 1412
) -> dict[str, dict[str, Any]]:
    """Mean over cases of columns, each with low, high, groups and cases as in metrics.json.

    table: one row a case, with case_id, group and the columns; a case without a value is left out of that column, a
    column without values altogether. The interval is that of summarise.
    """
    ordered = table.sort_values("case_id").reset_index(drop=True)
    one = np.ones((len(ordered), 1))
    statistics = {}
    for name in columns:
        values = ordered[name].to_numpy(dtype=np.float64, na_value=np.nan)[:, None]
        scored = ~np.isnan(values[:, 0])
        if scored.any():
            statistics[name] = _Statistic(scored, values[scored], one[scored], one[scored])
    return _summary(statistics, _group_numbers(ordered), resamples, seed)


def summarise_differences(
    first: DataFrame, second: DataFrame, resamples: int = 2000, seed: int = 1412
) -> dict[str, dict[str, Any]]:
    """Say by how much a second run scores more than a first on the same cases: every metric that applies to both.

    first, second: tables of per_case_table with the same cases. Returns for each metric first, second and difference
    (second - first; of pooled metrics that of the ratios), low and high of the difference (95 %, the same whole groups
    drawn with replacement for both; None below MINIMUM_GROUPS), groups and cases, and better_groups and worse_groups:
    those that the second run scores higher, or lower, taken each alone.
    Raises ValueError where the cases are not the same, or not scored in both.
    """
    tables = [table[table["dice"].notna()].sort_values("case_id").reset_index(drop=True) for table in (first, second)]
    names = [set(table["case_id"]) for table in tables]
    if names[0] != names[1] or not names[0]:
        raise ValueError(
            f"expected the same scored cases in both runs, found {len(names[0])} and {len(names[1])}, of which "
            f"{len(names[0] & names[1])} are the same"
        )
    groups = _group_numbers(tables[0])
    found = [_statistics(table) for table in tables]
    content = {}
    for name in (name for name in found[0] if name in found[1]):
        pair = [one[name] for one in found]
        if (pair[0].cases != pair[1].cases).any():
            continue
        numbers = np.unique(groups[pair[0].cases], return_inverse=True)[1]
        count = int(numbers.max()) + 1
        grouped = {str(place): one.by_group(numbers, count) for place, one in enumerate(pair)}
        values = [float(one.value(np.ones((1, count)))[0]) for one in grouped.values()]
        low = high = None
        if count >= MINIMUM_GROUPS:
            drawn = _resample(grouped, count, resamples, seed)
            low, high = interval(drawn["1"] - drawn["0"], count)
        # Scores have six decimals: what is smaller is the order in which a group's cases were added up.
        by_group = (grouped["1"].of_each() - grouped["0"].of_each()).round(9)
        content[name] = {
            "first": _rounded(values[0]), "second": _rounded(values[1]), "difference": _rounded(values[1] - values[0]),
            "low": _rounded(low), "high": _rounded(high), "groups": count, "cases": int(pair[0].cases.sum()),
            "better_groups": int((by_group > 0).sum()), "worse_groups": int((by_group < 0).sum()),
        }  # fmt: skip
    return content


def _summary(
    statistics: dict[str, _Statistic], groups: np.ndarray, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    grouped = {}
    for name, statistic in statistics.items():
        numbers = np.unique(groups[statistic.cases], return_inverse=True)[1]
        grouped[name] = statistic.by_group(numbers, int(numbers.max()) + 1)
    resampled: dict[str, np.ndarray] = {}
    for count in {len(statistic.parts) for statistic in grouped.values()}:
        if count >= MINIMUM_GROUPS:
            alike = {name: statistic for name, statistic in grouped.items() if len(statistic.parts) == count}
            resampled |= _resample(alike, count, resamples, seed)
    content = {}
    for name, statistic in grouped.items():
        low, high = interval(resampled[name], len(statistic.parts)) if name in resampled else (None, None)
        content[name] = {
            "mean": _rounded(statistic.value(np.ones((1, len(statistic.parts))))[0]),
            "low": _rounded(low),
            "high": _rounded(high),
            "groups": len(statistic.parts),
            "cases": int(statistic.cases.sum()),
        }
    return content


def interval(values: Sequence[float] | np.ndarray, groups: int) -> tuple[float, float]:
    """Return the 95 % interval of a statistic from its values over resamples of so many groups.

    Of n groups the spread over resamples is too small by sqrt((n - 1) / n), and 1.96 of it are too few while it is
    itself an estimate: of 10 groups the percentiles 2.5 and 97.5 hold the truth nine times in ten. Those further out
    that Student's t would take make up for both (expanded percentiles, Hesterberg 2015,
    doi:10.1080/00031305.2015.1089789).
    """
    from scipy.special import ndtr, stdtrit

    tail = 100.0 * ndtr(-stdtrit(groups - 1, 0.975) * np.sqrt(groups / (groups - 1)))
    low, high = np.percentile(values, (tail, 100.0 - tail)).tolist()
    return low, high


def _resample(statistics: dict[str, _Statistic], count: int, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Values of statistics over the same number of groups, whole groups drawn with replacement: (resamples,) each."""
    random = np.random.default_rng(seed)
    values: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    rows = max(1, _BLOCK_DRAWS // count)
    for first in range(0, resamples, rows):
        block = min(rows, resamples - first)
        drawn = random.integers(0, count, (block, count)) + np.arange(block)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=block * count).reshape(block, count).astype(np.float64)
        for name, statistic in statistics.items():
            values[name].append(statistic.value(weights))
    return {name: np.concatenate(blocks) for name, blocks in values.items()}


def _statistics(scored: DataFrame) -> dict[str, _Statistic]:
    """Every metric that applies to at least one case."""

    def column(name: str) -> np.ndarray:
        return scored[name].to_numpy(dtype=np.float64, na_value=np.nan)[:, None]

    def ratio(parts: np.ndarray, wholes: np.ndarray, present: np.ndarray) -> _Statistic:
        cases = ~np.isnan(parts).any(axis=1)
        return _Statistic(cases, parts[cases], wholes[cases], present[cases])

    by_class = [name for name in scored.columns if name.startswith("dice_class_")]
    one = np.ones((len(scored), 1))
    of_objects = [name for name in scored.columns if name.startswith("pq_class_")]
    statistics = {name: ratio(column(name), one, one) for name in (*_MEANS, *by_class, *of_objects)}
    strata = scored["stratum"].fillna("").astype(str).to_numpy(dtype=str)
    of_stratum = (strata[:, None] == np.unique(strata)).astype(np.float64)
    for name in (name for name in CLASS_COLUMNS if name in scored.columns):
        # A stratum is a column of the ratio: a mean over its cases, and then over strata.
        statistics[name] = ratio(column(name) * of_stratum, of_stratum, of_stratum)
    endings = [name.removeprefix("dice") for name in by_class] or [""]
    tp, fp, fn = (np.hstack([column(f"{name}{ending}") for ending in endings]) for name in ("tp", "fp", "fn"))
    statistics["dice_pooled"] = ratio(2 * tp, 2 * tp + fp + fn, tp + fp + fn)
    statistics["iou_pooled"] = ratio(tp, tp + fp + fn, tp + fp + fn)
    found, spurious, lost = column("tp_70"), column("fp_70"), column("fn_70")
    anything = found + spurious + lost
    statistics["precision_70_pooled"] = ratio(found, found + spurious, anything)
    statistics["recall_70_pooled"] = ratio(found, found + lost, anything)
    statistics["f1_70_pooled"] = ratio(2 * found, found + anything, anything)
    return {name: statistic for name, statistic in statistics.items() if statistic.cases.any()}


def _rounded(value: float | None) -> float | None:
    """Six decimals, so that the last bits of a matrix product do not change the file from one processor to another."""
    return None if value is None else round(float(value), 6)
