"""Train: fit the network, then, where it makes masks, tune the thresholds on the validation part.

With train.members nothing is fitted: their maps are averaged, and the thresholds tuned on what a member never learned.

Reads:  data/ingest/<dataset>/ (images, labels), data/split/<dataset>/<name>/split.csv,
        data/normalise/<dataset>/<method>/ instead of the ingested images where normalise.method is set
Writes: data/train/<run>/: config.yaml (every automatic choice frozen), model.json, last.pt, best.pt, history.csv,
        thresholds.json, and stain.json where images were normalised; with members config.yaml, model.json and
        thresholds.json alone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config, dump_config
from pipeline.records.case import Case, read_cases
from pipeline.records.files import file_hash, write_bytes, write_json, write_text
from pipeline.records.paths import Paths
from pipeline.records.seen import RECORD, Seen
from pipeline.records.split import read_groups, read_parts

if TYPE_CHECKING:
    import numpy as np

    from pipeline.instances import Thresholds
    from pipeline.outputs import Outputs
    from pipeline.trained import TrainedRun
    from pipeline.training import Task


def inputs(config: Config, paths: Paths) -> list[Path]:
    """Return what decides staleness: the images, the split, the normalised images, the run to start from."""
    start = config.train.classification.start
    others = [*([start] if start is not None else []), *config.train.members]
    started = [paths.run_folder(name) / "stage.json" for name in others]
    return [paths.ingest / "stage.json", paths.split / "stage.json", *paths.normalised, *started]


def check(config: Config, paths: Paths) -> None:
    """Raise ValueError for what is refused whatever the images hold: told before the stages that come before."""
    from pipeline.tasks.check import check_task
    from pipeline.trained import open_run

    if not config.split.validation_share and "validation" not in config.split.published.values():
        raise ValueError(
            "split.validation_share: expected a share for the validation part, on which weights and thresholds are "
            "chosen, found 0; leave it out, or set e.g. split.validation_share=0.15"
        )
    for name in config.train.members:
        open_run(paths.run_folder(name))
    if not config.train.members:
        check_task(config, paths)


def run(config: Config, paths: Paths) -> list[str]:
    """Train and tune; carries on from the last checkpoint where there is one."""
    from pipeline import device
    from pipeline.stains import normaliser_files
    from pipeline.trained import MODEL
    from pipeline.training import fit, steps_taken

    config = _decided(config, paths)
    parts = read_parts(paths)
    for part in ("train", "validation"):
        if not parts[part]:
            raise ValueError(
                f"{paths.split_table}: expected cases in the part {part}, found none; change split.*_share"
            )
    inherited = _inherited(config, paths, parts["test"])
    if config.train.members:
        return _gather(config, paths, parts, inherited)
    outputs, build = _prepared(config, paths, parts)
    if outputs.is_class:
        _refuse_missing_classes(outputs, parts, paths)
    write_json(paths.train / MODEL, outputs.as_dict())
    for file in normaliser_files(paths.normalise) if config.normalise.method != "none" else ():
        write_bytes(paths.train / file.name, file.read_bytes())
    print(f"train     {len(parts['train'])} training and {len(parts['validation'])} validation images, "
          f"channels {', '.join(outputs.channels)}; {device.describe(device.freeze(config.compute))}")  # fmt: skip
    fit(build, config, outputs.activation, paths.train)
    done = f"{steps_taken(paths.train):,} steps on {len(parts['train'])} images; weights and history in {paths.train}"
    if outputs.is_image or outputs.is_class:
        _write_chosen(paths, parts, {}, None, inherited)
        return [done]
    thresholds, score = _tune(paths, parts)
    _write_chosen(paths, parts, thresholds.as_dict(), score, inherited)
    return [
        done,
        f"tuned on {len(parts['validation'])} validation images (score {score:.3f}): "
        + ", ".join(f"{name} {value:g}" for name, value in thresholds.as_dict().items()),
    ]


def join(config: Config, paths: Paths) -> None:
    """Train beside the process that runs the stage, and leave all writing and choosing to it."""
    from pipeline.training import fit

    config = _decided(config, paths)
    outputs, build = _prepared(config, paths, read_parts(paths))
    fit(build, config, outputs.activation, paths.train)


def _decided(config: Config, paths: Paths) -> Config:
    """Settings that the run keeps: its own seed, and the depth that its images were scaled from."""
    seed = config.seed if config.train.seed is None else config.train.seed
    depth = max((case.bits for case in read_cases(paths.cases) if case.bits is not None), default=config.ingest.depth)
    return config.model_copy(update={"seed": seed, "ingest": config.ingest.model_copy(update={"depth": depth})})


def _prepared(config: Config, paths: Paths, parts: dict[str, list[Case]]) -> tuple[Outputs, Callable[[Config], Task]]:
    """Return what is learned, and what builds its task; of runs that make images parts keep what can be learned from.

    The same in every process that trains.
    """
    from pipeline.outputs import Outputs
    from pipeline.pairs import learnable

    # Of class rasters all are counted: a fold without the last class is to fit those with it.
    labelled = [case for case in read_cases(paths.cases) if case.label]
    outputs = Outputs.of(config, parts["train"] + parts["validation"], paths, labelled)
    if outputs.is_image:
        parts["train"], parts["validation"] = (learnable(parts[part], config) for part in ("train", "validation"))
    build = partial(_build, paths=paths, outputs=outputs, training=parts["train"], validation=parts["validation"])
    return outputs, build


def _gather(config: Config, paths: Paths, parts: dict[str, list[Case]], inherited: Seen) -> list[str]:
    """Take other runs as one: the mean of their maps, with thresholds of its own.

    Those are tuned on cases of training and validation part that a member did not train on, each by the mean of those
    members: out of fold where members are folds, on the validation part where all were trained on one split.
    Raises ValueError where members do not fit together, or all of them trained on every case.
    """
    from tqdm import tqdm

    from pipeline import device
    from pipeline.case_maps import CaseMaps
    from pipeline.inference import average
    from pipeline.instances import tune
    from pipeline.records.rasters import read_label
    from pipeline.stains import normaliser_files
    from pipeline.trained import FROZEN, MODEL

    members = _members(config, paths)
    trained_on = [member.learned_from for member in members]
    cases = [
        case for case in parts["train"] + parts["validation"] if any(case.case_id not in seen for seen in trained_on)
    ]
    if not cases:
        raise ValueError(
            "train.members: expected cases that a member did not train on, to tune thresholds by, found none among "
            f"the {len(parts['train'] + parts['validation'])} of training and validation; set split.validation_share"
        )
    frozen = config.model_copy(update={"compute": device.freeze(config.compute)})
    write_json(paths.train / MODEL, members[0].outputs.as_dict())
    for file in normaliser_files(paths.normalise) if config.normalise.method != "none" else ():
        write_bytes(paths.train / file.name, file.read_bytes())
    write_text(paths.train / FROZEN, dump_config(frozen))
    everything = read_cases(paths.cases)
    maps = [CaseMaps(member.predictor(frozen.predict, frozen.compute), paths, everything) for member in members]

    def unseen(i: int) -> np.ndarray:
        able = (one for one, seen in zip(maps, trained_on, strict=True) if cases[i].case_id not in seen)
        return average(one(cases[i]) for one in able)

    thresholds, score = tune(
        unseen,
        lambda i: read_label(paths.ingest / str(cases[i].label)),
        tqdm(range(len(cases)), desc="tune", unit="image", disable=None),
        members[0].outputs,
    )
    averaged = {name: member.content for name, member in zip(config.train.members, members, strict=True)}
    _write_chosen(paths, {"train": [], "validation": cases}, thresholds.as_dict(), score, inherited, averaged)
    return [
        f"{len(members)} members, averaged",
        f"tuned on {len(cases)} images that a member did not train on (score {score:.3f}): "
        + ", ".join(f"{name} {value:g}" for name, value in thresholds.as_dict().items()),
    ]


def _members(config: Config, paths: Paths) -> list[TrainedRun]:
    """Open the runs of train.members. Raises ValueError with everything that keeps them from being averaged."""
    from pipeline.stains import normaliser_files
    from pipeline.trained import open_run

    members = [open_run(paths.run_folder(name)) for name in config.train.members]
    first = members[0]
    normalised = config.normalise.method != "none"
    problems = [
        f"{member.folder} has {what} {found}, {owner} {expected}"
        for member in members
        for what, found, owner, expected in (
            ("the channels", ", ".join(member.outputs.channels), first.folder, ", ".join(first.outputs.channels)),
            ("normalise.method", member.config.normalise.method, "these settings", config.normalise.method),
            ("dimensions", member.config.augment.dimensions, first.folder, first.config.augment.dimensions),
        )
        if found != expected
    ]
    if first.outputs.is_image or first.outputs.is_class:
        problems.append(f"{first.folder} makes no masks")
    stain = {file.name: file_hash(file) for file in normaliser_files(paths.normalise)} if normalised else {}
    problems += [
        f"{member.folder} was trained on images of another stain than {paths.normalise} has: each split finds a "
        "reference of its own, unless normalise.reference names one for all"
        for member in members
        if normalised and {file.name: file_hash(file) for file in normaliser_files(member.folder)} != stain
    ]
    if problems:
        raise ValueError("train.members: expected segmenters that fit together, found:\n  " + "\n  ".join(problems))
    return members


def _build(
    config: Config, paths: Paths, outputs: Outputs, training: Sequence[Case], validation: Sequence[Case]
) -> Task:
    from pipeline.tasks import TASKS

    return TASKS[config.train.task](config, paths, outputs, training, validation)


def _tune(paths: Paths, parts: dict[str, list[Case]]) -> tuple[Thresholds, float]:
    """Choose thresholds on the validation part only."""
    from tqdm import tqdm

    from pipeline.case_maps import CaseMaps
    from pipeline.instances import tune
    from pipeline.records.rasters import read_label
    from pipeline.trained import open_run

    validation = parts["validation"]
    trained = open_run(paths.train)
    maps = CaseMaps(
        trained.predictor(trained.config.predict, trained.config.compute), paths, read_cases(paths.cases)
    )  # fmt: skip
    return tune(
        lambda i: maps(validation[i]),
        lambda i: read_label(paths.ingest / str(validation[i].label)),
        tqdm(range(len(validation)), desc="tune", unit="image", disable=None),
        trained.outputs,
    )


def _refuse_missing_classes(outputs: Outputs, parts: dict[str, list[Case]], paths: Paths) -> None:
    """Refuse parts without a class: nothing could be learned of it, or the best weights not be told."""
    missing = {
        part: absent for part in ("train", "validation")
        if (absent := sorted({*outputs.channels} - {str(case.class_name) for case in parts[part]}))
    }  # fmt: skip
    if missing:
        raise ValueError(
            f"{paths.split_table}: expected images of every class ({', '.join(outputs.channels)}) to learn from and to "
            f"choose the best weights by, found none of "
            + "; none of ".join(f"{', '.join(absent)} in {part}" for part, absent in missing.items())
            + "; change seed or split.validation_share"
        )


def _inherited(config: Config, paths: Paths, test: Sequence[Case]) -> Seen:
    """What the runs that this one stands on learned from: that it starts from, that normalises its images.

    Raises ValueError where they learned from test cases; prints of which data sets that cannot be told.
    """
    from pipeline.trained import open_run

    named = [
        ("train.classification.start", config.train.classification.start),
        ("normalise.run", config.normalise.run),
        *(("train.members", name) for name in config.train.members),
    ]
    seen, problems = Seen(), []
    for setting, name in named:
        if name is None:
            continue
        trained = open_run(paths.run_folder(name))
        if used := trained.seen_among(test, config, read_groups(paths)):
            problems.append(f"{used}: {setting}={name} learned from them")
        if doubt := trained.seen.doubt(config.dataset, test):
            print(f"noted: {setting}={name}: {doubt}")
        seen |= trained.seen
    if problems:
        raise ValueError(
            "expected test cases that took no part in training, found "
            + "; ".join(problems)
            + ", so that the test part would be no test. Train that run on this data set and split, or, where groups "
            "of two data sets only share their names, rename those of one"
        )
    return seen


def _write_chosen(
    paths: Paths,
    parts: dict[str, list[Case]],
    thresholds: dict[str, float],
    score: float | None,
    inherited: Seen,
    members: Mapping[str, str] | None = None,
) -> None:
    """Write thresholds.json, which names every case that took part in training, here or before, or in a choice.

    members: of an ensemble, by name, what was averaged when its thresholds were chosen (TrainedRun.content).
    """
    own = Seen.of_cases(paths.dataset, parts["train"] + parts["validation"], read_groups(paths))
    write_json(
        paths.train / RECORD,
        {
            "schema_version": 1,
            "split": paths.split_name,
            "chosen_on": {
                "part": "validation",
                "cases": [case.case_id for case in parts["validation"]],
                "score": None if score is None else round(score, 6),
            },
            "trained_on": sorted(case.case_id for case in parts["train"]),
            "groups": sorted(own.groups),
            "split_groups": sorted(own.split_groups[paths.dataset]),
            "inherited": inherited.as_dict(),
            "thresholds": thresholds,
            **({"members": members} if members else {}),
        },
    )
