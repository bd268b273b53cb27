"""Stains: optical density, and the normalisers that bring images to one reference stain."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.stains.macenko import Macenko
from pipeline.stains.normaliser import Normaliser
from pipeline.stains.reinhard import Reinhard

METHODS: dict[str, type[Normaliser]] = {"reinhard": Reinhard, "macenko": Macenko}
"""Normalisers by the name that normalise.method gives them."""


def load(file: Path) -> Normaliser:
    """Load a fitted normaliser, whatever its method.

    Raises ValueError where the file is no stain.json, or its method or version is unknown.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        method = content["method"]
        kind = METHODS[method]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file}: expected a fitted normaliser ({', '.join(METHODS)}), found {type(error).__name__}: {error}; "
            "run stage normalise again"
        ) from error
    return kind.load(file)
