"""Does a normaliser help? One segmenter, trained on some looks and tested on others, without and with each remedy.

Each arm of a study is a run of its own (ablation/<study>/<arm>/seed-<n>), made by the stages as any other run, so that
what is complete is not made again. Writes reports/ablation/<study>.json and <study>.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field, ValidationError

from pipeline.config import Config, ConfigError, Settings, load_config
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.stages import run as run_stage

SCORES = ("dice", "ap", "f1_70")
"""Columns of per_case.csv that are compared, where they hold numbers."""
RESAMPLES = 10_000


class Study(Settings):
    """One data set and how it is divided."""

    config: Path
    """The segmenter's settings."""
    settings: tuple[str, ...] = ()
    """Settings laid over them in every arm: which strata are tested on, for how many steps is trained."""
    normaliser: Path | None = None
    """Settings of the learned normaliser, which is trained on this study's own training part."""
    normaliser_settings: tuple[str, ...] = ()
    """Settings laid over those."""


class Ablation(Settings):
    """What is compared."""

    seeds: tuple[int, ...] = (1, 2, 3)
    """One training for each."""
    arms: dict[str, tuple[str, ...]] = Field(min_length=2)
    """Settings of each remedy; the first arm is what the others are compared with. {normaliser} stands for the run of
    the study's learned normaliser."""
    studies: dict[str, Study] = Field(min_length=1)
    """Where they are compared."""


def read_ablation(file: Path) -> Ablation:
    """Read a YAML file. Raises ConfigError where it is none, or holds something else."""
    try:
        return Ablation.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{file}: expected seeds, arms and studies, found: {error}") from error


def run_ablation(file: Path, studies: Sequence[str] = (), root: Path = Path()) -> None:
    """Train every arm of the studies (all by default) with every seed, score them and print and write the tables."""
    ablation = read_ablation(file)
    unknown = [name for name in studies if name not in ablation.studies]
    if unknown:
        raise ConfigError(f"{file}: expected studies out of {', '.join(ablation.studies)}, found {', '.join(unknown)}")
    for name in studies or ablation.studies:
        scores = {
            arm: [_scores(_run_arm(ablation, name, arm, seed, root), root) for seed in ablation.seeds]
            for arm in ablation.arms
        }
        result = compare_arms(scores)
        folder = root / "reports" / "ablation"
        described = {"study": name, **ablation.model_dump(mode="json", include={"seeds", "arms"})}
        write_json(folder / f"{name}.json", described | ablation.studies[name].model_dump(mode="json") | result)
        table = as_table(name, result)
        write_text(folder / f"{name}.md", table)
        print(table)


def _run_arm(ablation: Ablation, name: str, arm: str, seed: int, root: Path) -> Config:
    """Bring one arm to its scores, and before it the learned normaliser that it applies; return its settings."""
    study = ablation.studies[name]
    normaliser = f"ablation/{name}/normaliser"
    overrides = [setting.replace("{normaliser}", normaliser) for setting in ablation.arms[arm]]
    if overrides != list(ablation.arms[arm]):
        if study.normaliser is None:
            raise ConfigError(f"study {name}: arm {arm} applies a learned normaliser, and the study names none")
        learned = load_config(root / study.normaliser, [*study.normaliser_settings, f"run={normaliser}"])
        run_stage("train", learned, Paths.of(learned, root), with_needs=True)
    run = f"ablation/{name}/{arm.replace(' ', '-')}/seed-{seed}"
    config = load_config(root / study.config, [*study.settings, *overrides, f"train.seed={seed}", f"run={run}"])
    print(f"\n{name}, {arm}, seed {seed}")
    run_stage("evaluate", config, Paths.of(config, root), with_needs=True)
    return config


def _scores(config: Config, root: Path) -> Any:
    """Return per_case.csv of a run with case_id as its index."""
    import pandas as pd

    file = Paths.of(config, root).reports / "per_case.csv"
    return pd.read_csv(file, dtype={"case_id": str, "group": str, "stratum": str}).set_index("case_id").sort_index()


def compare_arms(scores: dict[str, list[Any]]) -> dict[str, Any]:
    """Compare every arm with the first, paired by case.

    scores: for each arm one table a seed (case_id as index, group, stratum and SCORES).
    Returns for each score and arm: mean over seeds and cases, spread (standard deviation over the seeds of the mean
    over cases), and, for all arms but the first, gain with low and high (95 %: whole groups drawn with replacement,
    seeds averaged in each case) and verdict. helps, harms: the gain is more than twice the larger spread of the two
    arms and its interval excludes 0; no: neither.
    Raises ValueError where the arms were not scored on the same cases.
    """
    first = next(iter(scores))
    cases = scores[first][0].index
    for arm, tables in scores.items():
        if any(not table.index.equals(cases) for table in tables):
            raise ValueError(f"arm {arm}: expected the {len(cases)} test cases of arm {first}, found others")
    groups = scores[first][0]["group"]
    result: dict[str, Any] = {"cases": len(cases), "groups": groups.fillna(groups.index.to_series()).nunique()}
    result["scores"] = {}
    for score in SCORES:
        if scores[first][0].get(score) is None or scores[first][0][score].isna().all():
            continue
        values = {arm: np.stack([table[score].to_numpy(float) for table in tables]) for arm, tables in scores.items()}
        spreads = {arm: float(np.nanmean(rows, axis=1).std(ddof=1)) for arm, rows in values.items()}
        entries = {}
        for arm, rows in values.items():
            entry: dict[str, Any] = {"mean": round(float(np.nanmean(rows)), 6), "spread": round(spreads[arm], 6)}
            if arm != first:
                gains = rows.mean(axis=0) - values[first].mean(axis=0)
                entry |= _gain(gains, groups, 2 * max(spreads[arm], spreads[first]))
            entries[arm] = entry
        result["scores"][score] = entries
    return result


def _gain(gains: np.ndarray, groups: Any, least: float) -> dict[str, Any]:
    """Mean of paired differences, its interval over groups (None where they are too few), and the verdict."""
    import pandas as pd

    from pipeline.metrics.summary import summarise_means

    table = pd.DataFrame({"case_id": groups.index, "group": groups.to_numpy(), "gain": gains})
    found = summarise_means(table, ["gain"], RESAMPLES)["gain"]
    mean, low, high = found["mean"], found["low"], found["high"]
    sure = abs(mean) > least and low is not None and (low > 0 or high < 0)
    return {"gain": mean, "low": low, "high": high, "verdict": "no" if not sure else "helps" if mean > 0 else "harms"}


def as_table(study: str, result: dict[str, Any]) -> str:
    """Lay one study out as a Markdown table."""
    lines = [
        f"{study}: {result['cases']} test images in {result['groups']} groups",
        "",
        "| score | arm | mean | spread of seeds | gain (95 %) | does it help? |",
        "|---|---|---|---|---|---|",
    ]
    for score, arms in result["scores"].items():
        for arm, entry in arms.items():
            gain = f"{entry['gain']:+.3f}" if "gain" in entry else ""
            if entry.get("low") is not None:
                gain += f" ({entry['low']:+.3f} to {entry['high']:+.3f})"
            cells = [score, arm, f"{entry['mean']:.3f}", f"{entry['spread']:.3f}", gain, entry.get("verdict", "")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
