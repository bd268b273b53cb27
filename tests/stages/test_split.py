"""The split: nothing straddles, the order never matters, shares are kept, and the proof says what it should."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Config, SplitSettings
from pipeline.grouping.joins import Join
from pipeline.records.case import Case, write_cases
from pipeline.records.paths import Paths
from pipeline.records.rasters import write_png
from pipeline.records.split import read_parts
from pipeline.stages import split


def case(case_id: str, group: str | None = None, stratum: str | None = None, labelled: bool = True) -> Case:
    label = f"labels/{case_id}.png" if labelled else None
    return Case(
        case_id,
        "made",
        f"images/{case_id}.png",
        label,
        "instance" if labelled else "none",
        group,
        stratum,
        64,
        64,
        None,
        "",
    )


def grouped(sizes: list[int], strata: list[str] | None = None) -> tuple[list[Case], dict[str, str]]:
    """Cases of groups of these sizes, one stratum a group."""
    cases = [
        case(f"c{group:03d}-{member}", f"g{group:03d}", strata[group % len(strata)] if strata else None)
        for group, size in enumerate(sizes)
        for member in range(size)
    ]
    return cases, {one.case_id: str(one.group) for one in cases}


def columns(rows: list[list[str]]) -> list[tuple[str, ...]]:
    return list(zip(*rows, strict=True))


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=8, max_size=40),
    strata=st.lists(st.sampled_from(["tissue", "dark", "rare"]), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
    folds=st.integers(2, 4),
)
def test_no_group_straddles_and_the_order_never_matters(
    sizes: list[int], strata: list[str], seed: int, folds: int
) -> None:
    cases, groups = grouped(sizes, strata)
    chosen = SplitSettings(folds=folds)
    try:
        rows = split.divide(cases, groups, chosen, seed)
    except ValueError as error:
        assert "lower split.folds" in str(error)
        return
    parts, held = defaultdict(set), defaultdict(set)
    for case_id, group, _, part, fold in rows:
        assert groups[case_id] == group
        assert (fold == "") == (part == "test")
        parts[group].add(part)
        held[group].add(fold)
    assert all(len(found) == 1 for found in (*parts.values(), *held.values()))
    assert {row[3] for row in rows} == {"train", "validation", "test"}
    assert {row[4] for row in rows} - {""} == {str(fold) for fold in range(folds)}
    assert [row[0] for row in rows] == sorted(groups)
    shuffled = [cases[index] for index in np.random.default_rng(seed).permutation(len(cases))]
    assert split.divide(shuffled, groups, chosen, seed) == rows


def test_shares_and_strata_are_kept() -> None:
    cases, groups = grouped([4] * 60 + [1] * 40, ["white/black", "white/black", "purple/white", "purple/purple"])
    rows = split.divide(cases, groups, SplitSettings(), 1412)
    counts = Counter(row[3] for row in rows)
    assert abs(counts["test"] / len(rows) - 0.2) < 0.02
    assert abs(counts["validation"] / len(rows) - 0.15) < 0.02
    for stratum in {row[2] for row in rows}:
        mine = Counter(row[3] for row in rows if row[2] == stratum)
        assert abs(mine["test"] / sum(mine.values()) - 0.2) < 0.04
    folds = Counter(row[4] for row in rows if row[4])
    assert max(folds.values()) - min(folds.values()) <= 4


def test_a_stratum_of_three_groups_is_in_every_part() -> None:
    cases, groups = grouped([2] * 43)
    cases = [
        case(one.case_id, one.group, "rare" if one.group in {"g000", "g001", "g002"} else "common") for one in cases
    ]
    for seed in range(3):
        rows = split.divide(cases, groups, SplitSettings(), seed)
        assert {row[3] for row in rows if row[2] == "rare"} == {"train", "validation", "test"}


def test_strata_of_one_group_each_are_divided_together() -> None:
    cases, groups = grouped([1] * 40)
    cases = [case(one.case_id, one.group, one.case_id) for one in cases]
    counts = Counter(row[3] for row in split.divide(cases, groups, SplitSettings(), 3))
    assert counts == {"train": 26, "validation": 6, "test": 8}


def test_another_seed_gives_another_split() -> None:
    cases, groups = grouped([2] * 30)
    assert split.divide(cases, groups, SplitSettings(), 1) != split.divide(cases, groups, SplitSettings(), 2)


def test_a_share_beside_strata_to_test_on_is_noted(tmp_path: Path) -> None:
    cases, groups = grouped([2] * 40, ["a", "a", "b", "a"])
    for share, noted in ((0.2, 0), (0.4, 1)):
        chosen = SplitSettings(test_strata=("b",), test_share=share)
        rows = split.divide(cases, groups, chosen, 1412)
        proof = split.prove(rows, cases, groups, [], lambda _: np.zeros((4, 4, 3), np.uint8), Config(split=chosen))
        told = split._lines(proof, Paths.of(Config(), tmp_path))
        assert (
            sum("noted: split.test_share=0.4 has no effect beside split.test_strata" in line for line in told) == noted
        )


def test_no_test_part_where_its_share_is_zero() -> None:
    cases, groups = grouped([2] * 10)
    rows = split.divide(cases, groups, SplitSettings(test_share=0.0, validation_share=0.0, folds=2), 1)
    assert {row[3] for row in rows} == {"train"}
    assert {row[4] for row in rows} == {"0", "1"}


@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=16, max_size=40), seed=st.integers(0, 2**32 - 1),
       strata=st.sampled_from([("a",), ("a", "b"), ("a", "a", "b")]), of_strata=st.booleans())  # fmt: skip
def test_a_fold_is_tested_on_and_the_test_part_of_the_fixed_split_is_held_out(
    sizes: list[int], seed: int, strata: tuple[str, ...], of_strata: bool
) -> None:
    cases, groups = grouped(sizes, list(strata))
    chosen = SplitSettings(folds=3, test_strata=("b",) if of_strata and "b" in strata else ())
    fixed = split.divide(cases, groups, chosen, seed)
    for fold in range(3):
        rows = split.divide(cases, groups, chosen.model_copy(update={"fold": fold}), seed)
        assert [(*row[:3], row[4]) for row in rows] == [(*row[:3], row[4]) for row in fixed]
        assert [row[3] == "held_out" for row in rows] == [row[3] == "test" for row in fixed]
        assert [row[3] == "test" for row in rows] == [row[4] == str(fold) for row in fixed]
        parts = defaultdict(set)
        for row in rows:
            parts[row[1]].add(row[3])
        assert all(len(found) == 1 for found in parts.values())
        assert {row[3] for row in rows} == {"train", "validation", "test", "held_out"}


@pytest.mark.parametrize("of_strata", [(), ("b",)])
def test_shares_of_a_fold_are_those_that_were_drawn(of_strata: tuple[str, ...]) -> None:
    cases, groups = grouped([2] * 100, ["a", "a", "a", "b"])
    chosen = SplitSettings(test_strata=of_strata, fold=1)
    rows = split.divide(cases, groups, chosen, 1412)
    proof = split.prove(rows, cases, groups, [], lambda _: np.zeros((4, 4, 3), np.uint8), Config(split=chosen))
    described = {**proof["parts"], "held_out": proof["held_out"]}
    assert sum(part["cases"] for part in described.values()) == len(rows)
    assert sum(part["wanted_share"] for part in described.values()) == pytest.approx(1.0, abs=1e-3)
    assert all(part["share"] == pytest.approx(part["wanted_share"], abs=0.02) for part in described.values())


def test_too_few_groups_say_how_many_and_what_to_change() -> None:
    cases, groups = grouped([10] * 4)
    with pytest.raises(ValueError, match=r"at least 6 groups.*and 5 folds, found 4 in 40 labelled.*Lower split\.folds"):
        split.divide(cases, groups, SplitSettings(fold=0), 1)
    joined = dict.fromkeys(groups, "one") | {case.case_id: "other" for case in cases[:10]}
    with pytest.raises(ValueError, match=r"found 2 in .*or set split\.groups=given \(4 groups came with the cases"):
        split.divide(cases, joined, SplitSettings(), 1)
    with pytest.raises(ValueError, match=r"found 0 in 0 labelled cases.*split\.groups=none if the cases are indep"):
        split.divide([], {}, SplitSettings(), 1)
    cases, groups = grouped([1] * 6, ["a", "b"])
    with pytest.raises(ValueError, match=r"5 folds in what is not test, found 4.*lower split\.folds to 4"):
        split.divide(cases, groups, SplitSettings(fold=0), 1)


def test_too_few_groups_for_folds_are_divided_all_the_same() -> None:
    cases, groups = grouped([10] * 4)
    rows = split.divide(cases, groups, SplitSettings(), 1)
    assert {row[3] for row in rows} == {"train", "validation", "test"}
    assert {row[4] for row in rows} == {""}
    cases, groups = grouped([10] * 12)
    assert {row[4] for row in split.divide(cases, groups, SplitSettings(), 1)} > set("01234")


def test_groups_given_found_both_or_none() -> None:
    cases = [case("a", "P1"), case("b", "P1"), case("c", "P2"), case("d"), case("e")]
    joins = [Join("c", "d", "right-of", 50.0), Join("b", "d", "below", 40.0)]
    assert split.group_cases(cases, joins, "auto") == {"a": "P1", "b": "P1", "c": "P1", "d": "P1", "e": "e"}
    assert split.group_cases(cases, joins, "pixels") == {"a": "a", "b": "b", "c": "b", "d": "b", "e": "e"}
    assert split.group_cases(cases, joins, "none") == {name: name for name in "abcde"}
    assert split.group_cases(cases[:3], joins, "given") == {"a": "P1", "b": "P1", "c": "P2"}
    with pytest.raises(ValueError, match=r"found none with 2 \(d, e\).*ingest\.group_csv"):
        split.group_cases(cases, joins, "given")


def test_the_leak_of_an_ungrouped_split_is_counted() -> None:
    rows = [[f"c{number}", f"g{number}", "", "test" if number < 20 else "train", ""] for number in range(100)]
    alone = {row[0]: row[1] for row in rows}
    assert split.ungrouped_leak(rows, alone, 1)["leaked"] == 0
    pairs = {row[0]: str(int(row[0][1:]) // 2) for row in rows}
    # The mate of each of 20 test cases is in train with probability 80/99.
    assert split.ungrouped_leak(rows, pairs, 1)["leaked"] == pytest.approx(20 * 80 / 99, abs=0.5)


def texture(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    fine, coarse = (cv2.GaussianBlur(generator.standard_normal((128, 128, 3)), (0, 0), sigma) for sigma in (1.5, 6.0))
    return np.clip(150 + 90 * fine + 260 * coarse, 0, 255).astype(np.uint8)


@pytest.fixture
def ingested(tmp_path: Path) -> Paths:
    """Twelve fields of four crops, one turned copy, and an unlabelled crop of the first field's place."""
    paths = Paths.of(Config(dataset="made"), tmp_path)
    images = {}
    for seed in range(12):
        field = texture(seed)
        for row in (0, 64):
            for column in (0, 64):
                images[f"f{seed:02d}-{row}-{column}"] = field[row : row + 64, column : column + 64]
    images["copy"] = np.ascontiguousarray(np.rot90(images["f03-0-64"]))
    for case_id, image in images.items():
        write_png(paths.ingest / "images" / f"{case_id}.png", image)
    write_cases(paths.cases, [case(case_id, labelled=case_id != "f00-64-64") for case_id in images])
    return paths


