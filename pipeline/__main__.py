"""The command line: names, help and dispatch; whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import __version__
from pipeline.stages import BY_NAME, STAGES, Stage, StageNotReady
from pipeline.stages import run as run_stage

if TYPE_CHECKING:
    from pipeline.config import ComputeSettings, Config
    from pipeline.records.paths import Paths

DEFAULT_CONFIG = Path("configs/sample.yaml")
STUDIES = Path("configs/studies/ablation.yaml")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of descriptions, with room for long option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=118)


class Command(argparse.ArgumentParser):
    """A command whose description is made when it is asked for: that of a stage lists all of its settings."""

    describe: Callable[[], str] | None = None

    def format_help(self) -> str:
        """The help, with what describe says."""
        if self.describe is not None:
            self.description = self.describe()
        return super().format_help()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 where it succeeded, 2 where the user must change something, 130 where interrupted."""
    # Its search for plugins goes through every installed package, and takes longer than all the rest of a help.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    options = _parser().parse_args(arguments)
    # The settings' models take longer to build than the whole of --help.
    from pipeline.config import ConfigError

    try:
        options.command(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except StageNotReady as error:
        print(f"{options.name}: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        if options.trace:
            raise
        print(f"{options.name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{options.name}: interrupted; the same command carries on where it stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    stages = "\n".join(f"  {stage.name:<12} {stage.summary}" for stage in STAGES)
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        formatter_class=Formatter,
        description="From the raw download of a histology competition to a scored and submittable segmentation.\n\n"
        f"stages, in their order:\n{stages}",
        epilog="`python -m pipeline <command> --help` lists every setting with its default and its meaning.\n"
        "Start here: make train && make evaluate && make submission",
    )
    parser.add_argument("--version", action="version", version=f"stainseg {__version__}")
    commands = parser.add_subparsers(
        metavar="<command>", required=True, title="commands", dest="name", parser_class=Command
    )
    for stage in STAGES:
        command = _command(commands, stage.name, stage.summary, _run_stage)
        command.describe = partial(_stage_help, stage)
        _takes_config(command)
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
    _add_codes(commands)
    _takes_config(_command(commands, "config", "print the resolved settings", _print_config))
    summary = _command(commands, "summary", "print the network's table of layers", _print_summary)
    _takes_config(summary)
    summary.add_argument(
        "--reference", action="store_true", help="the U-Net of the paper: 1 x 572 x 572, 2 classes, unpadded"
    )
    summary.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="image size, default the crop")
    score = _command(commands, "score", "score a submission against a solution, as the competition does", _score)
    score.add_argument("solution", type=Path, help="the solution, in Kaggle's format")
    score.add_argument("submission", type=Path, help="the submission")
    score.add_argument("--classes", type=Path, help="classes.csv for a table by stratum")
    data = _command(commands, "data", "put a competition's files into data/raw/", _fetch)
    data.add_argument("dataset", help="sample, dsb2018")
    data.add_argument("--from", dest="source", type=Path, help="take the files from this folder instead of from Kaggle")
    bench = _command(commands, "bench", "measure speed against other libraries, as ratios", _bench)
    bench.add_argument(
        "suites",
        nargs="*",
        metavar="suite",
        help="stains, training, inference, inference_slide (not by default), matching, run_lengths, help",
    )
    bench.add_argument("--install-peers", action="store_true", help="only install the other libraries, each by itself")
    ablation = _command(
        commands, "ablation", "train one segmenter without and with each remedy", _run_ablation,
        "ablation: train one segmenter without and with each remedy, with every seed, and compare their scores.\n\n"
        "Everything is checked before anything is trained; what is complete is not made again, so that the same\n"
        "command carries on after an interruption. Writes reports/ablation/<study>.md, .json and .png.",
    )  # fmt: skip
    ablation.add_argument("studies", nargs="*", help="studies of the file, by default all")
    ablation.add_argument("--file", type=Path, default=STUDIES, help=f"seeds, arms and studies (default {STUDIES})")
    _takes_config(_command(
        commands, "cv", "train one run a fold, and score every case by the run that never saw it", _cross_validate,
        "cv: train one run a fold (split.folds), and score every case by the run that never saw it.\n\n"
        "The test part is held out of all of it. What is complete is not made again, so that the same command carries\n"
        "on after an interruption. Writes reports/cv/<run>/: table.md, metrics.json, scores.png, per_case.csv\n"
        "and labels_to_check.csv with labels_to_check.png, where predictions contradict labels most.",
    ))  # fmt: skip
    compare = _command(
        commands, "compare", "set two runs beside each other on the same cases, with intervals", _compare
    )
    compare.add_argument("first", help="a run with reports/<run>/per_case.csv; of a cross-validation cv/<run>")
    compare.add_argument("second", help="another on the same cases; differences are this one minus the first")
    compare.add_argument(
        "--pool",
        action="append",
        default=[],
        help="strata also judged together: --pool 'tissue=purple/purple,purple/white'",
    )
    transfer = _command(
        commands, "transfer", "score a run on another data set, without and with each stain normaliser", _transfer,
        "transfer: score a trained segmentation on another data set, which it never saw, without and with each stain\n"
        "normaliser, brought to the look of the run's own training images; weights and thresholds are the run's.\n\n"
        "  python -m pipeline transfer --run dsb2018 -c configs/nuinsseg_human.yaml predict.scales=[0.5]\n\n"
        "Settings of predict are laid over the run's own, in further rows of the table.\n"
        "Writes reports/transfer/<run>--<dataset>/: table.md, metrics.json, per_case.csv and cases.png.",
    )  # fmt: skip
    transfer.add_argument("--run", required=True, help="a trained segmentation: its name below data/train/")
    transfer.add_argument("--methods", help="none, reinhard, ..., and runs that change stain; commas between them")
    transfer.add_argument(
        "--reference-strata",
        default="",
        help="strata of the run's training images to bring others to, commas between them; default all stained ones",
    )
    _takes_config(transfer)
    peers = _command(
        commands, "peers", "train other libraries' segmenters on the same images and compare", _run_peers,
        "peers: train other libraries' whole segmenters, each by its own code in its own environment (make\n"
        "bench-peers), on the training part of the config's split, and compare its masks of the test part with the\n"
        "run's (make evaluate). One after another; what is complete is not made again, so that the same command\n"
        "carries on after an interruption. Writes reports/peers/<dataset>/: table.md, metrics.json, differences.png,\n"
        "cases.png and <library>/per_case.csv, which compare takes as the run peers/<dataset>/<library>.",
    )  # fmt: skip
    _takes_config(peers)
    peers.add_argument("--minutes", type=float, default=45.0, help="wall clock of each training (default 45)")
    peers.add_argument("--only", help="libraries to run, commas between them; the others keep what they have")
    peers.add_argument(
        "--pool", action="append", help="strata also judged together (default tissue=purple/purple,purple/white)"
    )
    _takes_config(_command(commands, "kaggle-submit", "hand in submission.csv with Kaggle's client", _hand_in))
    packed = _command(
        commands, "kaggle-notebook", "pack a trained run as a notebook for code competitions, without network",
        _pack_notebook,
        "kaggle-notebook: pack a trained run as a notebook that predicts and submits without a network, as code\n"
        "competitions ask for, and the data set that it installs from.\n\n"
        "  python -m pipeline kaggle-notebook -c configs/hubmap2022.yaml --owner <your name on Kaggle>\n\n"
        "Writes dist/kaggle/<run>/: dataset/ (wheels, the run's weights and settings) and notebook/.",
    )  # fmt: skip
    _takes_config(packed)
    packed.add_argument("--owner", help="your name on Kaggle (default $KAGGLE_USERNAME)")
    packed.add_argument(
        "--wheels", choices=("missing", "all"), default="missing",
        help="missing: what Kaggle's image lacks; all: enough for an empty environment, some GB (default missing)",
    )  # fmt: skip
    packed.add_argument(
        "--image", type=Path, help="what `pip freeze` says in a notebook on Kaggle, to pack by versions"
    )
    packed.add_argument("--python", help="version of Python on Kaggle, such as 3.12 (default this one's)")
    return parser


def _add_codes(commands: argparse._SubParsersAction[Command]) -> None:
    encode = _command(
        commands, "encode", "store images as codes of a trained autoencoder", _encode,
        "encode: store images as codes of a trained autoencoder, and say what JPEG makes of the same bytes.\n\n"
        "  make train CONFIG=configs/normalisers/variational.yaml\n"
        "  python -m pipeline encode --run normalisers/variational --images <file or folder> --out <folder>",
    )  # fmt: skip
    encode.add_argument("--images", type=Path, required=True, help="an image, or a folder of images, of any size")
    encode.add_argument("--out", type=Path, required=True, help="folder for <stem>.code and codes.csv")
    encode.add_argument("--bits", type=int, default=8, help="bits of a number of the code, 1 to 16 (default 8)")
    decode = _command(
        commands, "decode", "bring back the images that encode stored", _decode,
        "decode: bring back the images that encode stored, with the run that stored them.\n\n"
        "  python -m pipeline decode --run normalisers/variational --codes <file or folder> --out <folder>",
    )  # fmt: skip
    decode.add_argument("--codes", type=Path, required=True, help="a code, or a folder of codes")
    decode.add_argument("--out", type=Path, required=True, help="folder for <stem>.png")
    generate = _command(
        commands, "generate", "draw images from a trained variational autoencoder", _generate,
        "generate: draw images from a trained variational autoencoder.\n\n"
        "  make train CONFIG=configs/normalisers/variational.yaml\n"
        "  python -m pipeline generate --run normalisers/variational --out <folder> --count 16 --size 128",
    )  # fmt: skip
    generate.add_argument("--out", type=Path, required=True, help="folder for tile_<n>.png and grid.png")
    generate.add_argument("--count", type=int, default=16, help="images (default 16)")
    generate.add_argument("--size", type=int, default=128, help="their side in pixels (default 128)")
    generate.add_argument("--seed", type=int, default=None, help="seed of the draw; by default the run's")
    for command in (encode, decode, generate):
        command.add_argument("--run", required=True, help="a trained run: its name below data/train/, or its folder")
        command.add_argument("settings", nargs="*", metavar="compute.<key>=value", help="device and threads")


def _command(
    commands: argparse._SubParsersAction[Command],
    name: str,
    summary: str,
    function: Callable[[argparse.Namespace], None],
    description: str = "",
) -> Command:
    command = commands.add_parser(
        name, help=summary, formatter_class=Formatter, description=description or f"{name}: {summary}."
    )  # fmt: skip
    command.set_defaults(command=function)
    command.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)
    return command


