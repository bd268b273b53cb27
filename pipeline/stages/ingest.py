"""Ingest: check every raw file, repair what is safe, refuse the rest by name, and write one record an image.

Reads:  data/raw/<dataset>/ (never changed; zips are read in place)
Writes: data/ingest/<dataset>/ cases.jsonl, images/, labels/, findings.csv, sample_submission.csv
"""

from __future__ import annotations

import difflib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import yaml
from tqdm import tqdm

from pipeline.config import Config, IngestSettings
from pipeline.kaggle import COMPETITIONS, how_to_get
from pipeline.label_values import Meaning, check_values, meaning_of
from pipeline.labels import IN_PIECES
from pipeline.readers import READERS, RawCase, RawDataset, layout_of
from pipeline.readers.check import check_case, finish_case, forget
from pipeline.readers.checked import Checked
from pipeline.readers.layout import table_of, unread_images, with_groups
from pipeline.records.case import WHOLE, Case, LabelKind, write_cases
from pipeline.records.files import write_bytes
from pipeline.records.findings import Fault, FaultyFile, Finding, some, write_findings
from pipeline.records.paths import Paths
from pipeline.records.rasters import write_png
from pipeline.records.raw import RawFolder

_MOST_THREADS = 8
_SHOWN_FAULTS = 100
_SHOWN_CASES = 10
_FORBIDDEN = frozenset('<>:"/\\|?*')
_LONGEST_NAME = 200
_READ_AS = {"white": "foreground", "classes": "class ids", "objects": "object ids"}


def prepare(config: Config, paths: Paths) -> None:
    """Render the embedded samples where asked for. Raises ValueError, with advice, without raw files."""
    if config.dataset in ("sample", "sample_large"):
        from pipeline.sample import write_sample

        write_sample(paths.raw, rounds=1 if config.dataset == "sample" else 2)
    elif config.dataset == "sample_pairs":
        from pipeline.sample_pairs import write_sample_pairs

        write_sample_pairs(paths.raw)
    if not paths.raw.is_dir() or not any(paths.raw.iterdir()):
        raise ValueError(_how_to_get(config, paths))


def inputs(config: Config, paths: Paths) -> list[Path]:
    """The raw folder, and the table of groups where it lies elsewhere."""
    table = config.ingest.group_csv
    return [paths.raw, table] if table is not None and table.is_file() else [paths.raw]


def run(config: Config, paths: Paths, *, unlabelled_only: bool = False) -> list[str]:
    """Check every case and write the sound ones. Raises ValueError that lists every fault not excluded.

    unlabelled_only: leave cases with truth unread, where a trained run is to predict a competition's test images.
    """
    if not paths.raw.is_dir():
        raise ValueError(_how_to_get(config, paths))
    settings = config.ingest
    with RawFolder(paths.raw) as raw:
        layout = layout_of(raw, settings.layout)
        dataset = _dataset(raw, layout, settings, paths, unlabelled_only=unlabelled_only)
        cases, faults, excluded = _wanted(dataset, settings)
        checked = _each(lambda case: _write(check_case(raw, case, settings), paths), cases, "check")
        told = settings.label_kind if settings.label_kind != "auto" else dataset.label_kind
        meaning, odd = _meaning(checked, told, one_class=settings.threshold is not None)
        faults = sorted({*faults, *odd, *(fault for one in checked for fault in one.faults)})
        if faults and not settings.exclude_faulty:
            raise ValueError(_all_told(faults, len(cases), paths))
        excluded += [fault.excluded() for fault in faults]
        left_out = {fault.case_id for fault in faults}
        sound = [one for one in checked if one.case.case_id not in left_out]
        if not sound:
            raise ValueError(f"{paths.raw}: expected at least one case that can be used, found none of {len(cases)}")
        deep = {one.case.case_id for one in sound if one.bits is not None}
        bits = settings.depth or max((one.bits for one in sound if one.bits is not None), default=8)
        finished = _each(
            lambda case: _write(finish_case(raw, case, settings, meaning, bits), paths),
            [one.case for one in sound if one.waits],
            "write",
        )
        checked_all = [one for one in sound if not one.waits] + finished
        done = [one for one in checked_all if not one.unknown]
        excluded += [
            Finding(one.case.case_id, "excluded", "unknown label", "nothing of it is known: there is nothing to learn")
            for one in checked_all
            if one.unknown
        ]
        if not done:
            raise ValueError(f"{paths.raw}: expected labels that know something, found {len(checked_all)} all unknown")
        forget()
        findings = [*dataset.findings, *excluded, *(finding for one in done for finding in one.findings)]
        findings += [*_copy_sample(raw, dataset, paths), *_doubted(meaning)]
    of_ids: LabelKind = "semantic" if meaning is not None and meaning.kind != "objects" else "instance"
    kind = dataset.label_kind or of_ids
    if kind == "semantic":
        # The mask of a class is in as many pieces as there are things of it.
        findings = [finding for finding in findings if finding.fault != IN_PIECES]
    segmented = [one.objects for one in done if one.case.segmented and kind in ("instance", "semantic")]
    if segmented and not any(segmented) and not settings.allow_empty:
        raise ValueError(
            f"{paths.raw}: expected labels that hold something, found {len(segmented)} that are all empty; "
            "see whether the masks are what they should be, or set ingest.allow_empty=true"
        )
    records = [_record(one, config.dataset, kind, bits if one.case.case_id in deep else None) for one in done]
    write_cases(paths.cases, records)
    write_findings(paths.findings, findings)
    asked = {case.case_id for case in dataset.cases if not case.labelled} if dataset.sample_submission else set()
    unasked = sorted(asked & {finding.case_id for finding in excluded})
    warning = [f"noted: {len(unasked)} test image(s) left out, so that submit will refuse: {some(unasked)}"]
    return [*_summary(done, findings, layout, kind, meaning), *(warning if unasked else [])]


