"""Charts: the same bytes, the page's colours, names of their own, nothing that the page's policy forbids."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import cv2

from pipeline.reporting.differences import MOST_PANELS, draw_differences
from pipeline.reporting.figures import (
    COLOURS,
    DOTS,
    MOST_POINTS,
    VARIABLES,
    draw_curves,
    draw_map,
    draw_reliability,
    draw_strata,
)

ROWS = [("all", [0.1, 0.5, 0.9], {"mean": 0.5, "low": 0.2, "high": 0.8}), ("<pink & 'grey'>", [0.4], {"mean": 0.4})]


def strata(name: str = "first") -> str:
    return draw_strata("Dice", ROWS, 'told "so" <b>', name)


def curves() -> str:
    return draw_curves(
        "Validation", [1, 2, 3], {"Dice": [0.1, 0.5, 0.7], "IoU": [0.1, 0.4, float("nan")]}, 2, "told", "curve"
    )


def test_same_bytes_each_time() -> None:
    assert strata() == strata() and curves() == curves()


def test_nothing_of_the_drawing_program_stays() -> None:
    for drawn in (strata(), curves()):
        assert not re.search(r"style|metadata|matplotlib|https?:|<\?xml|DOCTYPE|date", drawn, re.IGNORECASE)


def test_every_colour_is_the_pages() -> None:
    for drawn in (strata(), curves()):
        colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', drawn))
        assert colours <= {f"var({name})" for name in VARIABLES.values()} | {"none"}
        assert "var(--accent)" in colours


def test_names_are_unique_and_met_in_one_page() -> None:
    drawn = strata("first") + strata("second")
    names = re.findall(r' id="([^"]+)"', drawn)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"', drawn)) | set(re.findall(r"url\(#([^)]+)\)", drawn)) <= set(names)


def test_words_are_escaped_and_told() -> None:
    root = ElementTree.fromstring(strata())
    assert root.attrib["aria-label"] == 'told "so" <b>' and root.attrib["role"] == "img"
    assert "<pink & 'grey'>" in "".join(root.itertext())


def test_names_of_any_kind_are_drawn() -> None:
    names = ["a$b$", "_hidden", "x" * 200, "bell\x07", "染色"]
    root = ElementTree.fromstring(draw_strata("Dice", [(name, [0.5], {"mean": 0.5}) for name in names], "", "names"))
    texts = [text.strip() for text in root.itertext() if text.strip()]
    assert {"a$b$", "_hidden", "x" * 23 + "…", "bell\N{REPLACEMENT CHARACTER}", "染色"} <= set(texts)


def test_of_many_cases_some_are_drawn() -> None:
    def dots(count: int) -> int:
        scores = [index / count for index in range(count)]
        return len(re.findall("<use", draw_strata("Dice", [("all", scores, {})], "", "many")))

    # The axes' ticks are drawn with <use>, too: a chart of no case holds only those.
    ticks = dots(1) - 1
    assert dots(DOTS) - ticks == DOTS
    assert DOTS / 2 <= dots(10 * DOTS + 1) - ticks <= DOTS


def test_one_validation_is_a_point() -> None:
    assert "<use" in draw_curves("Loss", [5], {"loss": [0.5]}, None, "", "one")


def test_probabilities_have_a_dot_for_each_bin_on_the_scale_of_shares() -> None:
    drawn = draw_reliability([0.1, 0.5, 0.9], [0.2, 0.4, 0.6], "three bins", "kept")
    ticks = draw_reliability([0.5], [0.5], "one bin", "kept").count("<use") - 1
    assert drawn.count("<use") - ticks == 3
    assert {">0.00<", ">0.25<", ">1.00<"} <= set(re.findall(r">[\d.]+<", drawn))


def test_a_map_gives_each_name_a_colour_and_bounds_its_points() -> None:
    few = draw_map("m", [(float(n), 0.0, f"name {n % 3}") for n in range(9)], "nine points", "few")
    assert all(colour in few for colour in COLOURS[:3]) and COLOURS[3] not in few
    assert few.count("<use ") == 9 + 3 and "name 2" in few
    # More names than there are colours and shapes: the rarest are grey together, and no legend could hold them.
    names = [f"name {n}" for n in range(40)]
    many = draw_map("m", [(float(n), 1.0, name) for n, name in enumerate(names * 2 + names[:32])], "112 points", "many")
    assert "name 1" not in many and "var(--quiet)" in many
    crowd = draw_map("m", [(float(n), 0.0, "a") for n in range(4 * MOST_POINTS)], "crowd", "crowd")
    assert MOST_POINTS <= crowd.count("<use ") <= MOST_POINTS + 2


def test_a_scale_follows_the_values_where_none_is_given() -> None:
    rows = [("input", [18.0, 22.0], {"mean": 20.0, "low": 19.0, "high": 21.0})]
    drawn = draw_strata("PSNR", rows, "one row", "free", None)
    assert ">20" in drawn and ">0.5" not in drawn


def test_of_many_strata_the_first_differences_are_drawn(tmp_path: Path) -> None:
    panels = {f"stratum {number}": {"Dice": (0.1, 0.0, 0.2, "#1f2430")} for number in range(200)}
    draw_differences("b against a", ["Dice"], panels, tmp_path / "many.png")
    draw_differences("b against a", ["Dice"], dict(list(panels.items())[:MOST_PANELS]), tmp_path / "few.png")
    many, few = (cv2.imread(str(tmp_path / name)) for name in ("many.png", "few.png"))
    assert many.shape == few.shape and many.shape[1] < 8000 and (many != few).any()
