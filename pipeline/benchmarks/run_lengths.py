"""How fast the mask of a whole slide is written as run lengths and read back: against pycocotools and plain NumPy."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from pipeline.benchmarks.history import Check, Findings
from pipeline.benchmarks.tiles import fingerprint
from pipeline.benchmarks.timing import Aim, Contest, Pace, Process, Row, SideFailed, here, hold, rows_of, versions_of

OURS, COCO, PLAIN = "stainseg", "pycocotools", "plain NumPy"
VARIANTS = {OURS: "ours", COCO: "pycocotools", PLAIN: "numpy"}
AT_LEAST = 1.0
SIZE, OBJECTS, SEED = (30_000, 40_000), 600, 83
"""Height and width; glomeruli, of 200 to 600 pixels across."""
THREADS = 1
SCRIPT = Path(__file__).with_name("run_length_sides.py")
PACE = Pace(turn_s=0.0, contest_s=60.0, least=5, most=9)


def run(pace: Pace = PACE, size: tuple[int, int] = SIZE) -> Findings:
    """Hold both contests, then compare texts and masks."""
    rows: list[Row] = []
    with ExitStack() as closing:
        file = Path(closing.enter_context(tempfile.TemporaryDirectory())) / "mask.npy"
        mask = glomeruli(size)
        np.save(file, mask)
        sides = [here(name, SCRIPT, THREADS, variant=variant) for name, variant in VARIANTS.items()]
        sides = [side for side in sides if side.name != COCO or find_spec("pycocotools")]
        players = {side.name: Process(side) for side in sides}
        for player in players.values():
            closing.callback(player.close)
        for what in tqdm(("encode", "decode"), desc="contests", unit="contest", disable=None):
            others = tuple(name for name in players if name != OURS)
            aim = Aim(AT_LEAST, others)
            task, shape = {"what": what, "mask": str(file)}, f"{size[0]}x{size[1]}"
            contest = Contest(f"run lengths, {what}", shape, task, OURS, (OURS, *others), mask.size / 1e6, "MP/s", aim)
            rows += rows_of(contest, hold(contest, players, pace))
        try:
            same = float(players[OURS].ask(call="same", **{"with": {"mask": str(file)}})["answer"])
            check = Check("the same text and mask as plain NumPy", same, "", 1.0)
        except SideFailed as failed:
            check = Check("the same text and mask as plain NumPy", None, "", 1.0, detail=str(failed))
        versions = {name: versions_of(player) for name, player in players.items()}
    items = f"{OBJECTS} ellipses, {mask.mean():.1%} of {size[0]}x{size[1]} ({fingerprint(mask)})"
    return Findings(items, THREADS, versions, rows, [check])


def glomeruli(size: tuple[int, int]) -> np.ndarray:
    """Draw filled ellipses: (height, width) bool."""
    random = np.random.default_rng(SEED)
    canvas = np.zeros(size, np.uint8)
    for _ in range(OBJECTS):
        centre = tuple(int(value) for value in random.integers(0, size[::-1]))
        axes = tuple(int(value) for value in random.integers(100, 300, 2) * min(1.0, size[0] / SIZE[0] * 4))
        cv2.ellipse(canvas, centre, axes, float(random.uniform(0, 180)), 0, 360, 1, -1)
    return canvas.view(np.bool_)
