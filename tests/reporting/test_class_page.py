"""The page of a classification: figures, confusion, the surest errors with their pictures, what limits it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.config import Config
from pipeline.metrics.classification import per_case_classes, summarise_classes
from pipeline.records.case import Case, write_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.records.rasters import write_png
from pipeline.reporting import class_page, normaliser_page
from pipeline.stages import report


@pytest.fixture
def classified(tmp_path: Path) -> tuple[Paths, Config]:
    """Six patches of one patient; patch 2 and 3 are taken for the other class, 3 with more certainty."""
    config = Config(dataset="d", run="r")
    paths = Paths.of(config, tmp_path)
    truth, positive = ["ad", "ad", "ad", "ad", "b<i>", "b<i>"], [0.1, 0.2, 0.6, 0.9, 0.7, 0.8]
    cases = [
        Case(f"c{n}", "d", f"images/c{n}.png", None, "class", "p1", None, 9, 9, None, "", None, name)
        for n, name in enumerate(truth)
    ]
    write_cases(paths.cases, cases)
    for n in range(5):  # the picture of c5 is missing, and not shown
        write_png(paths.image(f"images/c{n}.png"), np.full((9, 9, 3), 40 * n, np.uint8))
    frame = pd.DataFrame(
        {"case_id": [case.case_id for case in cases], "p_ad": 1 - np.array(positive), "p_b<i>": positive}
    )
    table = per_case_classes(frame, cases, dict.fromkeys(frame["case_id"], "p1"))
    write_text(paths.reports / "per_case.csv", table.to_csv(index=False))
    more = {"groups_also_in_training": 1, "unscored": 0, "excluded": {}}
    write_json(paths.reports / "metrics.json", {"run": "r", "dataset": "d", **summarise_classes(table, "test"), **more})
    return paths, config


def test_the_page(classified: tuple[Paths, Config], assert_sound: Callable[[str], Any]) -> None:
    paths, config = classified
    html = class_page.build_page(paths, config)
    page = assert_sound(html)
    assert html == class_page.build_page(paths, config)
    assert "AUC 0.750 no interval" in page.text and "Balanced accuracy 0.750" in page.text
    assert "No intervals: 1 group is too few" in page.text and "nothing of other patients" in page.text
    assert "ad 2 2 50.0 %" in page.text and "b<i> 0 2 100.0 %" in page.text
    assert page.text.index("taken for b<i>, 90.0 %") < page.text.index("taken for b<i>, 60.0 %")
    assert page.tags["img"] == 2 and "All 2 errors" in page.text
    assert "history.csv" in page.text


def test_a_missing_picture_is_named(classified: tuple[Paths, Config], assert_sound: Callable[[str], Any]) -> None:
    paths, config = classified
    paths.image("images/c3.png").unlink()
    assert "images/c3.png . Make it with make ingest" in assert_sound(class_page.build_page(paths, config)).text


def test_the_stage_takes_the_page_that_fits(classified: tuple[Paths, Config]) -> None:
    paths, config = classified
    assert class_page.applies(paths) and not normaliser_page.applies(paths)
    report.run(config, paths)
    assert "Classification report" in (paths.reports / "report.html").read_text()