def _dataset(
    raw: RawFolder, layout: str, settings: IngestSettings, paths: Paths, *, unlabelled_only: bool
) -> RawDataset:  # fmt: skip
    """Name every case of the raw folder. Raises ValueError for settings and strata that do not fit what is there."""
    dataset = with_groups(READERS[layout].read(raw, settings), raw, settings)
    if READERS[layout].every_image:
        dataset = replace(dataset, faults=(*dataset.faults, *unread_images(raw, dataset)))
    if unlabelled_only:
        dataset = _unlabelled(dataset, paths)
    _refuse_idle(settings, dataset, layout)
    if any(case.stratum == WHOLE for case in dataset.cases):
        raise ValueError(
            f"{paths.raw}: expected strata of other names than {WHOLE!r}, by which reports call all of them "
            "together; rename that one in its table"
        )
    return dataset


def _refuse_idle(settings: IngestSettings, dataset: RawDataset, layout: str) -> None:
    """Refuse settings of other layouts than this one."""
    tiles = any(case.window is not None for case in dataset.cases)
    shrunk = tiles or any(case.windowed for case in dataset.cases)
    idle = {
        "shrink": (shrunk, "the layout hubmap2020 or slides"), "mpp": (tiles, "the layout slides"),
        "tile": (tiles, "the layout slides"), "window": (layout == "nifti", "the layout nifti"),
        "competition_stage": (layout == "dsb2018", "the layout dsb2018"),
        "label_source": (layout == "dsb2018", "the layout dsb2018"),
    }  # fmt: skip
    problems = [
        f"ingest.{name}={getattr(settings, name)}: expected {owner}, found {layout}; leave it out"
        for name, (used, owner) in idle.items()
        if not used and getattr(settings, name) != type(settings).model_fields[name].default
    ]
    if settings.label_kind == "coarse" and dataset.label_kind != "coarse":
        problems.append(
            f"ingest.label_kind=coarse: expected patches to stitch, as the layout idc has, found the layout {layout}; "
            "set another label_kind"
        )
    elif settings.label_kind not in ("auto", dataset.label_kind or settings.label_kind):
        problems.append(
            f"ingest.label_kind={settings.label_kind}: expected {dataset.label_kind}, which all labels of the layout "
            f"{layout} are; leave it out"
        )
    if problems and dataset.cases:
        raise ValueError("\n".join(problems))


def _unlabelled(dataset: RawDataset, paths: Paths) -> RawDataset:
    """Leave out cases with truth, and what is wrong with them."""
    cases = tuple(case for case in dataset.cases if not case.labelled)
    if not cases:
        raise ValueError(
            f"{paths.raw}: expected images without truth (a competition's test images), found {len(dataset.cases)} "
            "images, all with truth"
        )
    names = {case.case_id for case in cases}
    faults = tuple(fault for fault in dataset.faults if fault.case_id in names)
    return replace(dataset, cases=cases, faults=faults)


def _each(work: Callable[[RawCase], Checked], cases: Sequence[RawCase], verb: str) -> list[Checked]:
    """Work on cases in threads (decoding releases the interpreter's lock); results in the cases' order."""
    if not cases:
        return []
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(work, cases), total=len(cases), desc=f"ingest: {verb}", unit="image", disable=None))


def _write(checked: Checked, paths: Paths) -> Checked:
    if checked.unknown:
        checked.drop_pixels()
    if checked.image is not None:
        write_png(paths.ingest / _image_name(checked.case), checked.image)
    label = checked.label.raster if checked.label is not None else checked.target
    if label is not None:
        write_png(paths.ingest / _label_name(checked.case), label)
    checked.drop_pixels()
    return checked


