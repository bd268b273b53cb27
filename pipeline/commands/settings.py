"""Commands that show what settings come to."""

from __future__ import annotations

import argparse

from pipeline.commands.command import Command, Run, load


def config(command: Command) -> Run:
    """Add the arguments of config."""
    command.takes_config()
    return _print_config


def summary(command: Command) -> Run:
    """Add the arguments of summary."""
    command.takes_config()
    command.add_argument(
        "--reference", action="store_true", help="the U-Net of the paper: 1 x 572 x 572, 2 classes, unpadded"
    )
    command.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="image size, default the crop")
    return _print_summary


def _print_config(options: argparse.Namespace) -> None:
    from pipeline.config import dump_config

    config, _ = load(options)
    print(dump_config(config), end="")


def _print_summary(options: argparse.Namespace) -> None:
    from pipeline.config import Config
    from pipeline.networks import build_network, summary
    from pipeline.networks.classifier import build_classifier
    from pipeline.outputs import Outputs
    from pipeline.records.case import read_cases

    if options.reference:
        reference = Config.model_validate({"train": {"network": {"width": 64, "padded": False}}})
        print(summary(reference.train.network, 1, 2, *(options.size or (572, 572))))
        return
    config, paths = load(options)
    known = paths.cases.exists()
    outputs = Outputs.of(config, read_cases(paths.cases), paths) if known else Outputs.foreseen(config)
    height, width = options.size or (config.augment.crop, config.augment.crop)
    build = build_classifier if outputs.is_class else build_network
    print(summary(config.train.network, 3, len(outputs.channels), height, width, build, config.augment.planes))


COMMANDS = {"config": config, "summary": summary}
