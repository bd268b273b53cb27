"""Split: divide groups of cases into train, validation, test and folds, and prove that nothing leaks.

Reads:  data/ingest/<dataset>/ cases.jsonl, images/
Writes: data/split/<dataset>/<name>/ split.csv, groups.csv, groups.png, proof.json
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, SplitSettings
from pipeline.grouping import MAXIMUM_IMAGES, find_joins
from pipeline.grouping.joins import Join, join_sets, members_of
from pipeline.grouping.same_pixels import find_identical
from pipeline.grouping.sheet import draw_groups
from pipeline.records.case import Case, divided, read_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, write_png
from pipeline.records.split import HELD_OUT, PARTS

CANDIDATES = 100
"""Random choices of groups tried for each stratum; the one with the number of cases nearest to the wanted is taken."""
RANDOM_SPLITS = 100
"""Ungrouped splits over which the leak is averaged."""
LEAST_GROUPS = 3
"""A stratum with fewer groups than there are parts cannot be in each; such strata are divided together."""


def inputs(config: Config, paths: Paths) -> list[Path]:
    """The ingested cases and images, by their manifest."""
    return [paths.ingest / "stage.json"]


def run(config: Config, paths: Paths) -> list[str]:
    """Find groups, divide them, check the result against the pixels and write all of it."""
    cases = read_cases(paths.cases)
    labelled = divided(cases)

    def load(case_id: str) -> np.ndarray:
        return read_image(files[case_id])

    files = {case.case_id: paths.ingest / case.image for case in cases}
    dropped: list[str] = []
    compared = config.split.groups == "pixels" or len(cases) <= MAXIMUM_IMAGES
    joins = find_joins(files, load, dropped.append) if compared else []
    if not compared and config.split.groups == "auto":
        joins = find_identical(files, load)
    groups = group_cases(cases, joins, config.split.groups)
    if config.split.published:
        groups = within_published(cases, groups, config.split)
    rows = divide(labelled, groups, config.split, config.seed)
    proof = prove(rows, cases, groups, joins, load, config, dropped=dropped, compared=compared)

    write_text(paths.split_table, _table(["case_id", "group", "stratum", "part", "fold"], rows))
    write_text(paths.split / "groups.csv", _table(_JOIN_COLUMNS, [_join_row(join, groups) for join in joins]))
    sheet = draw_groups(joins, load, {case.case_id: (case.height, case.width) for case in cases})
    write_png(paths.split / "groups.png", sheet)
    write_json(paths.proof, proof)
    return _lines(proof, paths)


# --- Groups -------------------------------------------------------------------------------------------------------


def group_cases(cases: Sequence[Case], joins: Iterable[Join], groups: str) -> dict[str, str]:
    """Map every case id to its group, as split.groups says.

    A group given with the cases keeps its name where it stands alone; groups that pixels join take the first name.
    Raises ValueError where groups is given and a case has none.
    """
    if groups == "none":
        return {case.case_id: case.case_id for case in cases}
    if groups == "given":
        missing = [case.case_id for case in divided(cases) if case.group is None]
        if missing:
            raise ValueError(
                f"split.groups=given: expected a group with every labelled case, found none with {len(missing)} "
                f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}); "
                "set ingest.group_csv or ingest.group_pattern, or split.groups=auto"
            )
        return {case.case_id: case.group or case.case_id for case in cases}
    pairs = [(join.first, join.second) for join in joins]
    given = {case.case_id: case.group for case in cases if case.group is not None} if groups == "auto" else {}
    first_of: dict[str, str] = {}
    for case_id, group in sorted(given.items()):
        pairs.append((first_of.setdefault(group, case_id), case_id))
    joined = join_sets((case.case_id for case in cases), pairs)
    names = {
        name: min((given[m] for m in members if m in given), default=name)
        for name, members in members_of(joined).items()
    }
    return {case_id: names[name] for case_id, name in joined.items()}


def within_published(cases: Sequence[Case], groups: dict[str, str], settings: SplitSettings) -> dict[str, str]:
    """Divide groups that split.published puts into several parts, so that each lies in one; joins are still told.

    Raises ValueError for groups that were given, patients say, and lie in several: scores would be refused later.
    """
    becomes = {case.case_id: settings.published.get(case.part or "", "train") for case in cases}
    parts_of: dict[str, set[str]] = defaultdict(set)
    for case_id, group in groups.items():
        parts_of[group].add(becomes[case_id])
    given_in: dict[str, set[str]] = defaultdict(set)
    for case in cases if settings.groups in ("auto", "given") else ():
        if case.group is not None:
            given_in[case.group].add(becomes[case.case_id])
    if straddling := sorted(group for group, parts in given_in.items() if len(parts) > 1):
        first = straddling[0]
        raise ValueError(
            f"split.published: expected each given group in one part, found {len(straddling)} in several, {first} in "
            f"{', '.join(sorted(given_in[first]))} among them; leave split.published out, or look past the groups that "
            "were given with split.groups=pixels"
        )
    return {
        case_id: f"{group} ({becomes[case_id]})" if len(parts_of[group]) > 1 else group
        for case_id, group in groups.items()
    }


# --- Dividing -----------------------------------------------------------------------------------------------------


def divide(cases: Sequence[Case], groups: dict[str, str], settings: SplitSettings, seed: int) -> list[list[str]]:
    """Rows of case_id, group, stratum, part and fold (empty for test, or what is held out), ordered by case id.

    The groups of every stratum are drawn by themselves (scikit-learn's train_test_split), first for test, then for
    validation; of CANDIDATES draws the one with the number of cases nearest to the wanted share is taken. Folds are
    scikit-learn's StratifiedGroupKFold over what is not test; there are none with split.published, nor where there are
    too few groups for them and split.fold asks for none. The order of the cases never matters.
    Raises ValueError where there are too few groups.
    """
    cases = sorted(cases, key=lambda case: case.case_id)
    sizes = Counter(groups[case.case_id] for case in cases)
    published = _published(cases, groups, settings)
    if not published:
        _check_enough(cases, sizes, settings)
    strata = _strata_of_groups(cases, groups)
    if published:
        test, share_of_rest = published["test"], settings.validation_share
    elif settings.test_strata:
        test, share_of_rest = _groups_with(cases, groups, settings.test_strata), settings.validation_share
    else:
        test = _draw(sizes, strata, settings.test_share, seed)
        share_of_rest = settings.validation_share / (1.0 - settings.test_share)
    remaining = [case for case in cases if groups[case.case_id] not in test]
    folds = {} if published else _folds(remaining, groups, strata, settings, seed)
    held_out: set[str] = set()
    if settings.fold is not None:
        held_out, test = test, {groups[case_id] for case_id, fold in folds.items() if fold == str(settings.fold)}
    rest = {group: size for group, size in sizes.items() if group not in test | held_out}
    validation = published.get("validation") or _draw(rest, strata, share_of_rest, seed + 1)
    rows = []
    for case in cases:
        group = groups[case.case_id]
        part = next((name for name, own in (("test", test), ("validation", validation), (HELD_OUT, held_out))
                     if group in own), "train")  # fmt: skip
        rows.append([case.case_id, group, case.stratum or "", part, folds.get(case.case_id, "")])
    return rows


def _published(cases: Sequence[Case], groups: dict[str, str], settings: SplitSettings) -> dict[str, set[str]]:
    """Groups of each part that split.published names; empty where it names none.

    Raises ValueError where it names parts that no case was published in, or misses some.
    """
    if not settings.published:
        return {}
    found = {case.part for case in cases}
    unknown, missed = sorted(settings.published.keys() - found), sorted(map(str, found - settings.published.keys()))
    if unknown or missed:
        there = ", ".join(sorted(part for part in found if part)) or "none"
        wrong = [*(f"{name}, which is none" for name in unknown), *(f"nothing for {name}" for name in missed)]
        raise ValueError(
            f"split.published: expected each part that the cases were published in ({there}), found "
            f"{'; '.join(wrong)}; name each, or leave split.published out"
        )
    chosen: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        chosen[settings.published[str(case.part)]].add(groups[case.case_id])
    return dict(chosen)


def _groups_with(cases: Sequence[Case], groups: dict[str, str], strata: Sequence[str]) -> set[str]:
    """Groups with a case of these strata. Raises ValueError where a stratum is not there, or nothing else is."""
    found = {case.stratum or "" for case in cases}
    unknown = [stratum for stratum in strata if stratum not in found]
    chosen = {groups[case.case_id] for case in cases if (case.stratum or "") in strata}
    if unknown or all(groups[case.case_id] in chosen for case in cases):
        raise ValueError(
            f"split.test_strata: expected some of the strata {', '.join(sorted(found - {''})) or '(none)'}, "
            f"found {', '.join(unknown or strata)}; name those to test on and leave others to train on"
        )
    return chosen


def _check_enough(cases: Sequence[Case], sizes: Counter[str], settings: SplitSettings) -> None:
    held_out = [
        name for name, share in (("validation", settings.validation_share), ("test", settings.test_share)) if share
    ]
    folds = settings.folds if settings.fold is not None else 0
    least = max(folds, 1 + (settings.validation_share > 0)) + (settings.test_share > 0)
    if len(sizes) < least:
        parts = ", ".join(["train", *held_out])
        lower = "Lower split.folds (2 at least), set" if folds else "Set"
        given = len({case.group for case in cases if case.group})
        if given > len(sizes):
            advice = f"set split.groups=given ({given} groups came with the cases, and pixels joined them)"
        elif given:
            advice = "add groups"
        else:
            advice = "set split.groups=none if the cases are independent"
        raise ValueError(
            f"split: expected at least {least} groups for {parts}{f' and {folds} folds' if folds else ''}, found "
            f"{len(sizes)} in {len(cases)} labelled cases. {lower} split.test_share to 0, "
            f"add cases, or {advice}"
        )


def _strata_of_groups(cases: Sequence[Case], groups: dict[str, str]) -> dict[str, str]:
    """Each group's commonest stratum; strata of too few groups are pooled, with the largest where still too few."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        votes[groups[case.case_id]][case.stratum or ""] += 1
    strata = {group: min(count, key=lambda name: (-count[name], name)) for group, count in sorted(votes.items())}
    frequent = Counter(strata.values())
    rare = {name for name, count in frequent.items() if count < LEAST_GROUPS}
    if rare and (pooled := sum(frequent[name] for name in rare)) < LEAST_GROUPS and pooled < len(strata):
        pool = min(frequent, key=lambda name: (-frequent[name], name))
    else:
        pool = "\0pooled"
    return {group: pool if stratum in rare else stratum for group, stratum in strata.items()}


def _draw(sizes: dict[str, int], strata: dict[str, str], share: float, seed: int) -> set[str]:
    """Draw a share of every stratum's groups: at least one, and never all."""
    from sklearn.model_selection import train_test_split

    if share == 0.0:
        return set()
    drawn: set[str] = set()
    for number, (_, members) in enumerate(sorted(members_of({group: strata[group] for group in sizes}).items())):
        count = min(max(1, round(share * len(members))), len(members) - 1)
        if count < 1:
            continue
        wanted = share * sum(sizes[group] for group in members)
        states = np.random.SeedSequence([seed, number]).generate_state(CANDIDATES)
        candidates = (train_test_split(members, test_size=count, random_state=int(state))[1] for state in states)
        drawn.update(min(candidates, key=lambda chosen: abs(sum(sizes[group] for group in chosen) - wanted)))
    return drawn


def _folds(
    cases: Sequence[Case], groups: dict[str, str], strata: dict[str, str], settings: SplitSettings, seed: int
) -> dict[str, str]:
    """The fold of each case; of none where they cannot be made and no fold is tested on."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = settings.folds
    names = [groups[case.case_id] for case in cases]
    sizes = Counter(names).values()
    found: dict[str, str] = {}
    if len(sizes) >= folds:
        known = sorted(set(strata.values()))
        codes = np.array([known.index(strata[name]) for name in names])
        counts = np.bincount(codes, minlength=len(known))
        # Fewer cases than folds cannot be spread over them, and scikit-learn warns of it.
        codes[counts[codes] < folds] = int(counts.argmax())
        splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(cases)), codes, names)):
            found.update({cases[index].case_id: str(fold) for index in held_out})
    if len(set(found.values())) < folds:
        if settings.fold is None:
            return {}
        raise ValueError(
            f"split: expected groups for {folds} folds in what is not test, found {len(sizes)} of {min(sizes)} to "
            f"{max(sizes)} cases; lower split.folds to {max(2, min(folds - 1, len(sizes)))}, or add cases"
        )
    return found


# --- Proof --------------------------------------------------------------------------------------------------------


def prove(
    rows: Sequence[Sequence[str]],
    cases: Sequence[Case],
    groups: dict[str, str],
    joins: Sequence[Join],
    load: Callable[[str], np.ndarray],
    config: Config,
    *,
    dropped: Sequence[str] = (),
    compared: bool = True,
) -> dict[str, Any]:
    """What proof.json holds; every count of a leak is made anew from the rows and from the pixels.

    dropped: in words, joins that were found and not believed; compared: whether all pixels were compared, not for exact
    copies alone.
    Raises AssertionError where a group lies in two parts or two folds, which divide rules out.
    """
    part = {row[0]: row[3] for row in rows}
    own = {row[0]: row[1] for row in rows}
    parts_of, folds_of = ({key: {r[c] for r in rows if r[1] == key} for key in set(own.values())} for c in (3, 4))
    straddling = sorted(group for group in parts_of if len(parts_of[group]) > 1 or len(folds_of[group]) > 1)
    assert not straddling, f"groups in two parts or folds: {straddling}"
    across = [
        join
        for join in joins
        if part.get(join.first, "") != part.get(join.second, "") and {join.first, join.second} <= set(part)
    ]
    return {
        "groups_in_two_parts": straddling,
        "joins_across_parts": [_join_row(join, groups)[1:] for join in across],
        "identical_images_across_parts": _identical_across(part, load),
        "cases": len(rows),
        "groups": len(parts_of),
        "group_sizes": {str(size): count for size, count in sorted(Counter(Counter(own.values()).values()).items())},
        "largest_group": _largest(own),
        "parts": {name: _describe_part(name, rows, config.split) for name in PARTS},
        **({HELD_OUT: _describe_part(HELD_OUT, rows, config.split)} if config.split.fold is not None else {}),
        "folds": {
            fold: {"cases": sum(r[4] == fold for r in rows), "groups": len({r[1] for r in rows if r[4] == fold})}
            for fold in sorted({r[4] for r in rows} - {""}, key=int)
        },
        "strata": _describe_strata(rows),
        "joins": {
            "found": dict(sorted(Counter(join.kind for join in joins).items())),
            "dropped": [*dropped],
            "compared_pixels": compared,
        },
        "unlabelled": _describe_unlabelled(cases, groups, part),
        "ungrouped_split": ungrouped_leak(rows, group_cases(cases, joins, "auto"), config.seed),
        "settings": {"seed": config.seed, **config.split.model_dump(mode="json")},
    }


def _identical_across(part: dict[str, str], load: Callable[[str], np.ndarray]) -> list[list[str]]:
    """Pairs of cases in different parts whose pixels are the same in one of eight orientations."""
    pairs = ((join.first, join.second) for join in find_identical(part, load))
    return [[first, second] for first, second in pairs if part[first] != part[second]]


def _largest(own: dict[str, str]) -> dict[str, Any]:
    name, size = min(Counter(own.values()).items(), key=lambda entry: (-entry[1], entry[0]))
    return {"group": name, "cases": size, "share": round(size / len(own), 4)}


def _describe_part(name: str, rows: Sequence[Sequence[str]], settings: SplitSettings) -> dict[str, Any]:
    mine = [row for row in rows if row[3] == name]
    held_out = {"test": settings.test_share, "validation": settings.validation_share}
    if settings.test_strata or settings.published:
        # As many as these strata or parts hold are wanted, and the validation share is one of the rest.
        test = sum(row[3] == "test" for row in rows) / len(rows)
        held_out = {"test": test, "validation": settings.validation_share * (1.0 - test)}
        if "validation" in settings.published.values():
            held_out["validation"] = sum(row[3] == "validation" for row in rows) / len(rows)
    if settings.fold is not None:
        rest = 1.0 - sum(row[3] == HELD_OUT for row in rows) / len(rows)
        # As divide draws it.
        share_of_rest = settings.validation_share / (1.0 if settings.test_strata else 1.0 - settings.test_share)
        validation = share_of_rest * (1.0 - 1.0 / settings.folds)
        held_out = {HELD_OUT: 1.0 - rest, "test": rest / settings.folds, "validation": rest * validation}
    return {
        "cases": len(mine),
        "groups": len({row[1] for row in mine}),
        "share": round(len(mine) / len(rows), 4),
        "wanted_share": round(held_out.get(name, 1.0 - sum(held_out.values())), 4),
    }


def _describe_strata(rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    table = {}
    for stratum in sorted({row[2] for row in rows}):
        table[stratum or "(none)"] = {
            name: {
                "cases": len(mine := [row for row in rows if row[2] == stratum and row[3] == name]),
                "groups": len({row[1] for row in mine}),
                "share_of_part": round(len(mine) / max(1, sum(row[3] == name for row in rows)), 4),
            }
            for name in PARTS
        }
    return table


def _describe_unlabelled(cases: Sequence[Case], groups: dict[str, str], part: dict[str, str]) -> dict[str, Any]:
    with_label = {groups[case_id] for case_id in part}
    unlabelled = [case.case_id for case in cases if case.case_id not in part]
    joined = sorted(case_id for case_id in unlabelled if groups[case_id] in with_label)
    return {"cases": len(unlabelled), "in_a_labelled_group": len(joined), "case_ids": joined}


def ungrouped_leak(rows: Sequence[Sequence[str]], groups: dict[str, str], seed: int) -> dict[str, Any]:
    """Test cases with a case of their group in train, had the cases been divided at random: mean over RANDOM_SPLITS."""
    own = np.unique([groups[row[0]] for row in rows], return_inverse=True)[1]
    counts = Counter(row[3] for row in rows)
    generator = np.random.default_rng(seed)
    leaked = []
    for _ in range(RANDOM_SPLITS):
        order = generator.permutation(own)
        test, train = order[: counts["test"]], order[len(rows) - counts["train"] :]
        leaked.append(int(np.isin(test, train).sum()))
    return {"test_cases": counts["test"], "leaked": round(float(np.mean(leaked)), 2), "random_splits": RANDOM_SPLITS}


def _lines(proof: dict[str, Any], paths: Paths) -> list[str]:
    parts = ", ".join(
        f"{name} {proof['parts'][name]['cases']} ({proof['parts'][name]['groups']} groups)" for name in PARTS
    )
    largest, leak, unlabelled = proof["largest_group"], proof["ungrouped_split"], proof["unlabelled"]
    lines = [f"{proof['cases']} cases in {proof['groups']} groups: {parts}"]
    settings = proof["settings"]
    if settings["test_strata"] and settings["test_share"] != SplitSettings.model_fields["test_share"].default:
        lines.append(f"noted: split.test_share={settings['test_share']} has no effect beside split.test_strata")
    if HELD_OUT in proof:
        held_out, fold = proof[HELD_OUT]["cases"], proof["settings"]["fold"]
        lines.append(f"fold {fold} is tested on; the test part itself, {held_out} cases, is held out of everything")
    if not proof["folds"] and not proof["settings"]["published"]:
        lines.append(f"no folds: too few groups for {proof['settings']['folds']}; make cv needs a lower split.folds")
    if leak["test_cases"]:
        least = "" if proof["joins"]["compared_pixels"] else "at least "
        lines.append(
            f"an ungrouped split would have put {least}{leak['leaked']:.0f} of {leak['test_cases']} test images beside "
            "an image of the same group"
        )
    lines.append(
        f"largest group: {largest['cases']} cases, {largest['share']:.1%}; "
        f"joined groups to look at: {paths.split / 'groups.png'}"
    )
    if not proof["joins"]["compared_pixels"]:
        lines.append(
            f"the pixels of more than {MAXIMUM_IMAGES} images were compared for exact copies alone: given groups are "
            "trusted, and what has none, and no copy, stands alone"
        )
    if unlabelled["in_a_labelled_group"]:
        lines.append(
            f"{unlabelled['in_a_labelled_group']} of {unlabelled['cases']} unlabelled images "
            "belong to a group with labelled ones"
        )
    for name in PARTS:
        share, wanted = proof["parts"][name]["share"], proof["parts"][name]["wanted_share"]
        if abs(share - wanted) > 0.05:
            lines.append(
                f"warning: {name} holds {share:.0%} of the cases, wanted were {wanted:.0%}: "
                "too few groups, or too few of a stratum, which has one in every part, to divide closer"
            )
    across = len(proof["joins_across_parts"]) + len(proof["identical_images_across_parts"])
    if across:
        lines.append(
            f"warning: {across} pairs that belong together by their pixels lie in different parts; "
            + ("they were published so" if proof["settings"]["published"] else "split.groups=auto keeps them together")
        )
    return lines


# --- Evidence -----------------------------------------------------------------------------------------------------

_JOIN_COLUMNS = ["group", *(column.name for column in fields(Join))]


def _join_row(join: Join, groups: dict[str, str]) -> list[Any]:
    values = {**asdict(join), "mirrored": int(join.mirrored)}
    return [groups[join.first], *("" if value is None else value for value in values.values())]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
