"""Labels to check: what is contradicted is counted, the most contradicted comes first, and can be seen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.doubted_labels import ACROSS, CAPTION, GAP, TILE, caption, contradicted_share, draw_labels, order_labels
from pipeline.records.case import IGNORED
from pipeline.reporting.overlays import PAINT


def test_confident_pixels_against_the_label_are_counted_over_the_foreground_of_both() -> None:
    truth = np.array([[1, 1, 2, 0, 0, 0, IGNORED]])
    #                right, in doubt, missed, in doubt, invented, background, ignored
    foreground = np.array([[0.99, 0.3, 0.02, 0.6, 0.97, 0.08, 1.0]])
    assert contradicted_share(foreground[None], truth, ["foreground"]) == pytest.approx(2 / 5)
    two = np.stack([np.zeros_like(foreground), foreground])
    assert contradicted_share(two, truth, ["boundary", "foreground"]) == pytest.approx(2 / 5)
    assert contradicted_share(1.0 - foreground[None], truth, ["background", "class 1"]) == pytest.approx(2 / 5)


def test_nothing_is_contradicted_where_there_is_nothing() -> None:
    assert contradicted_share(np.zeros((1, 4, 4)), np.zeros((4, 4), np.uint16), ["foreground"]) == 0.0
    assert contradicted_share(np.ones((1, 4, 4)), np.zeros((4, 4), np.uint16), ["foreground"]) == 1.0


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {"case_id": ["a", "b", "c", "d"], "fold": [0, 1, 0, 1], "group": "g", "stratum": "s",
         "contradicted": [0.2, 0.5, 0.2, np.nan], "dice": [0.8, 0.9, 0.6, np.nan], "missed": [0, 2, 0, None],
         "spurious": [0, 0, 3, None], "merged": None, "tp": 1}
    )  # fmt: skip


def test_the_most_contradicted_comes_first_and_what_does_not_apply_is_left_out() -> None:
    ordered = order_labels(rows())
    assert ordered["case_id"].tolist() == ["b", "c", "a"]
    assert [*ordered] == ["case_id", "fold", "group", "stratum", "contradicted", "dice", "missed", "spurious"]
    told = [caption(row) for row in ordered.to_dict("records")]
    assert told[0] == "b fold 1: 50 % contradicted, Dice 0.90, 2 missed"
    assert told[2] == "a fold 0: 20 % contradicted, Dice 0.80"


def test_each_case_shows_image_label_and_prediction() -> None:
    image = np.full((60, 40, 3), 90, np.uint8)
    image[20:40, 10:30] = 200
    truth, mask = np.zeros((60, 40), np.uint16), np.zeros((60, 40), np.uint16)
    truth[:10, :10], mask[20:40, 10:30] = IGNORED, 7
    wide = np.zeros((20, 80), np.uint16)
    sheet = draw_labels([("tall", image, truth, mask), ("wide", np.zeros((20, 80, 3), np.uint8), wide, wide),
                         ("third", image, mask, mask)])  # fmt: skip
    step = TILE + GAP
    assert sheet.shape == (CAPTION + 2 * (CAPTION + step), GAP + ACROSS * 3 * step, 3)
    painted = (sheet == PAINT).all(axis=2)
    top = 2 * CAPTION
    shown = [painted[top : top + TILE, GAP + place * step : GAP + place * step + TILE] for place in range(3)]
    assert not shown[0].any() and not shown[1].any() and shown[2].any()
    assert sheet[CAPTION : 2 * CAPTION].min() < 64 and (sheet[-step:, -step:] == 255).all()
