"""Commands that measure: scores, comparisons of runs and of libraries, and speed."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.command import DEFAULT_CONFIG, Command, Run, load

STUDIES = Path("configs/studies/ablation.yaml")


def cross_validation(command: Command) -> Run:
    """Add the arguments of cv."""
    command.description = (
        "cv: train one run a fold (split.folds), and score every case by the run that never saw it.\n\n"
        "The test part is held out of all of it. What is complete is not made again, so that the same command carries\n"
        "on after an interruption. Writes reports/cv/<run>/: table.md, metrics.json, scores.png, per_case.csv\n"
        "and labels_to_check.csv with labels_to_check.png, where predictions contradict labels most."
    )
    command.takes_config()
    return _cross_validate


def compare(command: Command) -> Run:
    """Add the arguments of compare."""
    command.add_argument("first", help="a run with reports/<run>/per_case.csv; of a cross-validation cv/<run>")
    command.add_argument("second", help="another on the same cases; differences are this one minus the first")
    command.add_argument(
        "--pool",
        action="append",
        default=[],
        help="strata also judged together: --pool 'tissue=purple/purple,purple/white'",
    )
    return _compare


def ablation(command: Command) -> Run:
    """Add the arguments of ablation."""
    command.description = (
        "ablation: train one segmenter without and with each remedy, with every seed, and compare their scores.\n\n"
        "Everything is checked before anything is trained; what is complete is not made again, so that the same\n"
        "command carries on after an interruption. Writes reports/ablation/<study>.md, .json and .png."
    )
    command.add_argument("studies", nargs="*", help="studies of the file, by default all")
    command.add_argument("--file", type=Path, default=STUDIES, help=f"seeds, arms and studies (default {STUDIES})")
    return _run_ablation


def transfer(command: Command) -> Run:
    """Add the arguments of transfer."""
    command.description = (
        "transfer: score a trained segmentation on another data set, which it never saw, without and with each stain\n"
        "normaliser, brought to the look of the run's own training images; weights and thresholds are the run's.\n\n"
        "  python -m pipeline transfer --run dsb2018 -c configs/nuinsseg_human.yaml predict.scales=[0.5]\n\n"
        "Settings of predict are laid over the run's own, in further rows of the table.\n"
        "Writes reports/transfer/<run>--<dataset>/: table.md, metrics.json, per_case.csv and cases.png."
    )
    command.add_argument("--run", required=True, help="a trained segmentation: its name below data/train/")
    command.add_argument("--methods", help="none, reinhard, ..., and runs that change stain; commas between them")
    command.add_argument(
        "--reference-strata",
        default="",
        help="strata of the run's training images to bring others to, commas between them; default all stained ones",
    )
    command.takes_config()
    return _transfer


def peers(command: Command) -> Run:
    """Add the arguments of peers."""
    command.description = (
        "peers: train other libraries' whole segmenters, each by its own code in its own environment (make\n"
        "bench-peers), on the training part of the config's split, and compare its masks of the test part with the\n"
        "run's (make evaluate). One after another; what is complete is not made again, so that the same command\n"
        "carries on after an interruption. Writes reports/peers/<dataset>/: table.md, metrics.json, differences.png,\n"
        "cases.png and <library>/per_case.csv, which compare takes as the run peers/<dataset>/<library>."
    )
    command.takes_config()
    command.add_argument("--minutes", type=float, default=45.0, help="wall clock of each training (default 45)")
    command.add_argument("--only", help="libraries to run, commas between them; the others keep what they have")
    command.add_argument(
        "--pool", action="append", help="strata also judged together (default tissue=purple/purple,purple/white)"
    )
    return _run_peers


def bench(command: Command) -> Run:
    """Add the arguments of bench."""
    command.add_argument(
        "suites",
        nargs="*",
        metavar="suite",
        help="stains, training, inference, inference_slide (not by default), matching, run_lengths, help",
    )
    command.add_argument(
        "--install-peers", action="store_true", help="only install the other libraries, each by itself"
    )
    return _bench


def score(command: Command) -> Run:
    """Add the arguments of score."""
    command.add_argument("solution", type=Path, help="the solution, in Kaggle's format")
    command.add_argument("submission", type=Path, help="the submission")
    command.add_argument("--classes", type=Path, help="classes.csv for a table by stratum")
    return _score


def _cross_validate(options: argparse.Namespace) -> None:
    from pipeline.cross_validation import run_cross_validation

    load(options)
    run_cross_validation(options.config or DEFAULT_CONFIG, options.settings)


def _compare(options: argparse.Namespace) -> None:
    from pipeline.comparison import compare

    compare(options.first, options.second, options.pool)


def _run_ablation(options: argparse.Namespace) -> None:
    from pipeline.ablation import run_ablation

    run_ablation(options.file, options.studies)


def _transfer(options: argparse.Namespace) -> None:
    from pipeline.transfer import run_transfer

    load(options)
    methods = None if options.methods is None else [name for name in options.methods.split(",") if name]
    strata = [name for name in options.reference_strata.split(",") if name]
    run_transfer(options.run, options.config or DEFAULT_CONFIG, options.settings, methods, strata)


def _run_peers(options: argparse.Namespace) -> None:
    from pipeline.peer_study import run_peer_study

    load(options)
    only = None if options.only is None else [name for name in options.only.split(",") if name]
    run_peer_study(options.config or DEFAULT_CONFIG, options.settings, options.minutes, only, options.pool)


def _bench(options: argparse.Namespace) -> None:
    if options.install_peers:
        from pipeline.benchmarks.peers import install

        install()
        return
    from pipeline.benchmarks import bench

    bench(options.suites)


def _score(options: argparse.Namespace) -> None:
    from pipeline.metrics.competition import print_score

    print_score(options.solution, options.submission, options.classes)


COMMANDS = {
    "cv": cross_validation,
    "compare": compare,
    "ablation": ablation,
    "transfer": transfer,
    "peers": peers,
    "bench": bench,
    "score": score,
}
