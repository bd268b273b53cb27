"""What every command has: a parser of its arguments, and for most of them a file of settings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands import SUMMARIES

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.records.paths import Paths

DEFAULT_CONFIG = Path("configs/sample.yaml")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of descriptions, with room for long option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=118)


class Settings(argparse.Action):
    """Settings as they were meant: make hands over SET="key=[a, b]" in pieces, and a piece without a key goes on."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Store the settings, whole."""
        settings: list[str] = []
        for piece in values:
            if settings and not re.match(r"[a-z_]+(\.\w+)*=", piece):
                settings[-1] += f" {piece}"
            else:
                settings.append(piece)
        setattr(namespace, self.dest, settings)


class Command(argparse.ArgumentParser):
    """The arguments of one command.

    describe: makes the description when help is asked for, where that takes time.
    """

    describe: Callable[[], str] | None = None

    def __init__(self, name: str) -> None:
        super().__init__(
            f"python -m pipeline {name}", formatter_class=Formatter, description=f"{name}: {SUMMARIES[name]}."
        )
        self.set_defaults(name=name)
        self.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)

    def format_help(self) -> str:
        """The help, with what describe says."""
        if self.describe is not None:
            self.description = self.describe()
        return super().format_help()

    def takes_config(self) -> None:
        """Add the file of settings, and settings laid over it."""
        self.add_argument(
            "-c", "--config", type=Path, default=None, help=f"YAML file of settings (default {DEFAULT_CONFIG})"
        )
        self.takes_settings("key.path=value", "settings laid over the file's")

    def takes_settings(self, looks_like: str, meaning: str) -> None:
        """Add settings, any number of them."""
        self.add_argument("settings", nargs="*", action=Settings, metavar=looks_like, help=meaning)


Run = Callable[[argparse.Namespace], None]


def load(options: argparse.Namespace) -> tuple[Config, Paths]:
    """Return the settings that a command was given, and where its files lie."""
    from pipeline.config import ConfigError, load_config
    from pipeline.records.paths import Paths

    if options.config is not None and "=" in str(options.config):
        raise ConfigError(f"{options.config}: expected a file after -c, found a setting")
    config = load_config(options.config or DEFAULT_CONFIG, options.settings)
    return config, Paths.of(config)
