"""Two runs on the same cases: equal ones differ by nothing, a known difference is found, others are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.comparison import compare, differences
from pipeline.metrics.summary import per_case_table


def table(shift: float = 0.0, groups: int = 12, found: int = 5) -> pd.DataFrame:
    rows = []
    for n in range(48):
        score = float(np.random.default_rng(n).uniform(0.3, 0.7)) + shift
        row = {"case_id": f"c{n:02d}", "group": f"g{n % groups}", "stratum": "bright" if n % 2 else "dark"}
        objects = {"truth_objects": 8, "tp_70": found, "fp_70": 1, "fn_70": 8 - found}
        rows.append(row | objects | dict.fromkeys(("dice", "iou", "ap"), score) | {"tp": 1, "fp": 0, "fn": 0})
    return per_case_table(rows)


def test_a_run_differs_from_itself_by_nothing() -> None:
    for entry in differences(table(), table(), {})["parts"]["all"].values():
        assert (entry["difference"], entry["low"], entry["high"], entry["verdict"]) == (0.0, 0.0, 0.0, "not shown")


def test_a_known_difference_is_found_with_its_sign() -> None:
    parts = differences(table(), table(0.05, found=6), {"both": ["bright", "dark"]})["parts"]
    assert parts["all"]["ap"]["difference"] == pytest.approx(0.05)
    assert parts["all"]["ap"]["low"] == pytest.approx(0.05) and parts["all"]["ap"]["verdict"] == "more"
    assert parts["all"]["recall_70_pooled"]["difference"] == pytest.approx(1 / 8)
    assert parts["both"] == parts["all"]
    assert parts["dark"]["ap"]["verdict"] == "too few groups"
    assert differences(table(0.05), table(), {})["parts"]["all"]["ap"]["verdict"] == "less"


def test_noise_about_nothing_is_not_shown() -> None:
    noisy = table()
    noisy["ap"] += np.random.default_rng(0).normal(0, 0.05, len(noisy))
    noisy["ap"] -= noisy["ap"].mean() - table()["ap"].mean()
    found = differences(table(), noisy, {})["parts"]["all"]["ap"]
    assert found["low"] < 0 < found["high"] and found["verdict"] == "not shown"


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found 48 and 47, of which 47 are the same"):
        differences(table(), table()[1:], {})
    with pytest.raises(ValueError, match="expected some of the strata bright, dark, found pink"):
        differences(table(), table(), {"pool": ["pink"]})
    with pytest.raises(ValueError, match="expected the scores of the run one, found nothing"):
        compare("one", "two", root=tmp_path)
    with pytest.raises(ValueError, match="--pool: expected name=stratum"):
        compare("one", "two", ["purple"], root=tmp_path)


def test_tables_and_a_picture_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, shift in (("one", 0.0), ("cv/two", 0.05)):
        (tmp_path / "reports" / run).mkdir(parents=True)
        table(shift).to_csv(tmp_path / "reports" / run / "per_case.csv", index=False)
    compare("one", "cv/two", ["all of it=bright,dark"], root=tmp_path, resamples=2000)
    assert "| all of it | ap |" in capsys.readouterr().out
    written = {file.name for file in (tmp_path / "reports" / "compare").iterdir()}
    assert written == {"one--cv-two.json", "one--cv-two.md", "one--cv-two.png"}
