"""Stains: optical density, and the normalisers that bring images to one reference stain."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.stains.learned import Learned
from pipeline.stains.macenko import Macenko
from pipeline.stains.normaliser import Normaliser, StatisticalNormaliser
from pipeline.stains.reinhard import Reinhard
from pipeline.stains.ruifrok import Ruifrok
from pipeline.stains.vahadane import Vahadane

METHODS: dict[str, type[StatisticalNormaliser]] = {
    "reinhard": Reinhard,
    "macenko": Macenko,
    "vahadane": Vahadane,
    "ruifrok": Ruifrok,
}
"""Classical normalisers by the name that normalise.method gives them."""


def load(file: Path) -> Normaliser:
    """Load a fitted normaliser, whatever its method.

    Raises ValueError where the file is no stain.json, or its method or version is unknown.
    """
    try:
        method = json.loads(file.read_text(encoding="utf-8"))["method"]
        kind: type[Normaliser] = Learned if method == Learned.method else METHODS[method]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file}: expected a fitted normaliser ({', '.join([*METHODS, Learned.method])}), found "
            f"{type(error).__name__}: {error}; run stage normalise again"
        ) from error
    return kind.load(file)


def normaliser_files(folder: Path) -> list[Path]:
    """Return what a fitted normaliser consists of in a folder: stain.json, and the weights of a learned one."""
    return [file for file in (folder / "stain.json", folder / "stain.pt") if file.exists()]
