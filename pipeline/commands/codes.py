"""Commands of autoencoders: images to codes, back, and new ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.command import Command, Run

if TYPE_CHECKING:
    from pipeline.config import ComputeSettings


def encode(command: Command) -> Run:
    """Add the arguments of encode."""
    command.description = (
        "encode: store images as codes of a trained autoencoder, and say what JPEG makes of the same bytes.\n\n"
        "  make train CONFIG=configs/normalisers/variational.yaml\n"
        "  python -m pipeline encode --run normalisers/variational --images <file or folder> --out <folder>"
    )
    command.add_argument("--images", type=Path, required=True, help="an image, or a folder of images, of any size")
    command.add_argument("--out", type=Path, required=True, help="folder for <stem>.code and codes.csv")
    command.add_argument("--bits", type=int, default=8, help="bits of a number of the code, 1 to 16 (default 8)")
    _takes_run(command)
    return _encode


def decode(command: Command) -> Run:
    """Add the arguments of decode."""
    command.description = (
        "decode: bring back the images that encode stored, with the run that stored them.\n\n"
        "  python -m pipeline decode --run normalisers/variational --codes <file or folder> --out <folder>"
    )
    command.add_argument("--codes", type=Path, required=True, help="a code, or a folder of codes")
    command.add_argument("--out", type=Path, required=True, help="folder for <stem>.png")
    _takes_run(command)
    return _decode


def generate(command: Command) -> Run:
    """Add the arguments of generate."""
    command.description = (
        "generate: draw images from a trained variational autoencoder.\n\n"
        "  make train CONFIG=configs/normalisers/variational.yaml\n"
        "  python -m pipeline generate --run normalisers/variational --out <folder> --count 16 --size 128"
    )
    command.add_argument("--out", type=Path, required=True, help="folder for tile_<n>.png and grid.png")
    command.add_argument("--count", type=int, default=16, help="images (default 16)")
    command.add_argument("--size", type=int, default=128, help="their side in pixels (default 128)")
    command.add_argument("--seed", type=int, default=None, help="seed of the draw; by default the run's")
    _takes_run(command)
    return _generate


def _takes_run(command: Command) -> None:
    command.add_argument("--run", required=True, help="a trained run: its name below data/train/, or its folder")
    command.takes_settings("compute.<key>=value", "device and threads")


def _encode(options: argparse.Namespace) -> None:
    compute = _compute(options)

    from pipeline.codes import encode_images

    encode_images(options.run, options.images, options.out, options.bits, compute)


def _decode(options: argparse.Namespace) -> None:
    compute = _compute(options)

    from pipeline.codes import decode_codes

    decode_codes(options.run, options.codes, options.out, compute)


def _generate(options: argparse.Namespace) -> None:
    compute = _compute(options)

    from pipeline.codes import generate_images

    generate_images(options.run, options.out, options.count, options.size, options.seed, compute)


def _compute(options: argparse.Namespace) -> ComputeSettings:
    idle = [setting for setting in options.settings if not setting.startswith("compute.")]
    if idle:
        raise ValueError(f"{options.name} takes settings of compute alone; leave out {', '.join(idle)}")
    from pipeline.config import load_config

    return load_config(None, options.settings).compute


COMMANDS = {"encode": encode, "decode": decode, "generate": generate}
