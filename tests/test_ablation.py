"""Arms are compared by case and group, and a gain counts only above the noise of the seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.ablation import as_table, compare_arms, read_ablation
from pipeline.config import ConfigError, load_config

ROOT = Path(__file__).parents[1]
CASES, GROUPS = 48, 12


def scores(mean: float, seed: int, noise: float = 0.0) -> pd.DataFrame:
    """Scores that differ from case to case in the same way for every mean; noise: of the whole seed."""
    hard = np.random.default_rng(0).uniform(-0.1, 0.1, CASES)
    shift = np.random.default_rng(seed).normal(0.0, noise) if noise else 0.0
    return pd.DataFrame(
        {"group": [f"P{n % GROUPS}" for n in range(CASES)], "stratum": "", "dice": mean + hard + shift},
        index=pd.Index([f"case-{n:02d}" for n in range(CASES)], name="case_id"),
    )


def test_a_gain_above_the_spread_of_the_seeds_helps_and_a_loss_harms() -> None:
    arms = {"none": 0.70, "better": 0.75, "worse": 0.60, "same": 0.70}
    result = compare_arms({arm: [scores(mean, seed) for seed in (1, 2, 3)] for arm, mean in arms.items()})
    found = result["scores"]["dice"]
    assert {arm: found[arm].get("verdict") for arm in arms} == {
        "none": None, "better": "helps", "worse": "harms", "same": "no"
    }  # fmt: skip
    assert found["better"]["gain"] == pytest.approx(0.05)
    assert found["better"]["low"] == pytest.approx(0.05)
    assert (result["cases"], result["groups"]) == (CASES, GROUPS)
    assert "| dice | better | 0.7" in as_table("made", result)


def test_a_gain_within_the_spread_of_the_seeds_is_none() -> None:
    result = compare_arms(
        {
            "none": [scores(0.70, seed, 0.05) for seed in (1, 2, 3)],
            "luckier": [scores(0.72, seed, 0.05) for seed in (4, 5, 6)],
        }
    )
    assert result["scores"]["dice"]["luckier"]["verdict"] == "no"


def test_arms_scored_on_other_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the 48 test cases of arm none"):
        compare_arms({"none": [scores(0.7, 1)], "other": [scores(0.7, 1).iloc[:-1]]})


def test_every_arm_of_the_committed_studies_is_a_valid_setting() -> None:
    ablation = read_ablation(ROOT / "configs" / "studies" / "ablation.yaml")
    for study in ablation.studies.values():
        for arm in ablation.arms.values():
            load_config(ROOT / study.config, [*study.settings, *(setting.format(normaliser="n") for setting in arm)])
        if study.normaliser:
            load_config(ROOT / study.normaliser, study.normaliser_settings)


def test_a_misspelt_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("arms: {none: []}\nstudys: {}\n")
    with pytest.raises(ConfigError, match="studys"):
        read_ablation(tmp_path / "a.yaml")