def _image_name(case: RawCase) -> str:
    return f"images/{case.case_id}.png"


def _label_name(case: RawCase) -> str:
    return f"labels/{case.case_id}.png"


def _record(checked: Checked, dataset: str, kind: LabelKind, bits: int | None) -> Case:
    case = checked.case
    assert checked.shape is not None
    return Case(
        case_id=case.case_id,
        dataset=dataset,
        image=_image_name(case),
        label=_label_name(case) if case.labelled and kind != "class" else None,
        label_kind=kind if case.labelled else "none",
        group=case.group,
        stratum=case.stratum,
        height=checked.shape[0],
        width=checked.shape[1],
        mpp=case.mpp,
        source=case.source,
        classes=checked.classes,
        class_name=case.class_name,
        cell=case.cell,
        part=case.part,
        plane=case.plane,
        bits=bits,
        full=None if checked.full in (None, checked.shape) else list(checked.full or ()),
    )


def _wanted(dataset: RawDataset, settings: IngestSettings) -> tuple[list[RawCase], list[Fault], list[Finding]]:
    """Cases to check, faults seen from names alone, and what ingest.exclude leaves out."""
    known = {case.case_id for case in dataset.cases} | {fault.case_id for fault in dataset.faults}
    unknown = [name for name in settings.exclude if name not in known]
    if unknown:
        near = {match for name in unknown for match in difflib.get_close_matches(name, known, n=1)}
        hint = f"; did you mean {', '.join(sorted(near))}?" if near else ""
        raise ValueError(f"ingest.exclude: expected case ids of the data set, found {', '.join(unknown)}{hint}")
    left_out = set(settings.exclude)
    faults = [fault for fault in (*dataset.faults, *_name_faults(dataset.cases)) if fault.case_id not in left_out]
    unsafe = {fault.case_id for fault in faults if fault.fault in (_UNUSABLE, _REPEATED)}
    cases = [case for case in dataset.cases if case.case_id not in left_out | unsafe]
    excluded = [Finding(name, "excluded", "named in ingest.exclude", "not read") for name in sorted(left_out)]
    return sorted(cases, key=lambda case: case.case_id), faults, excluded


_UNUSABLE, _REPEATED = "unusable case id", "repeated case id"


def _name_faults(cases: Sequence[RawCase]) -> list[Fault]:
    """Case ids that cannot be file names everywhere, and those that are one file where case does not count."""
    faults = []
    alike: dict[str, list[RawCase]] = {}
    for case in cases:
        alike.setdefault(unicodedata.normalize("NFC", case.case_id).casefold(), []).append(case)
        strange = sorted({letter for letter in case.case_id if letter in _FORBIDDEN or not letter.isprintable()})
        found = None
        if strange:
            found = f"{''.join(strange)!r}"
        elif not case.case_id or case.case_id != case.case_id.strip(" .") or len(case.case_id.encode()) > _LONGEST_NAME:
            found = "an empty name, a dot or space at an end, or a very long one"
        if found:
            expected = f"a name of up to {_LONGEST_NAME} bytes that every file system takes"
            faults.append(Fault(case.case_id, _UNUSABLE, case.image, expected, found, "rename the file"))
    for same in alike.values():
        if len(same) > 1:
            expected, found = "names that differ not by capitals alone", ", ".join(case.image for case in same)
            faults += [Fault(case.case_id, _REPEATED, case.image, expected, found, "rename one") for case in same]
    return faults


def _meaning(
    checked: Sequence[Checked], kind: LabelKind | None, *, one_class: bool
) -> tuple[Meaning | None, list[Fault]]:
    """Decide what label rasters mean, where there are any, and name those that do not fit."""
    surveyed = [(one, one.survey) for one in checked if one.survey is not None and not one.faults]
    if not surveyed:
        return None, []
    of_ids: Literal["auto", "instance", "semantic"] = kind if kind == "instance" or kind == "semantic" else "auto"
    meaning = meaning_of([found for _, found in surveyed], of_ids, one_class=one_class)
    faults = []
    for one, found in surveyed:
        try:
            check_values(found, meaning)
        except FaultyFile as fault:
            faults.append(fault.at(one.case.case_id, str(one.case.raster)))
    return meaning, faults


