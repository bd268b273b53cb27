"""The command line: names, help and dispatch; whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import sys

from pipeline import __version__
from pipeline.commands import GROUPS, MODULES

# As type checkers know it: the import of typing takes longer than the rest of --help.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "python -m pipeline"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 where it succeeded, 2 where the user must change something, 130 where interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words and words[0] == "--version":
        print(f"stainseg {__version__}")
        return 0
    if not words or words[0] not in MODULES:
        print(_no_command(words), file=sys.stderr)
        return 2
    return _run(words[0], words[1:])


def overview() -> str:
    """Every command and what it does."""
    lines = [
        f"usage: {PROGRAM} [--help] [--version] <command> ...",
        "",
        "From the raw download of a histology competition to a scored and submittable segmentation.",
    ]
    for title, _, commands in GROUPS:
        lines += ["", f"{title}:", *(f"  {name:<16} {summary}" for name, summary in commands.items())]
    return "\n".join(
        [
            *lines,
            "",
            f"`{PROGRAM} <command> --help` lists every setting with its default and its meaning.",
            "Start here: make train && make evaluate && make submission",
        ]
    )


def _no_command(words: list[str]) -> str:
    if not words:
        return f"{PROGRAM}: expected a command, found none.\n\n{overview()}"
    import difflib

    near = difflib.get_close_matches(words[0], MODULES, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{words[0]}: expected a command, found no such one; {meant}`{PROGRAM} --help` lists all"


def _run(name: str, words: list[str]) -> int:
    import importlib
    import os

    from pipeline.commands.command import Command

    # Its search for plugins goes through every installed package, and takes longer than all the rest of a help.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    command = Command(name)
    run = importlib.import_module(f"pipeline.commands.{MODULES[name]}").COMMANDS[name](command)
    options = command.parse_intermixed_args(words)
    # The settings' models take longer to build than the whole of a help.
    from pipeline.config import ConfigError
    from pipeline.runner import StageNotReady

    try:
        run(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except StageNotReady as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        if options.trace:
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; the same command carries on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
