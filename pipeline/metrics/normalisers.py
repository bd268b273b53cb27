"""Methods that make images, side by side on the same cases: the long per_case.csv and metrics.json of such a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.metrics.stain import excess_removed
from pipeline.metrics.summary import MINIMUM_GROUPS, summarise_means

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA_VERSION = 1
INPUT = "input"
"""The method that does nothing: the image as a normaliser or a restorer is given it."""

METRICS = {
    "psnr": "peak signal to noise ratio to the target in dB",
    "ssim": "structural similarity to the target, 1 for equal images",
    "ciede2000": "mean colour difference from the target; about 1 is just seen",
    "haematoxylin_angle": "degrees between the haematoxylin vectors of image and target",
    "eosin_angle": "degrees between the eosin vectors of image and target",
    "energy_distance": "of the optical densities of tissue from those of the reference strata; of one case, its own",
    "structure": "structural similarity of the haematoxylin before and after, each by its own matrix, up to scale",
    "mask_dice": "Dice between the foreground that the frozen segmenter finds before and after",
    "objects_before": "objects that it finds before",
    "objects_after": "objects that it finds after",
    "objects_change": "(objects after - objects before) / objects before; empty where there were none before",
}
"""Columns of per_case.csv after case_id, group, stratum, method and status; those without a value are left out."""
OVERALL = {
    "energy_ratio": "energy distance over that between two halves of the reference strata",
    "excess_removed": "share of the excess over the halves' distance that was removed; 1: all of it",
}
"""Figures of all images of a stratum together, beside energy_distance."""
BETTER = {
    "psnr": 1, "ssim": 1, "ciede2000": -1, "haematoxylin_angle": -1, "eosin_angle": -1, "energy_distance": -1,
    "energy_ratio": -1, "excess_removed": 1, "structure": 1, "mask_dice": 1,
}  # fmt: skip
"""1 where more is better, -1 where less is."""
LABELS = ("case_id", "group", "stratum", "method", "status")
_COUNTS = ("objects_before", "objects_after")
_MEANS = (
    "psnr", "ssim", "ciede2000", "haematoxylin_angle", "eosin_angle", "structure", "mask_dice", "objects_change",
)  # fmt: skip
_TO_TARGET = _MEANS[:5]
"""Metrics that the input has as well, so that a method's difference to it means something."""

METRICS_SCHEMA = {
    "schema_version": "version of this table",
    "run, dataset, part": "what was judged",
    "kind": "paired: each test image has a target; restored: its own image is the target of what was spoilt; unpaired: "
    "laboratories are compared as distributions",
    "cases, groups": "test images judged, and the groups (patients, slides, fields) among them",
    "unscored, left_out": "cases without a target; test cases of the reference strata, left out of unpaired judging",
    "resamples, seed": "of the bootstrap behind the intervals",
    "<part>.<metric>": "of the run itself: {mean, low, high, groups, cases} as in the metrics of a segmentation",
    "by_stratum.<stratum>.<metric>": "the same for the cases of one stratum",
    "methods.<name>.kind": "input, classical or run",
    "methods.<name>.<part>, .by_stratum": "as above for every method",
    "methods.<name>.status": "images by what became of them (ok, clipped_gain, background, ...)",
    "methods.<name>.difference.<metric>": "paired difference to the input: {mean, low, high, groups, cases, "
    "better_groups}, the last the groups in whose mean the method is better",
    "methods.<name>.reference_case": "the case that a classical method brings the others to",
    "best_classical": "the classical method with the best ranking figure on these very cases",
    "beyond_classical.<metric>": "paired difference of the run to it, likewise",
    "ranked_by": "that figure: psnr, or excess_removed where there are no targets",
    "reference": "what unpaired images were compared with: strata, cases, split_half (energy distance of two halves, "
    "mean over random divisions of its groups), side and quality that all images were brought to, pixels of each",
    "segmenter": "the frozen segmenter, null where none was named",
    "excluded": "cases that ingest left out, by fault",
}
"""Where everything stands in the metrics.json of a run that makes images; NaN is never written."""


