"""How fast training is, from images to averaged weights: against the bare step of its network, and another recipe."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.benchmarks.history import Check, Findings
from pipeline.benchmarks.tiles import fingerprint
from pipeline.benchmarks.timing import (
    Aim,
    Contest,
    Pace,
    Process,
    Row,
    Side,
    SideFailed,
    here,
    hold,
    rows_of,
    versions_of,
)
from pipeline.laboratories import LABORATORIES
from pipeline.records.case import Case, write_cases
from pipeline.records.rasters import write_png
from pipeline.tissue import TissueKind, render_field

OURS, BARE, RECIPE = "stainseg", "bare step", "smp's recipe"
SCRIPTS = Path(__file__).parent
KINDS: tuple[TissueKind, ...] = ("gland", "nest", "lymphoid", "stroma")
SEED = 60
OF_BARE, OF_RECIPE = 0.95, 2.5
"""Aims: times as fast as the bare step (the loop's own work takes at most 5 %), and as the recipe."""
WAITING, APART = 5.0, 0.001
"""Aims: percent of the time that a step may wait for its batch; percent between the losses of loop and bare step."""
PACE = Pace(turn_s=0.0, contest_s=90.0, least=7, most=11)
"""A turn is one pass, of several steps: seconds, not hundredths."""
FOLLOWED = 2
"""Passes over which waiting is measured."""


@dataclass(frozen=True)
class Size:
    """How large the work is: images of side pixels, crops a batch, steps a pass, threads a side."""

    images: int = 16
    side: int = 320
    batch: int = 8
    crop: int = 256
    steps: int = 6
    threads: int = 2
    networks: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "Unet on tf_efficientnet_lite0": {
                "name": "smp:Unet",
                "arguments": {"encoder_name": "tu-tf_efficientnet_lite0", "encoder_weights": None},
            },
            "U-Net of width 32": {"name": "unet"},
        }
    )


def sides(threads: int) -> list[Side]:
    """Return every side; all run in this environment."""
    ours = SCRIPTS / "training_sides.py"
    return [
        here(OURS, ours, threads, variant="looped"),
        here(BARE, ours, threads, variant="bare"),
        here(RECIPE, SCRIPTS / "smp_recipe.py", threads),
    ]


def run(pace: Pace = PACE, size: Size | None = None) -> Findings:
    """Hold the contests on rendered tissue, then measure waiting and compare losses."""
    size = size or Size()
    with ExitStack() as closing:
        root = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        players = {}
        for side in sides(size.threads):
            # Each starts to import while tissue is rendered.
            players[side.name] = Process(side)
            closing.callback(players[side.name].close)
        items = render_cases(root, size)
        contests = [contest for name in size.networks for contest in _contests(name, root, size)]
        rows: list[Row] = []
        for contest in tqdm(contests, desc="contests", unit="contest", disable=None):
            rows += rows_of(contest, hold(contest, players, pace))
        checks = [check for name in size.networks for check in _checks(name, players, root, size)]
        versions = {name: versions_of(player) for name, player in players.items()}
    return Findings(items, size.threads, versions, rows, checks)


def render_cases(root: Path, size: Size) -> str:
    """Write fields of tissue as ingest would, below root/data/ingest/fields, and return what is worked on."""
    folder = root / "data" / "ingest" / "fields"
    cases, pixels = [], []
    for number in tqdm(range(size.images), desc="fields", unit="image", disable=None):
        laboratory = list(LABORATORIES)[number % len(LABORATORIES)]
        field = render_field(KINDS[number % len(KINDS)], size.side, size.side, LABORATORIES[laboratory], SEED + number)
        name = f"{number:03d}"
        image, label = f"images/{name}.png", f"labels/{name}.png"
        write_png(folder / image, field.image)
        write_png(folder / label, field.tissue.label)
        cases.append(
            Case(name, "fields", image, label, "instance", name, laboratory, size.side, size.side, None, image)
        )
        pixels.append(np.dstack([field.image, field.tissue.label]))
    write_cases(folder / "cases.jsonl", cases)
    return (
        f"batches of {size.batch} crops of {size.crop}x{size.crop} from {size.images} of {size.side}x{size.side}, "
        f"{size.steps} steps a pass ({fingerprint(*pixels)})"
    )


def _task(name: str, root: Path, size: Size) -> dict[str, Any]:
    return {
        "root": str(root),
        "network": size.networks[name],
        "batch": size.batch,
        "crop": size.crop,
        "steps": size.steps,
        "threads": size.threads,
    }


def _contests(name: str, root: Path, size: Size) -> list[Contest]:
    task, amount = _task(name, root, size), float(size.batch * size.steps)
    found = [Contest("training step", name, task, OURS, (OURS, BARE), amount, "images/s", Aim(OF_BARE, (BARE,)))]
    if size.networks[name]["name"].startswith("smp:"):
        aim = Aim(OF_RECIPE, (RECIPE,))
        found.append(Contest("training recipe", name, task, OURS, (OURS, RECIPE), amount, "images/s", aim))
    return found


def _checks(name: str, players: dict[str, Process], root: Path, size: Size) -> list[Check]:
    """Follow the loop and the bare step through some passes: how long steps waited, and whether losses are the same."""
    waits, same = f"waits for batches, {name}", f"loss of the bare step, {name}"
    asked = {"passes": FOLLOWED, **_task(name, root, size)}
    try:
        looped, bare = (
            players[side].ask(call="follow", **{"with": {**asked, "variant": variant}})["answer"]
            for side, variant in ((OURS, "looped"), (BARE, "bare"))
        )
    except SideFailed as failed:
        return [Check(what, None, "%", aim, True, str(failed)) for what, aim in ((waits, WAITING), (same, APART))]
    apart = 100.0 * abs(looped["loss"] - bare["loss"]) / abs(bare["loss"])
    detail = f"of the loop's time, over {FOLLOWED * size.steps} steps that begin with nothing made ahead"
    return [
        Check(waits, 100.0 * looped["waiting"], "%", WAITING, True, detail),
        Check(same, apart, "%", APART, True, f"between means over the first {size.steps} steps: {looped['loss']:.6f}"),
    ]
