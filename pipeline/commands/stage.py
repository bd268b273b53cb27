"""The nine stages as commands; three of them also do their work on images alone, without a config."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.command import DEFAULT_CONFIG, Command, Run, load
from pipeline.stages import BY_NAME, STAGES, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import Config
    from pipeline.records.paths import Paths


def add_arguments(stage: Stage, command: Command) -> Run:
    """Add the arguments of a stage."""
    command.describe = partial(_stage_help, stage)
    command.takes_config()
    command.add_argument("--with-needs", action="store_true", help="first run every stage that this one needs")
    command.add_argument("--force", action="store_true", help="redo it even if it is up to date, and overwrite")
    if stage.name == "predict":
        command.add_argument("--run", help="a trained run (name below data/train/, or its folder): needs no config")
        command.add_argument("--images", type=Path, help="an image, or a folder of images, of any size")
        command.add_argument("--out", type=Path, help="folder for <stem>.png: 16-bit object ids, or class ids")
        command.add_argument("--overlay", action="store_true", help="also write <stem>_overlay.png to look at")
        command.add_argument("--slides", type=Path, help="slide, or folder of slides, of any size to predict")
        command.add_argument("--mpp", type=float, help="microns per pixel to look at slides with (default: finest)")
    if stage.name == "submit":
        command.add_argument("--run", help="a trained run (name below data/train/, or its folder): needs no config")
        command.add_argument("--raw", type=Path, help="competition's folder: its test images are predicted anew")
        command.add_argument("--out", type=Path, help="CSV file for the submission of --run for --raw")
    if stage.name == "normalise":
        command.add_argument("--images", type=Path, help="an image, or a folder of images (and its subfolders)")
        command.add_argument("--out", type=Path, help="folder for the same names, status.csv and stain.json")
        command.add_argument("--reference", type=Path, help="image of the wanted stain; by default one of --images")
    return _run_stage


def _stage_help(stage: Stage) -> str:
    from pipeline.config import Config, describe

    lines = [
        f"{stage.name}: {stage.summary}.",
        "",
        f"reads   {stage.reads}",
        f"writes  {stage.writes}",
        "",
        "settings:",
    ]
    for key in stage.settings:
        if "." in key:
            lines.append(f"  {key}: see the stage {key.partition('.')[0]}")
            continue
        rows = (row for row in describe(Config()) if row[0] == key or row[0].startswith(f"{key}."))
        for path, kind, default, meaning in rows:
            shown = "none" if default is None else list(default) if isinstance(default, tuple) else default
            lines.append(f"  {path} = {shown}  ({kind})")
            lines += textwrap.wrap(meaning, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _run_stage(options: argparse.Namespace) -> None:
    alone = [
        flag
        for flag in ("run", "images", "slides", "raw", "out", "overlay", "mpp", "reference")
        if getattr(options, flag, None)
    ]
    if alone:
        of_stage = {"predict": _predict_images, "normalise": _normalise_images, "submit": _submit_hidden_test}
        of_stage[options.name](options)
        return
    from pipeline.runner import run

    config, paths = load(options)
    run(options.name, config, paths, with_needs=options.with_needs, force=options.force)
    print(what_next(BY_NAME[options.name], options, config, paths))


def _predict_images(options: argparse.Namespace) -> None:
    if options.slides is not None:
        _predict_slides(options)
        return
    if options.mpp is not None:
        raise ValueError("--mpp says how slides are looked at; give --slides, or leave it out")
    _refuse_idle(options, "predict.", "compute.")
    missing = [flag for flag in ("run", "images", "out") if getattr(options, flag) is None]
    if missing:
        raise ValueError(f"predicting images needs --run, --images and --out; --{', --'.join(missing)} is missing")

    from pipeline.records.out_folder import check_out
    from pipeline.stages.predict import predict_images

    check_out(options.out)
    predict_images(options.run, options.images, options.out, overlay=options.overlay, overrides=options.settings)


def _predict_slides(options: argparse.Namespace) -> None:
    missing = [flag for flag in ("run", "out") if getattr(options, flag) is None]
    if missing or options.images is not None or options.overlay:
        raise ValueError(
            "predicting slides needs --run, --slides and --out, and takes neither --images nor --overlay (an overview "
            "is always written)"
        )
    _refuse_idle(options, "predict.", "compute.")
    from pipeline.records.out_folder import check_out
    from pipeline.stages.predict import predict_slides

    check_out(options.out)
    predict_slides(options.run, options.slides, options.out, mpp=options.mpp, overrides=options.settings)


def _submit_hidden_test(options: argparse.Namespace) -> None:
    missing = [flag for flag in ("run", "raw", "out") if getattr(options, flag) is None]
    if missing:
        raise ValueError(
            f"submitting other test images needs --run, --raw and --out; --{', --'.join(missing)} is missing"
        )
    _refuse_idle(options)
    from pipeline.hidden_test import submit_hidden_test

    submit_hidden_test(options.run, options.raw, options.out, options.settings)


def _normalise_images(options: argparse.Namespace) -> None:
    missing = [flag for flag in ("images", "out") if getattr(options, flag) is None]
    if missing:
        raise ValueError(f"normalising images needs --images and --out; --{', --'.join(missing)} is missing")
    from pipeline.config import load_config

    _refuse_idle(options, "normalise.", "compute.", with_config=True)
    config = load_config(options.config, options.settings)

    from pipeline.stages.normalise import normalise_images

    normalise_images(options.images, options.out, config, options.reference)


def _refuse_idle(options: argparse.Namespace, *sections: str, with_config: bool = False) -> None:
    """Refuse flags and settings that would change nothing where images are given; sections: those that change it."""
    idle = ["-c"] if options.config is not None and not with_config else []
    idle += [f"--{flag.replace('_', '-')}" for flag in ("with_needs", "force") if getattr(options, flag)]
    if sections:
        idle += [setting for setting in options.settings if not setting.startswith(sections)]
    if idle:
        named = " and ".join(name.rstrip(".") for name in sections)
        takes = f"takes settings of {named} alone, as key.path=value" if sections else "brings the run's own settings"
        raise ValueError(f"{options.name} of given files {takes}; leave out {', '.join(idle)}")


def what_next(stage: Stage, options: argparse.Namespace, config: Config, paths: Paths) -> str:
    """Say what a stage wrote, and the command that goes on from there, where there is one."""
    from pipeline.kaggle import competition_of

    suffix = f" CONFIG={options.config}" if options.config and options.config != DEFAULT_CONFIG else ""
    suffix += f" SET={_for_make(options.settings)}" if options.settings else ""
    written = {
        "evaluate": paths.reports / "metrics.json",
        "report": paths.reports / "report.html",
        "submit": paths.reports / "submission.csv",
    }.get(stage.name, stage.folder(paths))
    after = {
        "train": "make evaluate",
        "predict": "make evaluate",
        "evaluate": "make report",
        "report": "make submission",
        "submit": "make kaggle-submit",
    }.get(stage.name, "make train")
    submits = config.submit.format != "auto" or paths.sample_submission.is_file()
    if (stage.name == "report" and not submits) or (stage.name == "submit" and competition_of(config) is None):
        own = f"python -m pipeline predict --run {config.run} --images <file or folder> --out <folder>"
        return f"\nWritten: {written}\nYours:   {own}"
    return f"\nWritten: {written}\nNext:    {after}{suffix}"


def _for_make(settings: Sequence[str]) -> str:
    """Settings as one word for a shell, of which make gives another shell what it stands for."""
    words = " ".join(shlex.quote(setting) for setting in settings).replace("$", "$$")
    return shlex.quote(words) if set(words) & set('"$`\\!') else f'"{words}"'


COMMANDS = {stage.name: partial(add_arguments, stage) for stage in STAGES}
