"""The split's proof in words and tables: what stage split wrote, and whatever else stands in its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LONGEST_LIST = 6


@dataclass(frozen=True)
class Check:
    """One sentence of the proof; sound: whether it speaks for the split, None where it is neither."""

    text: str
    sound: bool | None = None


@dataclass(frozen=True)
class Proof:
    """checks: sentences; parts: sizes by part; strata: sizes by stratum and part; rest: all other entries, flat."""

    checks: list[Check] = field(default_factory=list)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    strata: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    rest: list[tuple[str, Any]] = field(default_factory=list)


def describe_proof(proof: dict[str, Any]) -> Proof:
    """Lay out proof.json; entries that are missing are left out, those that are not known go to the rest."""
    left = {name: value for name, value in proof.items() if name != "schema_version"}
    checks = [
        *_nothing_across(left, "groups_in_two_parts", "group lies in two parts", "groups lie in two parts"),
        *_nothing_across(
            left,
            "joins_across_parts",
            "pair of images that continue or repeat each other lies in two parts",
            "pairs of images that continue or repeat each other lie in two parts",
        ),
        *_nothing_across(
            left,
            "identical_images_across_parts",
            "pair of identical images (turned or mirrored too) lies in two parts",
            "pairs of identical images (turned or mirrored too) lie in two parts",
        ),
        *_held_out(left),
        *_ungrouped(left),
        *_largest(left),
        *_unlabelled(left),
    ]
    parts, strata = _rows(left, "parts"), _rows(left, "strata")
    if not all(isinstance(cell, dict) for row in strata.values() for cell in row.values()):
        left["strata"], strata = strata, {}
    return Proof(checks, parts, strata, [fact for name, value in left.items() for fact in flatten(name, value)])


def flatten(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return (name, value) of every entry below a JSON value; a long list becomes its length."""
    if isinstance(value, dict):
        return [fact for key, inner in value.items() for fact in flatten(f"{name}, {key}", inner)]
    if isinstance(value, list):
        short = len(value) <= LONGEST_LIST and not any(isinstance(inner, dict | list) for inner in value)
        return [(name, (", ".join(map(str, value)) or "none") if short else f"{len(value):,} entries")]
    return [(name, value)]


def _nothing_across(left: dict[str, Any], name: str, one: str, many: str) -> list[Check]:
    if not isinstance(left.get(name), list):
        return []
    count = len(left.pop(name))
    return [Check(f"{f'{count:,}' if count else 'No'} {one if count < 2 else many}.", count == 0)]


def _held_out(left: dict[str, Any]) -> list[Check]:
    entry = left.get("held_out")
    if not isinstance(entry, dict) or "cases" not in entry:
        return []
    left.pop("held_out")
    return [Check(f"One fold is tested on; of the {entry['cases']:,} images of the test part, none takes part.")]


def _ungrouped(left: dict[str, Any]) -> list[Check]:
    entry = left.get("ungrouped_split")
    if not isinstance(entry, dict) or not {"leaked", "test_cases"} <= entry.keys():
        return []
    left.pop("ungrouped_split")
    return [
        Check(
            f"A split by image, without groups, would have put {entry['leaked']:.0f} of {entry['test_cases']:,} "
            "test images beside a training image of the same group."
        )
    ]


def _largest(left: dict[str, Any]) -> list[Check]:
    entry = left.get("largest_group")
    if not isinstance(entry, dict) or not {"cases", "share"} <= entry.keys():
        return []
    left.pop("largest_group")
    return [Check(f"The largest group holds {entry['cases']:,} images, {100 * entry['share']:.1f} % of all.")]


def _unlabelled(left: dict[str, Any]) -> list[Check]:
    entry = left.get("unlabelled")
    if not isinstance(entry, dict) or not {"cases", "in_a_labelled_group"} <= entry.keys():
        return []
    left.pop("unlabelled")
    if not entry["cases"]:
        return []
    return [
        Check(
            f"{entry['in_a_labelled_group']:,} of {entry['cases']:,} images without truth belong to a group with truth."
        )
    ]


def _rows(left: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    entry = left.get(name)
    if not isinstance(entry, dict) or not entry or not all(isinstance(row, dict) for row in entry.values()):
        return {}
    return dict(left.pop(name))