def long_table(rows: Iterable[Mapping[str, Any]], methods: Sequence[str]) -> DataFrame:
    """Put rows of LABELS and METRICS into the order and types of per_case.csv: by case, then as methods are listed.

    Raises ValueError where a method misses a case or has one twice.
    """
    import pandas as pd

    table = pd.DataFrame(list(rows), columns=[*LABELS, *METRICS])
    table["method"] = pd.Categorical(table["method"], methods, ordered=True)
    table = table.sort_values(["case_id", "method"], kind="stable").reset_index(drop=True)
    table["method"] = table["method"].astype(str)
    counts = Counter(zip(table["case_id"], table["method"], strict=True))
    expected = [(case, name) for case in dict.fromkeys(table["case_id"]) for name in methods]
    wrong = [f"{case} by {name}" for case, name in expected if counts[case, name] != 1]
    if wrong:
        raise ValueError(f"per_case table: expected every case once by every method, not so {', '.join(wrong[:5])}")
    for name in METRICS:
        table[name] = table[name].astype("Int64" if name in _COUNTS else "float64")
    filled = [name for name in METRICS if table[name].notna().any()]
    return table[[*LABELS[:-1], *filled, LABELS[-1]]]


def summarise_methods(
    table: DataFrame, run: str, kinds: Mapping[str, str], part: str, resamples: int = 2000, seed: int = 1412
) -> dict[str, Any]:
    """Summarise methods by the mean over the cases, as METRICS_SCHEMA lays it out, without what only unpaired data has.

    table: that of long_table; run: the method that is judged; kinds: input, classical or run by name, in the order of
    the table. All methods are resampled together, so that differences are paired.
    """
    metrics = [name for name in _MEANS if name in table]
    wide = wide_table(table, [*kinds])
    means = _means(wide, kinds, metrics, resamples, seed)
    strata = {name: wide[wide["stratum"] == name] for name in sorted(set(wide["stratum"]))}
    by_stratum = {name: _means(rows, kinds, metrics, resamples, seed) for name, rows in strata.items()}
    compared = [name for name in _TO_TARGET if name in metrics]
    differences = {
        name: differences_to(wide, name, INPUT, compared, resamples, seed) for name in kinds if name != INPUT
    }
    methods = {
        name: {
            "kind": kind,
            part: means[name],
            "by_stratum": {stratum: entry[name] for stratum, entry in by_stratum.items()},
            "status": _statuses(table, name),
            "difference": differences.get(name, {}),
        }
        for name, kind in kinds.items()
    }
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "part": part,
        "cases": len(wide),
        "groups": _groups(wide),
        "resamples": resamples,
        "seed": seed,
        part: means[run],
        "by_stratum": methods[run]["by_stratum"],
        "methods": methods,
    }
    best = best_classical(content, "psnr")
    beyond = differences_to(wide, run, best, compared, resamples, seed) if best else {}
    return content | {"ranked_by": "psnr", "best_classical": best, "beyond_classical": beyond}


def best_classical(content: Mapping[str, Any], ranked_by: str) -> str | None:
    """Return the classical method whose figure is best on these very cases, None where no figure is there."""
    figures = {
        name: BETTER[ranked_by] * figure
        for name, entry in content["methods"].items()
        if entry["kind"] == "classical"
        and (figure := entry[content["part"]].get(ranked_by, {}).get("mean")) is not None
    }
    return max(figures, key=lambda name: figures[name]) if figures else None


