"""Our sides of the contests of training: the product's loop, from images to averaged weights, and the bare step in it.

Both take the same steps, to the last digit: the same network from the same weights, batches, loss, clipped update,
precision and memory format. The bare step has its batches in memory, as the network takes them, and does nothing else;
the loop augments crops of decoded images, makes their targets, averages the weights and looks at the loss.
"""

from __future__ import annotations

import logging
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch.utils.data import default_collate

from pipeline import device
from pipeline.config import Config, NetworkSettings, load_config
from pipeline.intensity import as_input
from pipeline.outputs import Outputs
from pipeline.records.case import read_cases
from pipeline.records.paths import Paths
from pipeline.tasks.players import NETWORK
from pipeline.tasks.segmentation import Segmentation
from pipeline.training import Loop, decay_groups, fabric_of, schedule

DATASET = "fields"
LONGEST = 20_000
"""Steps of the schedule: more than a contest takes."""
AT_HAND_S = 0.002
"""A batch that comes sooner was made before it was asked for."""
QUEUED = 100
"""More batches than loaders make ahead."""


class Steps(Protocol):
    """Takes a number of training steps at each call."""

    def __call__(self) -> None:
        """Take the steps of one pass."""

    def mean_loss(self) -> float:
        """Return the mean over the steps so far."""


class Looped:
    """Steps of the product's loop; waited_s: how long it has waited for batches."""

    def __init__(self, task: Segmentation, config: Config, activation: str, folder: Path, steps: int) -> None:
        fabric = fabric_of(config.compute)
        fabric.launch()
        self.loop = Loop(fabric, task, config, activation, folder)
        self.batches = self.loop.batches()
        self.steps = steps
        self.waited_s = 0.0

    def __call__(self) -> None:
        """Take the steps of one pass."""
        for _ in range(self.steps):
            asked = time.perf_counter()
            batch = next(self.batches)
            self.waited_s += time.perf_counter() - asked
            self.loop.advance(batch)
        self.loop.losses()

    def settle(self) -> None:
        """Use up the batches that loaders made while others had their turn."""
        for _ in range(QUEUED):
            asked = time.perf_counter()
            next(self.batches)
            if time.perf_counter() - asked > AT_HAND_S:
                return

    def mean_loss(self) -> float:
        """Return the mean over the steps so far."""
        return self.loop.losses()["loss"]


class Bare:
    """The same steps on tensors that are in memory already; so many batches as steps, again and again."""

    def __init__(self, task: Segmentation, config: Config, steps: int) -> None:
        self.settings = config.train
        self.network, self.loss = task.players[NETWORK].module, task.loss
        device.suit(self.network, config.compute)
        self.network.train()
        self.precision = config.compute.precision
        self.optimiser = torch.optim.AdamW(
            decay_groups(self.network, self.settings.weight_decay), lr=self.settings.learning_rate, foreach=True
        )
        # A norm is a sum: in another order its last digit differs, and after a few steps the losses do.
        self.parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        crops = task.crops(0)
        self.batches = []
        for step in range(steps):
            first = step * self.settings.batch
            batch = default_collate([crops[first + place] for place in range(self.settings.batch)])
            self.batches.append((as_input(batch["image"]), batch["target"], batch["valid"], batch.get("weight")))
        self.losses: list[torch.Tensor] = []

    def __call__(self) -> None:
        """Take the steps of one pass."""
        for image, *truth in self.batches:
            self.optimiser.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
                logits = self.network(image)
            loss = self.loss(logits, *truth)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.gradient_clip)
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * schedule(len(self.losses), self.settings)
            self.optimiser.step()
            self.losses.append(loss.detach())

    def mean_loss(self) -> float:
        """Return the mean over the steps so far."""
        return float(torch.stack(self.losses).mean())


def prepare(
    root: str,
    network: dict[str, Any],
    batch: int,
    crop: int,
    steps: int,
    threads: int,
    variant: Literal["looped", "bare"],
) -> Steps:
    """Return what takes so many steps a pass, on the cases in root/data/ingest/fields."""
    torch.set_num_threads(threads)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # The processor's numbers and loaders are what is timed, so that a GPU must not be taken where there is one.
    config = load_config(None, [f"dataset={DATASET}", "compute.device=cpu"])
    train = config.train.model_copy(
        update={
            "network": NetworkSettings(**network),
            "steps": LONGEST,
            "batch": batch,
        }
    )
    config = config.model_copy(
        update={
            "train": train,
            "augment": config.augment.model_copy(update={"crop": crop}),
            "compute": device.freeze(config.compute.model_copy(update={"threads": threads})),
        }
    )
    paths = Paths.of(config, Path(root))
    cases = read_cases(paths.cases)
    outputs = Outputs.of(config, cases, paths)
    task = Segmentation(config, paths, outputs, cases, [])
    if variant == "bare":
        return Bare(task, config, steps)
    return Looped(task, config, outputs.activation, paths.train, steps)


def follow(passes: int, **task: Any) -> dict[str, float | None]:
    """Take some passes and return the mean loss of the first, and the share of time that the others waited for batches.

    task: as for prepare. The share is None for the bare step.
    """
    take = prepare(**task)
    take()
    loss = take.mean_loss()
    if not isinstance(take, Looped):
        return {"loss": loss, "waiting": None}
    take.settle()
    take.waited_s, started = 0.0, time.perf_counter()
    for _ in range(passes):
        take()
    return {"loss": loss, "waiting": take.waited_s / (time.perf_counter() - started)}


def versions() -> str:
    """Say which versions take part."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "lightning-fabric", "albumentations"))
