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
    """Cases by data set, and groups that were given (patients, slides); found groups have no name outside their split.

    Two data sets may show the same tissue, as the sample and its pairs do: a group of the same name is taken for the
    same patient.
    """

    cases: Mapping[str, frozenset[str]] = field(default_factory=dict)
    groups: frozenset[str] = frozenset()

    @classmethod
    def of_cases(cls, dataset: str, cases: Iterable[Case]) -> Seen:
        """Take what training and choosing read of one data set."""
        read = list(cases)
        groups = frozenset(case.group for case in read if case.group is not None)
        return cls({dataset: frozenset(case.case_id for case in read)}, groups)

    @classmethod
    def of_record(cls, record: Mapping[str, Any], dataset: str) -> Seen:
        """Take what the record of a run on a data set names, inherited from other runs or its own."""
        own = frozenset([*record["trained_on"], *record["chosen_on"]["cases"]])
        inherited = record.get("inherited", {})
        elsewhere = {name: frozenset(cases) for name, cases in inherited.get("cases", {}).items()}
        groups = frozenset([*record.get("groups", ()), *inherited.get("groups", ())])
        return cls({dataset: own}, groups) | cls(elsewhere)

    def __or__(self, other: Seen) -> Seen:
        names = {*self.cases, *other.cases}
        cases = {name: self.cases.get(name, frozenset()) | other.cases.get(name, frozenset()) for name in names}
        return Seen(cases, self.groups | other.groups)

    def as_dict(self) -> dict[str, Any]:
        """Return what a record holds as inherited."""
        return {"cases": {name: sorted(cases) for name, cases in sorted(self.cases.items())},
                "groups": sorted(self.groups)}  # fmt: skip

    def among(self, dataset: str, cases: Sequence[Case], by_group: bool) -> list[Case]:
        """Return the cases of a data set that were seen: themselves, or, by group, another case of theirs."""
        known = self.cases.get(dataset, frozenset())
        return [case for case in cases if case.case_id in known or (by_group and case.group in self.groups)]

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

    def told(self, dataset: str, cases: Sequence[Case], by_group: bool) -> str:
        """Say in words which of the cases were seen; nothing where none was."""
        used = self.among(dataset, cases, by_group)
        if not used:
            return ""
        known = self.cases.get(dataset, frozenset())
        related = sorted({str(case.group) for case in used if case.case_id not in known})
        words = f"{len(used)} that did ({', '.join(sorted(case.case_id for case in used)[:5])})"
        return words + (f", of them by other images of the groups {', '.join(related[:5])}" if related else "")
