"""What a run has seen never tests it: by case, by patient, and through the runs that it stands on."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline.records.case import Case
from pipeline.records.seen import Seen


def case(case_id: str, group: str | None = None, dataset: str = "one") -> Case:
    return Case(case_id, dataset, f"{case_id}.png", None, "none", group, None, 9, 9, None, "")


def record(trained_on: list[str], chosen_on: list[str] = [], **further: Any) -> dict[str, Any]:  # noqa: B006
    return {"trained_on": trained_on, "chosen_on": {"cases": chosen_on}, **further}


def test_cases_that_trained_or_chose_are_seen() -> None:
    seen = Seen.of_record(record(["a"], ["b"]), "one")
    assert seen.among("one", [case("a"), case("b"), case("c")], True, {}) == [case("a"), case("b")]
    assert seen.told("one", [case("c")], True, {}) == ""
    assert seen.told("one", [case("b"), case("a")], True, {}) == "2 that did (a, b)"


def test_the_same_names_in_another_data_set_are_other_cases() -> None:
    assert Seen.of_record(record(["a"]), "one").among("two", [case("a", dataset="two")], True, {}) == []


@pytest.mark.parametrize("dataset", ["one", "two"])
def test_another_image_of_a_patient_is_seen_in_any_data_set(dataset: str) -> None:
    seen = Seen.of_record(record(["a"], groups=["patient-1"]), "one")
    tested = [case("x", "patient-1", dataset), case("y", "patient-2", dataset), case("z", None, dataset)]
    assert seen.among(dataset, tested, True, {}) == tested[:1]
    assert seen.told(dataset, tested, True, {}) == "1 that did (x), of them by other images of the groups patient-1"
    assert seen.among(dataset, tested, False, {}) == []


def test_another_crop_of_a_field_that_pixels_joined_is_seen_in_its_data_set_alone() -> None:
    of_split = {"a1": "a0", "a2": "a0", "b": "b"}
    seen = Seen.of_cases("one", [case("a1")], of_split)
    assert seen.among("one", [case("a2"), case("b"), case("new")], True, of_split) == [case("a2")]
    assert seen.told("one", [case("a2")], False, of_split) == (
        "1 that did (a2), of them by other images of the groups a0"
    )
    assert seen.told("one", [case("a2")], True, {}) == ""
    assert seen.told("two", [case("a2", dataset="two")], True, of_split) == ""


def test_a_field_whose_name_is_that_of_a_case_that_is_gone_is_known_by_its_other_cases() -> None:
    seen = Seen.of_cases("one", [case("a1")], {"a0": "a0", "a1": "a0", "a2": "a0"})
    without = {"a1": "a1", "a2": "a1", "b": "b"}
    assert seen.among("one", [case("a2"), case("b")], True, without) == [case("a2")]
    # So are those of runs that were recorded before groups of the split were.
    early = Seen.of_record(record(["a1"]), "one")
    assert early.told("one", [case("a2")], True, without) == (
        "1 that did (a2), of them by other images of the groups a1"
    )


def test_what_a_run_stands_on_is_inherited_through_a_record() -> None:
    first = Seen.of_cases("one", [case("a", "patient-1"), case("b")], {"a": "patient-1", "b": "a0"})
    second = Seen.of_cases("two", [case("c", "patient-2", "two")], {"c": "patient-2"}) | first
    further = {"groups": ["patient-3"], "split_groups": ["patient-3"]}
    kept = Seen.of_record(record(["d"], **further, inherited=second.as_dict()), "two")
    assert kept.cases == {"one": frozenset("ab"), "two": frozenset("cd")}
    assert kept.groups == {"patient-1", "patient-2", "patient-3"}
    assert kept.split_groups == {"one": {"patient-1", "a0"}, "two": {"patient-2", "patient-3"}}


@pytest.mark.parametrize(
    ("groups", "group", "told"),
    [
        (["patient-1"], "patient-2", ""),
        ([], "patient-2", "whether images of one, .* since one names no groups"),
        (["patient-1"], None, "whether images of one, .* since two names no groups"),
    ],
)
def test_it_is_told_where_the_same_tissue_could_not_be_recognised(
    groups: list[str], group: str | None, told: str
) -> None:
    seen = Seen.of_record(record(["a"], groups=groups), "one")
    assert re.match(f"({told})", seen.doubt("two", [case("x", group, "two")])) and seen.doubt("one", [case("x")]) == ""
    assert bool(seen.doubt("two", [case("x", group, "two")])) == bool(told)