def _all_told(faults: Sequence[Fault], number: int, paths: Paths) -> str:
    ids = list(dict.fromkeys(fault.case_id for fault in faults))
    kinds = ", ".join(f"{count} x {kind}" for kind, count in Counter(fault.fault for fault in faults).most_common())
    # What is wrong with one file is told once, with the cases that are cut from it.
    alike: dict[Fault, list[Fault]] = {}
    for fault in faults:
        alike.setdefault(replace(fault, case_id=""), []).append(fault)
    told = [*alike.values()]
    lines = [f"  {first}{_also(others)}" for first, *others in told[:_SHOWN_FAULTS]]
    if left := sum(map(len, told[_SHOWN_FAULTS:])):
        lines.append(f"  and {left} more")
    # What is pasted is to hold every case, as YAML reads it back.
    listed = ", ".join(name if _is_plain(name) else json.dumps(name) for name in ids)
    one_by_one = f"'ingest.exclude=[{listed}]' or " if len(ids) <= _SHOWN_CASES else ""
    return (
        f"{paths.raw}: {len(faults)} fault(s) in {len(ids)} of {max(number, len(ids))} cases ({kinds}):\n"
        + "\n".join(lines)
        + f"\nMend them, or leave the cases out with {one_by_one}ingest.exclude_faulty=true: "
        "they are then counted in every report"
    )


def _is_plain(name: str) -> bool:
    """Whether YAML reads a word of a list as it is written."""
    return re.fullmatch(r"[A-Za-z_][\w.-]*", name) is not None and yaml.safe_load(name) == name


def _also(others: Sequence[Fault]) -> str:
    names = [other.case_id for other in others[:_SHOWN_CASES]] + ["..."] * (len(others) > _SHOWN_CASES)
    return f" (and {len(others)} more cases: {', '.join(names)})" if others else ""


def _copy_sample(raw: RawFolder, dataset: RawDataset, paths: Paths) -> list[Finding]:
    """Copy the competition's sample file, and note where its ids are not those of the unlabelled images."""
    name = dataset.sample_submission
    if name is None:
        return []
    content = raw.read(name)
    write_bytes(paths.sample_submission, content)
    rows = table_of(content, raw.origin(name), ())
    listed = {next(iter(row.values())) for row in rows}
    images = {case.case_id for case in dataset.cases if not case.labelled}
    without_image, without_row = sorted(listed - images), sorted(images - listed)
    if not without_image and not without_row:
        return []
    some = ", ".join((without_image + without_row)[:3])
    detail = f"{name}: {len(without_image)} id(s) without an image, {len(without_row)} image(s) without a row: {some}"
    return [Finding("", "noted", "sample submission differs", detail)]


def _doubted(meaning: Meaning | None) -> list[Finding]:
    """Note that ids were read as one kind where they could be of the other."""
    if meaning is None or not meaning.doubt:
        return []
    one, other = ("semantic", "instance") if meaning.kind == "classes" else ("instance", "semantic")
    detail = (
        f"read as {_READ_AS[meaning.kind]} ({meaning.evidence}), which few images and few ids do not tell for certain; "
        f"set ingest.label_kind={other} if they are of the other kind, {one} if this is right"
    )
    return [Finding("", "noted", "class or object ids", detail)]


def _summary(
    done: Sequence[Checked], findings: Sequence[Finding], layout: str, kind: LabelKind, meaning: Meaning | None
) -> list[str]:
    labelled = sum(one.case.labelled for one in done)
    counted = f", {sum(one.objects for one in done):,} objects" if kind == "instance" else ""
    if kind == "coarse":
        patches = sum(len(one.case.patches) for one in done)
        counted = f" of {patches:,} patches, {sum(one.objects for one in done):,} of them of class 1"
    if kind == "class":
        classes = Counter(one.case.class_name for one in done if one.case.labelled)
        counted = "".join(f", {count:,} of class {name}" for name, count in sorted(classes.items(), key=str))
    actions = Counter(finding.action for finding in set(findings))
    listed = ", ".join(f"{actions[action]} {action}" for action in ("repaired", "excluded", "noted") if actions[action])
    lines = [
        f"ingested {labelled} labelled and {len(done) - labelled} unlabelled images{counted} "
        f"({listed or 'nothing to list'}; findings.csv)",
        f"layout {layout}",
    ]
    if meaning is not None:
        read_as = f"{_READ_AS[meaning.kind]} ({meaning.evidence})"
        lines[1] += f"; labels read as {read_as}; where that is wrong, set ingest.label_kind"
    return lines


def _how_to_get(config: Config, paths: Paths) -> str:
    competition = COMPETITIONS.get(config.dataset)
    if competition is None:
        layouts = "".join(f"\n  {reader.looks_like}" for reader in READERS.values())
        return f"{paths.raw}: expected raw files, found none. Put them there in one of these layouts:{layouts}"
    return (
        f"{paths.raw}: expected the files of {competition.name}, found none; let Kaggle's client fetch them "
        f"(`make data DATASET={config.dataset}`), or {how_to_get(config.dataset, paths.raw)}"
    )