def differences_to(
    wide: DataFrame, name: str, other: str, metrics: Sequence[str], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Paired differences of one method to another: mean, interval over groups, and in how many groups it is better."""
    table = wide[["case_id", "group"]].copy()
    for metric in metrics:
        table[metric] = wide[f"{metric} {name}"] - wide[f"{metric} {other}"]
    content = summarise_means(table, metrics, resamples, seed)
    named = table.assign(group=table["group"].where(table["group"].notna(), table["case_id"]))
    for metric, entry in content.items():
        by_group = named.groupby("group")[metric].mean().dropna()
        entry["better_groups"] = int((by_group * BETTER[metric] > 0).sum())
    return content


def excludes_zero(entry: Mapping[str, Any]) -> bool:
    """Whether an interval is there and lies wholly on one side of 0."""
    low, high = entry.get("low"), entry.get("high")
    return low is not None and high is not None and (low > 0 or high < 0)


def wide_table(table: DataFrame, methods: Sequence[str]) -> DataFrame:
    """One row a case: case_id, group, stratum (unknown where there is none), and '<metric> <method>' columns."""
    import pandas as pd

    metrics = [name for name in METRICS if name in table]
    first = table[table["method"] == methods[0]].set_index("case_id")[["group", "stratum"]]
    stratum = first["stratum"].where(first["stratum"].notna() & (first["stratum"] != ""), "unknown").astype(str)
    columns = {
        f"{metric} {name}": table[table["method"] == name].set_index("case_id")[metric].astype("float64")
        for name in methods
        for metric in metrics
    }
    group = first["group"].where(first["group"] != "", None)
    return pd.DataFrame({"group": group, "stratum": stratum, **columns}).reset_index()


def _means(
    wide: DataFrame, methods: Iterable[str], metrics: Sequence[str], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    columns = {f"{metric} {name}": (name, metric) for name in methods for metric in metrics}
    content: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for column, entry in summarise_means(wide, [*columns], resamples, seed).items():
        name, metric = columns[column]
        content[name][metric] = entry
    return content


def _groups(wide: DataFrame) -> int:
    return int(wide["group"].nunique() + wide["group"].isna().sum())


def _statuses(table: DataFrame, name: str) -> dict[str, int]:
    return dict(sorted(Counter(table.loc[table["method"] == name, "status"].tolist()).items()))


# --- Laboratories as distributions ------------------------------------------------------------------------------------

ALL_PIXELS = 8192
"""Pixels of tissue that two samples of images are compared by, all images together; the time grows with the square."""
MOST_PIXELS, LEAST_PIXELS = 512, 32
"""Of one image."""
HALVES = 200
"""Random divisions of the reference into halves."""


def pixels_of_each(images: int) -> int:
    """Return how many pixels of tissue each of so many images is represented by."""
    return min(MOST_PIXELS, max(LEAST_PIXELS, ALL_PIXELS // max(images, 1)))


def drawn_pixels(density: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw (count, 3) rows of an image's tissue, seeded; with replacement where it has fewer. Empty stays empty."""
    if not len(density):
        return density
    return density[np.random.default_rng(seed).choice(len(density), count, replace=len(density) < count)]


@dataclass(frozen=True)
class Distances:
    """Mean distances between the pixels of any two images, from which the energy distance of any two sets follows.

    Every image counts alike, whatever its share of tissue. test: (t, t), reference: (r, r), between: (t, r).
    """

    test: np.ndarray
    reference: np.ndarray
    between: np.ndarray

    @classmethod
    def of(cls, test: np.ndarray, reference: np.ndarray, known: np.ndarray | None = None) -> Distances:
        """Measure. test, reference: (images, pixels, 3) optical densities; known: the reference's own distances."""
        own = mean_distances(reference, reference) if known is None else known
        return cls(mean_distances(test, test), own, mean_distances(test, reference))

    def energy(self, test: np.ndarray) -> float:
        """Energy distance between the chosen test images, (t,) weights, and the whole reference."""
        weights = test / test.sum()
        uniform = np.full(len(self.reference), 1.0 / len(self.reference))
        within = weights @ self.test @ weights + uniform @ self.reference @ uniform
        return float(np.sqrt(max(0.0, 2.0 * weights @ self.between @ uniform - within)))

    def of_each(self) -> np.ndarray:
        """(t,) energy distances of single images to the whole reference."""
        return np.array([self.energy(row) for row in np.eye(len(self.test))])


def mean_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) mean Euclidean distances between the pixels of images: (n, pixels, 3) and (m, pixels, 3)."""
    from scipy.spatial.distance import cdist

    columns = second.reshape(-1, second.shape[2])
    return np.stack([cdist(image, columns).mean(axis=0).reshape(len(second), -1).mean(axis=1) for image in first])


def split_half(reference: np.ndarray, groups: Sequence[str], seed: int) -> float:
    """Energy distance between two halves of the reference, mean over HALVES random divisions of its groups.

    reference: (r, r) distances; groups: a name an image. A division takes groups in random order until half of the
    images are on one side. Raises ValueError with fewer than two groups.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError(f"split-half distance: expected two groups of reference images, found {len(names)}")
    members = [np.flatnonzero(np.array(groups) == name) for name in names]
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(HALVES):
        side = np.zeros(len(groups), bool)
        for number in generator.permutation(len(names))[:-1]:
            if 2 * side.sum() >= len(groups):
                break
            side[members[number]] = True
        halves = Distances(*(reference[np.ix_(a, b)] for a, b in ((side, side), (~side, ~side), (side, ~side))))
        found.append(halves.energy(np.ones(int(side.sum()))))
    return float(np.mean(found))


