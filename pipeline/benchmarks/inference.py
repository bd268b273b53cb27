"""How fast an image of any size becomes probabilities: against MONAI's sliding windows, and the bare forward pass."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
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
    SideFailed,
    cores,
    here,
    hold,
    rows_of,
    versions_of,
)
from pipeline.laboratories import LABORATORIES
from pipeline.tissue import TissueKind, render_field

OURS, PYTORCH, WHOLE = "stainseg (openvino)", "stainseg (pytorch)", "whole image"
MONAI, MONAI_BF16 = "monai", "monai in bf16"
BARE, BARE_PYTORCH = "bare pass (openvino)", "bare pass (pytorch)"
VARIANTS = {
    OURS: "openvino", PYTORCH: "pytorch", MONAI: "monai", MONAI_BF16: "monai in bf16", BARE: "bare openvino",
    BARE_PYTORCH: "bare pytorch",
}  # fmt: skip
OF_MONAI, OF_BARE, ALIKE = 4.0, 0.9, 0.999
"""Aims: times as fast as MONAI as its users call it and as the bare pass; Dice between outputs."""
JUDGED = {
    "stainseg (pytorch, float32)": "pytorch in float32", PYTORCH: "pytorch", OURS: "openvino", MONAI: "monai",
    MONAI_BF16: "monai in bf16",
}  # fmt: skip
"""Whose masks are held against those of the whole image at once in float32, which no window cuts."""
JUDGED_SIDE = 1536
"""Pixels along the part of the image that is taken for it: a slide at once would not fit in memory."""
SCRIPT = Path(__file__).with_name("inference_sides.py")
SEED = 71
RUNS = ("dsb2018", "sample")
"""Trained runs whose weights serve, in this order."""
ANSWER_S = 7200.0
PIECE = 1000
"""Side in pixels of the rendered fields that the image is put together from."""
KINDS: tuple[TissueKind, ...] = ("gland", "nest", "lymphoid", "stroma")


@dataclass(frozen=True)
class Size:
    """How large the work is: side of the image in pixels, threads a side, ours that take part, and MONAI's."""

    side: int = 2048
    threads: int = field(default_factory=cores)
    ours: tuple[str, ...] = (OURS, PYTORCH)
    compared: tuple[str, ...] = (MONAI, MONAI_BF16)


PACE = Pace(turn_s=0.0, contest_s=120.0, least=5, most=11)
SLIDE = Size(side=20_000, ours=(OURS,), compared=(MONAI,))
ONCE = Pace(turn_s=0.0, contest_s=0.0, least=1, most=1)
"""A pass over a slide takes minutes; one is what there is time for."""


def run(pace: Pace = PACE, size: Size | None = None, root: Path = Path()) -> Findings:
    """Hold the contests with the weights of the first of RUNS that is trained, then compare the masks.

    Raises ValueError where none of them is.
    """
    size = size or Size()
    trained = _trained(root)
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        players = {
            name: Process(here(name, SCRIPT, size.threads, variant=VARIANTS[name]), ANSWER_S) for name in VARIANTS
        }
        for player in players.values():
            closing.callback(player.close)
        image = render_image(size.side)
        np.save(folder / "image.npy", image)
        task = {"image": str(folder / "image.npy"), "run": str(trained), "threads": size.threads}
        shape = f"{size.side}x{size.side}"
        rows: list[Row] = []
        for ours in size.ours:
            bare = {OURS: BARE, PYTORCH: BARE_PYTORCH}[ours]
            wanted = {size.compared: Aim(OF_MONAI, (MONAI,)) if ours == OURS else None, (bare,): Aim(OF_BARE, (bare,))}
            for others, aim in wanted.items():
                what = f"tiled inference, {ours}"
                contest = Contest(what, shape, task, ours, (ours, *others), size.side**2 / 1e6, "MP/s", aim)
                rows += rows_of(contest, hold(contest, players, pace))
        checks = _agreements(players, task, image, folder)
        versions = {name: versions_of(player) for name, player in players.items()}
    return Findings(f"{shape} ({fingerprint(image)}), weights of {trained.name}", size.threads, versions, rows, checks)


def _trained(root: Path) -> Path:
    for name in RUNS:
        folder = (root / "data" / "train" / name).absolute()
        if (folder / "best.pt").is_file():
            return folder
    raise ValueError(
        f"bench inference: expected a trained run, {' or '.join(RUNS)}, found none; `make train` makes one"
    )


def run_slide() -> Findings:
    """Hold the contests once on an image of 20,000 x 20,000, for which MONAI's side needs some 20 GB of memory."""
    return run(ONCE, SLIDE)


def render_image(side: int) -> np.ndarray:
    """Put an image together from rendered fields of several laboratories: (side, side, 3) uint8 RGB."""
    fields = [
        render_field(KINDS[number], PIECE, PIECE, list(LABORATORIES.values())[number], SEED + number).image
        for number in tqdm(range(len(KINDS)), desc="fields", unit="field", disable=None)
    ]
    image = np.empty((side, side, 3), np.uint8)
    starts = range(0, side, PIECE)
    for number, (top, left) in enumerate(product(starts, starts)):
        window = image[top : top + PIECE, left : left + PIECE]
        turned = np.rot90(fields[number % len(KINDS)], number // len(KINDS))
        window[:] = turned[: window.shape[0], : window.shape[1]]
    return image


def _agreements(players: dict[str, Process], task: dict[str, Any], image: np.ndarray, folder: Path) -> list[Check]:
    """Compare where each sees foreground with the whole image at once, and ours with MONAI: Dice."""
    part = folder / "part.npy"
    np.save(part, image[:JUDGED_SIDE, :JUDGED_SIDE])
    masks: dict[str, np.ndarray | str] = {}
    for name, variant in {WHOLE: WHOLE, **JUDGED}.items():
        out = folder / f"{variant}.npy"
        # Two of them take no part in the race and have no process of their own; any can play any side.
        player = players.get(name, players[PYTORCH])
        try:
            player.ask(call="mask", **{"with": {"out": str(out), **task, "image": str(part), "variant": variant}})
            masks[name] = np.load(out)
        except SideFailed as failed:
            masks[name] = str(failed)
    exact = next(iter(JUDGED))
    pairs = [(name, WHOLE, ALIKE if name == exact else None) for name in JUDGED] + [(OURS, MONAI, ALIKE)]
    return [_agreement(*pair, masks) for pair in pairs]


def _agreement(first: str, second: str, aim: float | None, masks: dict[str, np.ndarray | str]) -> Check:
    what, found = f"Dice of {first} and {second}", (masks[first], masks[second])
    if isinstance(found[0], str) or isinstance(found[1], str):
        return Check(what, None, "", aim, detail="; ".join(one for one in found if isinstance(one, str)))
    both, either = np.count_nonzero(found[0] & found[1]), sum(map(np.count_nonzero, found))
    side = found[0].shape[0]
    detail = f"foreground is {found[0].mean():.1%} of {side}x{side}"
    return Check(what, 2.0 * both / either if either else None, "", aim, detail=detail)
