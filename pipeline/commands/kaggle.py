"""Commands that take from Kaggle and hand in."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipeline.commands.command import Command, Run, load


def data(command: Command) -> Run:
    """Add the arguments of data."""
    from pipeline.kaggle import COMPETITIONS

    command.add_argument("dataset", help=f"sample, {', '.join(COMPETITIONS)}")
    command.add_argument(
        "--from", dest="source", type=Path, help="take the files from this folder instead of from Kaggle"
    )
    return _fetch


def submit(command: Command) -> Run:
    """Add the arguments of kaggle-submit."""
    command.takes_config()
    return _hand_in


def notebook(command: Command) -> Run:
    """Add the arguments of kaggle-notebook."""
    command.description = (
        "kaggle-notebook: pack a trained run as a notebook that predicts and submits without a network, as code\n"
        "competitions ask for, and the data set that it installs from.\n\n"
        "  python -m pipeline kaggle-notebook -c configs/hubmap2022.yaml --owner <your name on Kaggle>\n\n"
        "Writes dist/kaggle/<run>/: dataset/ (wheels, the run's weights and settings) and notebook/."
    )
    command.takes_config()
    command.add_argument("--owner", help="your name on Kaggle (default $KAGGLE_USERNAME)")
    command.add_argument(
        "--wheels", choices=("missing", "all"), default="missing",
        help="missing: what Kaggle's image lacks; all: enough for an empty environment, some GB (default missing)",
    )  # fmt: skip
    command.add_argument(
        "--image", type=Path, help="what `pip freeze` says in a notebook on Kaggle, to pack by versions"
    )
    command.add_argument("--python", help="version of Python on Kaggle, such as 3.12 (default this one's)")
    return _pack_notebook


def _fetch(options: argparse.Namespace) -> None:
    from pipeline.kaggle import fetch

    fetch(options.dataset, options.source, Path("data/raw"))


def _hand_in(options: argparse.Namespace) -> None:
    from pipeline.kaggle import hand_in
    from pipeline.runner import refuse_other_settings

    config, paths = load(options)
    # A submission that came from elsewhere, or before a change, would cost one of the day's few tries.
    refuse_other_settings("submit", config, paths)
    hand_in(config, paths)


def _pack_notebook(options: argparse.Namespace) -> None:
    from pipeline.kaggle_notebook import pack_notebook

    config, paths = load(options)
    owner = options.owner or os.environ.get("KAGGLE_USERNAME")
    pack_notebook(config, paths, owner, options.wheels, options.image, options.python)


COMMANDS = {"data": data, "kaggle-submit": submit, "kaggle-notebook": notebook}