def test_the_stage_writes_a_split_its_evidence_and_its_proof(ingested: Paths) -> None:
    lines = split.run(Config(dataset="made"), ingested)
    names = ("split.csv", "groups.csv", "groups.png", "proof.json")
    before = [(ingested.split / name).read_bytes() for name in names]
    proof = json.loads(ingested.proof.read_text(encoding="utf-8"))
    assert proof["cases"] == 48 and proof["groups"] == 12
    assert proof["groups_in_two_parts"] == proof["joins_across_parts"] == proof["identical_images_across_parts"] == []
    assert proof["largest_group"]["cases"] == 5
    assert proof["unlabelled"] == {"cases": 1, "in_a_labelled_group": 1, "case_ids": ["f00-64-64"]}
    assert sum(part["cases"] for part in proof["parts"].values()) == 48
    assert proof["joins"]["found"] == {"below": 24, "duplicate": 1, "right-of": 24}
    tests, leaked = proof["ungrouped_split"]["test_cases"], proof["ungrouped_split"]["leaked"]
    assert 0.7 * tests < leaked <= tests
    assert any(f"would have put {leaked:.0f} of {tests} test images" in line for line in lines)
    assert "1 of 1 unlabelled images belong to a group with labelled ones" in lines
    parts = read_parts(ingested)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [
        proof["parts"][name]["cases"] for name in ("train", "validation", "test")
    ]
    with (ingested.split / "groups.csv").open(encoding="utf-8") as stream:
        evidence = {(row["first"], row["second"]): row for row in csv.DictReader(stream)}
    assert evidence["copy", "f03-0-64"]["kind"] == "duplicate"
    assert evidence["f05-0-0", "f05-0-64"]["columns"] == "64"
    split.run(Config(dataset="made"), ingested)
    assert [(ingested.split / name).read_bytes() for name in names] == before


def test_copies_stay_together_though_there_are_too_many_images_to_compare(
    ingested: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "MAXIMUM_IMAGES", 20)
    lines = split.run(Config(dataset="made"), ingested)
    proof = json.loads(ingested.proof.read_text(encoding="utf-8"))
    assert proof["joins"]["found"] == {"duplicate": 1} and proof["identical_images_across_parts"] == []
    assert any("compared for exact copies alone" in line for line in lines)
    assert any("would have put at least" in line for line in lines)


def test_a_split_that_leaks_says_so(ingested: Paths) -> None:
    config = Config(dataset="made", split=SplitSettings(groups="none"))
    lines = split.run(config, ingested)
    proof = json.loads(ingested.proof.read_text(encoding="utf-8"))
    assert len(proof["joins_across_parts"]) > 10
    assert proof["ungrouped_split"]["leaked"] > 0
    assert any(line.startswith("warning:") and "split.groups=auto" in line for line in lines)