def summarise_distances(
    distances: Mapping[str, Distances], strata: Sequence[str], groups: Sequence[str], half: float
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Energy distance, its ratio to the halves' and the excess removed: by method, then 'all' or stratum, then metric.

    distances: by method, INPUT among them; strata, groups: a name a test image. Of all strata together: the means of
    their distances. Intervals are 95 % from the jackknife over groups (Efron and Stein 1981), as resampling with
    replacement would shrink the spread within a sample; there is none below MINIMUM_GROUPS.
    """
    chosen = {name: np.array(strata) == name for name in sorted(set(strata))}

    def figures(kept: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """By method, then stratum: (energy distance, ratio, excess removed), NaN where there is none."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for method, between in distances.items():
            own = {name: between.energy((kept & inside).astype(float)) for name, inside in chosen.items()}
            own["all"] = float(np.mean(list(own.values())))
            found[method] = {name: np.array([value, value / half, np.nan]) for name, value in own.items()}
        for entries in found.values():
            for name, entry in entries.items():
                removed = excess_removed(found[INPUT][name][0], entry[0], half)
                entry[2] = np.nan if removed is None else removed
        return found

    everything = np.ones(len(strata), bool)
    names = np.array(groups)
    unique = [
        name for name in sorted(set(groups)) if all((inside & (names != name)).any() for inside in chosen.values())
    ]
    whole = figures(everything)
    enough = len(unique) == len(set(groups)) >= MINIMUM_GROUPS
    without = [figures(names != name) for name in unique] if enough else []
    content: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for method, entries in whole.items():
        content[method] = {}
        for name, values in entries.items():
            inside = everything if name == "all" else chosen[name]
            errors = _jackknife([other[method][name] for other in without]) if name == "all" and without else None
            content[method][name] = {
                metric: {
                    "mean": _rounded(values[at]),
                    "low": None if errors is None else _rounded(values[at] - 1.96 * errors[at]),
                    "high": None if errors is None else _rounded(values[at] + 1.96 * errors[at]),
                    "groups": len(set(names[inside])),
                    "cases": int(inside.sum()),
                }
                for at, metric in enumerate(("energy_distance", *OVERALL))
            }
    return content


def _jackknife(values: Sequence[np.ndarray]) -> np.ndarray:
    """Standard errors from the values without one group each."""
    table = np.stack(values)
    return np.sqrt((len(table) - 1) * table.var(axis=0))


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