def _takes_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-c", "--config", type=Path, default=None, help=f"YAML file of settings (default {DEFAULT_CONFIG})"
    )
    command.add_argument("settings", nargs="*", metavar="key.path=value", help="settings laid over the file's")


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
        field = Config.model_fields[key]
        if hasattr(field.annotation, "model_fields"):
            rows = describe(field.annotation, f"{key}.")  # type: ignore[arg-type]
        else:
            rows = (row for row in describe(Config) if row[0] == key)
        for path, kind, default, meaning in rows:
            shown = "none" if default is None else list(default) if isinstance(default, tuple) else default
            lines.append(f"  {path} = {shown}  ({kind})")
            lines += textwrap.wrap(meaning, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _load(options: argparse.Namespace) -> tuple[Config, Paths]:
    from pipeline.config import ConfigError, load_config
    from pipeline.records.paths import Paths

    if options.config is not None and "=" in str(options.config):
        raise ConfigError(f"{options.config}: expected a file after -c, found a setting")
    config = load_config(options.config or DEFAULT_CONFIG, options.settings)
    return config, Paths.of(config)


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
    config, paths = _load(options)
    run_stage(options.name, config, paths, with_needs=options.with_needs, force=options.force)
    print(_what_next(BY_NAME[options.name], options, config, paths))


def _predict_images(options: argparse.Namespace) -> None:
    if options.slides is not None:
        _predict_slides(options)
        return
    if options.mpp is not None:
        raise ValueError("--mpp says how slides are looked at; give --slides, or leave it out")
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
    if options.config is not None or options.with_needs or options.force:
        raise ValueError("--run brings its settings and weights along; leave out -c, --with-needs and --force")

    from pipeline.hidden_test import submit_hidden_test

    submit_hidden_test(options.run, options.raw, options.out, options.settings)


def _normalise_images(options: argparse.Namespace) -> None:
    missing = [flag for flag in ("images", "out") if getattr(options, flag) is None]
    if missing:
        raise ValueError(f"normalising images needs --images and --out; --{', --'.join(missing)} is missing")
    from pipeline.config import load_config

    config = load_config(options.config, options.settings)
    idle = [f"--{flag.replace('_', '-')}" for flag in ("with_needs", "force") if getattr(options, flag)]
    idle += [setting for setting in options.settings if not setting.startswith(("normalise.", "compute."))]
    if idle:
        raise ValueError(
            f"normalising images takes settings of normalise and compute alone; leave out {', '.join(idle)}"
        )

    from pipeline.stages.normalise import normalise_images

    normalise_images(options.images, options.out, config, options.reference)


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


def _what_next(stage: Stage, options: argparse.Namespace, config: Config, paths: Paths) -> str:
    suffix = f" CONFIG={options.config}" if options.config and options.config != DEFAULT_CONFIG else ""
    suffix += f' SET="{" ".join(options.settings)}"' if options.settings else ""
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
    if stage.name == "report" and config.train.task != "segmentation":
        return f"\nWritten: {written}"
    return f"\nWritten: {written}\nNext:    {after}{suffix}"


def _print_config(options: argparse.Namespace) -> None:
    from pipeline.config import dump_config

    config, _ = _load(options)
    print(dump_config(config), end="")


def _print_summary(options: argparse.Namespace) -> None:
    from pipeline.config import Config
    from pipeline.networks import build_network, summary
    from pipeline.networks.classifier import build_classifier
    from pipeline.outputs import Outputs
    from pipeline.records.case import read_cases
    from pipeline.targets import channels_of

    if options.reference:
        reference = Config.model_validate({"train": {"network": {"width": 64, "padded": False}}})
        print(summary(reference.train.network, 1, 2, *(options.size or (572, 572))))
        return
    config, paths = _load(options)
    classifies = config.train.task == "classification"
    if paths.cases.exists():
        outputs = len(Outputs.of(config, read_cases(paths.cases), paths).channels)
    elif classifies:
        outputs = 2
    else:
        outputs = len(channels_of("boundary" if config.train.target == "auto" else config.train.target))
    height, width = options.size or (config.augment.crop, config.augment.crop)
    build = build_classifier if classifies else build_network
    print(summary(config.train.network, 3, outputs, height, width, build, config.augment.planes))


def _run_ablation(options: argparse.Namespace) -> None:
    from pipeline.ablation import run_ablation

    run_ablation(options.file, options.studies)


def _cross_validate(options: argparse.Namespace) -> None:
    from pipeline.cross_validation import run_cross_validation

    _load(options)
    run_cross_validation(options.config or DEFAULT_CONFIG, options.settings)


def _compare(options: argparse.Namespace) -> None:
    from pipeline.comparison import compare

    compare(options.first, options.second, options.pool)


def _transfer(options: argparse.Namespace) -> None:
    from pipeline.transfer import run_transfer

    _load(options)
    methods = None if options.methods is None else [name for name in options.methods.split(",") if name]
    strata = [name for name in options.reference_strata.split(",") if name]
    run_transfer(options.run, options.config or DEFAULT_CONFIG, options.settings, methods, strata)


def _run_peers(options: argparse.Namespace) -> None:
    from pipeline.peer_study import run_peer_study

    _load(options)
    only = None if options.only is None else [name for name in options.only.split(",") if name]
    run_peer_study(options.config or DEFAULT_CONFIG, options.settings, options.minutes, only, options.pool)


def _score(options: argparse.Namespace) -> None:
    from pipeline.metrics.competition import print_score

    print_score(options.solution, options.submission, options.classes)


def _fetch(options: argparse.Namespace) -> None:
    from pipeline.kaggle import fetch

    fetch(options.dataset, options.source, Path("data/raw"))


def _bench(options: argparse.Namespace) -> None:
    if options.install_peers:
        from pipeline.benchmarks.peers import install

        install()
        return
    from pipeline.benchmarks import bench

    bench(options.suites)


def _hand_in(options: argparse.Namespace) -> None:
    from pipeline.kaggle import hand_in

    config, paths = _load(options)
    hand_in(config, paths)


def _pack_notebook(options: argparse.Namespace) -> None:
    from pipeline.kaggle_notebook import pack_notebook

    config, paths = _load(options)
    owner = options.owner or os.environ.get("KAGGLE_USERNAME")
    pack_notebook(config, paths, owner, options.wheels, options.image, options.python)


if __name__ == "__main__":
    sys.exit(main())
