"""What a trained run has seen: cases that it learned from or was chosen by, and that can therefore never test it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.records.case import Case

RECORD = "thresholds.json"
"""The file of a run's folder that names them."""


@dataclass(frozen=True)
class Seen:
    """Cases by data set, groups that were given (patients, slides), and by data set the groups of the split.

    Two data sets may show the same tissue, as the sample and its pairs do: a given group of the same name is taken for
    the same patient. Of a split groups may be found from pixels; those bear the name of a case, and mean nothing in
    another data set.
    """

    cases: Mapping[str, frozenset[str]] = field(default_factory=dict)
    groups: frozenset[str] = frozenset()
    split_groups: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of_cases(cls, dataset: str, cases: Iterable[Case], of_split: Mapping[str, str]) -> Seen:
        """Take what training and choosing read of one data set; of_split: group in the split by case id."""
        read = list(cases)
        groups = frozenset(case.group for case in read if case.group is not None)
        divided = frozenset(of_split[case.case_id] for case in read if case.case_id in of_split)
        return cls({dataset: frozenset(case.case_id for case in read)}, groups, {dataset: divided})

    @classmethod
    def of_record(cls, record: Mapping[str, Any], dataset: str) -> Seen:
        """Take what the record of a run on a data set names, inherited from other runs or its own."""
        own = frozenset([*record["trained_on"], *record["chosen_on"]["cases"]])
        inherited = record.get("inherited", {})
        cases, split_groups = (
            {name: frozenset(names) for name, names in inherited.get(key, {}).items()}
            for key in ("cases", "split_groups")
        )
        groups = frozenset([*record.get("groups", ()), *inherited.get("groups", ())])
        # Runs recorded before groups of the split were name none of them.
        divided = frozenset(record.get("split_groups", ()))
        return cls({dataset: own}, groups, {dataset: divided}) | cls(cases, split_groups=split_groups)

    def __or__(self, other: Seen) -> Seen:
        return Seen(
            _joined(self.cases, other.cases),
            self.groups | other.groups,
            _joined(self.split_groups, other.split_groups),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what a record holds as inherited."""
        return {"cases": _listed(self.cases), "groups": sorted(self.groups), "split_groups": _listed(self.split_groups)}

    def among(self, dataset: str, cases: Sequence[Case], by_group: bool, of_split: Mapping[str, str]) -> list[Case]:
        """Return the cases of a data set that were seen: themselves, or, by group, another case of theirs.

        by_group: whether by given groups; of_split: group in the split of the data set by case id, empty to look past
        those.
        """
        known = self.cases.get(dataset, frozenset())
        shared = self._shared_groups(dataset, cases, by_group, of_split)
        return [case for case in cases if case.case_id in known or case.case_id in shared]

    def _shared_groups(
        self, dataset: str, cases: Sequence[Case], by_group: bool, of_split: Mapping[str, str]
    ) -> dict[str, str]:
        """Name the group that a case has in common with what was seen, by case id; those that have none are left out.

        A group that was found from pixels has another name once the case that it bore the name of is gone; so one that
        holds a case that was seen is known by that case, too.
        """
        seen_here = {of_split[name] for name in self.cases.get(dataset, frozenset()) if name in of_split}
        seen_here |= self.split_groups.get(dataset, frozenset())
        shared: dict[str, str] = {}
        for case in cases:
            divided = of_split.get(case.case_id)
            if by_group and case.group is not None and case.group in self.groups:
                shared[case.case_id] = case.group
            elif divided is not None and divided in seen_here:
                shared[case.case_id] = divided
        return shared

    def doubt(self, dataset: str, cases: Sequence[Case]) -> str:
        """Say in words of which other data sets nobody can tell whether they show the tissue of these cases.

        Only patients (slides, fields) of the same name can be recognised, and so where both data sets name them.
        """
        others = sorted(name for name, known in self.cases.items() if known and name != dataset)
        if not others or not cases or (self.groups and any(case.group is not None for case in cases)):
            return ""
        nameless = dataset if self.groups else " and ".join(others)
        return (
            f"whether images of {', '.join(others)}, which it learned from, show tissue of these test images cannot be "
            f"told, since {nameless} names no groups (ingest.group_csv, ingest.group_pattern)"
        )

    def told(self, dataset: str, cases: Sequence[Case], by_group: bool, of_split: Mapping[str, str]) -> str:
        """Say in words which of the cases were seen, as among finds them; nothing where none was."""
        used = self.among(dataset, cases, by_group, of_split)
        if not used:
            return ""
        known = self.cases.get(dataset, frozenset())
        shared = self._shared_groups(dataset, used, by_group, of_split)
        related = sorted({shared[case.case_id] for case in used if case.case_id not in known})
        words = f"{len(used)} that did ({', '.join(sorted(case.case_id for case in used)[:5])})"
        return words + (f", of them by other images of the groups {', '.join(related[:5])}" if related else "")


def _joined(some: Mapping[str, frozenset[str]], others: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    return {name: some.get(name, frozenset()) | others.get(name, frozenset()) for name in {*some, *others}}


def _listed(names: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    return {name: sorted(of_one) for name, of_one in sorted(names.items())}
