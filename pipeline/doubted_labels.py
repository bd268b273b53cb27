"""Labels to check: where a prediction that never learned from a label contradicts it, for the label may be wrong.

A hard image and a wrong label both score low. They differ in how certain the network is: along a blurred edge it is in
doubt, while an object that was never outlined is found with confidence (the reasoning of confident learning, Northcutt
2021). So cases are ordered by the share of the foreground that is contradicted with confidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.records.case import IGNORED

if TYPE_CHECKING:
    from pandas import DataFrame

CONFIDENT = 0.9
"""Distance of a probability from the label, 0 or 1, above which it contradicts it."""
PICTURES = 12
"""Cases that are drawn."""
SHARE = "contradicted"
COLUMNS = ("case_id", "fold", "group", "stratum", SHARE, "dice", "ap_50", "truth_objects", "predicted_objects",
           "missed", "spurious", "merged", "split")  # fmt: skip
"""Of labels_to_check.csv: missed, objects only in the label; spurious, only predicted; merged and split, as predicted.
Those that do not apply are left out."""
ACROSS, TILE, GAP, CAPTION = 2, 288, 6, 20
"""Of the sheet: cases side by side, the square that each of their three pictures is fitted into, pixels between them
and of a line of words."""


def contradicted_share(probabilities: np.ndarray, truth: np.ndarray, channels: Sequence[str]) -> float:
    """Return the share of the foreground, of label and prediction together, that is contradicted with confidence.

    probabilities: (channels, height, width) float in [0, 1]; truth: (height, width) integer ids, 0 background, pixels
    of 65535 left out; channels: their names, with a foreground, or with a background that is the rest of it.
    0 where neither has any foreground.
    """
    foreground = (
        probabilities[channels.index("foreground")]
        if "foreground" in channels
        else 1.0 - probabilities[channels.index("background")]
    )
    wanted = truth > 0
    counted = (wanted | (foreground > 0.5)) & (truth != IGNORED)
    wrong = counted & (np.abs(foreground - wanted) > CONFIDENT)
    return float(wrong.sum() / max(1, counted.sum()))


def order_labels(table: DataFrame) -> DataFrame:
    """Order cases by what is contradicted in them, the most first, and of equal ones the lower Dice first.

    table: per_case.csv with the columns fold and contradicted. Returns COLUMNS, where they apply, of cases with scores.
    """
    columns = [name for name in COLUMNS if name in table and (name in COLUMNS[:6] or table[name].notna().any())]
    scored = table[table["dice"].notna()]
    ordered = scored.sort_values([SHARE, "dice", "case_id"], ascending=[False, True, True])
    return ordered[columns].reset_index(drop=True)


def caption(row: Mapping[str, Any]) -> str:
    """Say of a row of order_labels which case it is and what differs."""
    words = [f"{str(row['case_id'])[:16]} fold {row['fold']}: {100 * row[SHARE]:.0f} % contradicted"]
    words.append(f"Dice {row['dice']:.2f}")
    counts = [name for name in ("missed", "spurious", "merged", "split") if row.get(name, 0) > 0]
    return ", ".join([*words, *(f"{row[name]:.0f} {name}" for name in counts)])


def draw_labels(cases: Iterable[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Draw cases, some beside each other: the image, its label's outlines and the prediction's; uint8 RGB.

    cases: at least one; caption, image (height, width, 3) uint8 RGB, label and prediction (height, width) integer ids,
    0 background. Dim images are stretched to be seen.
    """
    cells = [
        np.vstack([_words(words), np.hstack([_tile(image, shown) for shown in (None, truth, mask)])])
        for words, image, truth, mask in cases
    ]
    rows = [cells[first : first + ACROSS] for first in range(0, len(cells), ACROSS)]
    heading = _words("the image, the outlines of its label, and those of the prediction that never saw it")
    return np.vstack([_side_by_side([heading]), *(_side_by_side(row) for row in rows)])


def _side_by_side(cells: Sequence[np.ndarray]) -> np.ndarray:
    """Fill up a row of pictures of one width with white, below them and beside them."""
    row = np.full((max(map(len, cells)), GAP + ACROSS * 3 * (TILE + GAP), 3), 255, np.uint8)
    for place, cell in enumerate(cells):
        left = GAP + place * cell.shape[1]
        row[: len(cell), left : left + cell.shape[1]] = cell
    return row


def _words(text: str) -> np.ndarray:
    import cv2

    line = np.full((CAPTION, 3 * (TILE + GAP), 3), 255, np.uint8)
    cv2.putText(line, text, (0, CAPTION - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return line


def _tile(image: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    import cv2

    from pipeline.intensity import stretch
    from pipeline.reporting.overlays import draw_outlines

    height, width = image.shape[:2]
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    fitted = cv2.resize(stretch(image), size, interpolation=cv2.INTER_AREA if scale < 1.0 else cv2.INTER_NEAREST)
    if labels is not None:
        # Outlined at the size that is shown: thin lines would be lost in a smaller picture.
        kept = np.where(labels == IGNORED, 0, labels)
        fitted = draw_outlines(fitted, cv2.resize(kept, size, interpolation=cv2.INTER_NEAREST_EXACT))
    tile = np.full((size[1] + GAP, TILE + GAP, 3), 255, np.uint8)
    tile[: size[1], : size[0]] = fitted
    return tile
