"""Which cases are shown: each once, worst and best before the median, the same for any order of rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.reporting.cases import choose_cases


def rows_of(scores: list[float | None]) -> list[dict[str, object]]:
    return [{"case_id": f"{index:03d}", "ap": score} for index, score in enumerate(scores)]


def chosen_ids(rows: list[dict[str, object]], count: int) -> dict[str, list[object]]:
    return {kind: [row["case_id"] for row in chosen] for kind, chosen in choose_cases(rows, "ap", count).items()}


def test_nine_cases() -> None:
    rows = rows_of([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.4, 0.8, 0.6])
    assert chosen_ids(rows, 2) == {"worst": ["001", "005"], "median": ["006", "002"], "best": ["000", "007"]}
    assert chosen_ids(rows, 1) == {"worst": ["001"], "median": ["002"], "best": ["000"]}


def test_few_cases_are_shown_once() -> None:
    assert chosen_ids(rows_of([0.5]), 4) == {"worst": ["000"], "median": [], "best": []}
    assert chosen_ids(rows_of([0.5, 0.5]), 4) == {"worst": ["000"], "median": [], "best": ["001"]}
    assert chosen_ids(rows_of([None, 0.2]), 4) == {"worst": ["001"], "median": [], "best": []}


def test_what_is_empty_is_not_shown_as_the_best() -> None:
    empty = {"tp": 0.0, "fp": 0.0, "fn": 0.0}
    rows = [row | {"tp": 0.0, "fp": 3.0, "fn": 0.0} for row in rows_of([0.0, 0.5, 0.7])]
    blank = [{"case_id": "a", "ap": 1.0} | empty, {"case_id": "b", "ap": 1.0} | empty]
    assert chosen_ids(rows + blank, 1) == {"worst": ["000"], "median": ["001"], "best": ["002"]}
    assert chosen_ids(blank, 1) == {"worst": ["a"], "median": [], "best": ["b"]}


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, None]), max_size=30), st.integers(1, 8), st.randoms())
def test_each_once_and_in_any_order(scores: list[float | None], count: int, random: object) -> None:
    rows = rows_of(scores)
    chosen = chosen_ids(rows, count)
    shown = [case_id for ids in chosen.values() for case_id in ids]
    scored = sum(score is not None for score in scores)
    assert len(shown) == len(set(shown)) == min(scored, 3 * count)
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert chosen_ids(rows, count) == chosen
