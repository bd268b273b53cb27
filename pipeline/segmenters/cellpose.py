"""Cellpose 3 from scratch by its own train_seg, grey, objects rescaled to a diameter of 30.

AdamW with its default rate of 0.005; EPOCHS shares the time so that both its warm-up of 10 epochs and its decay over
the last 50, which it leaves out of shorter trainings, take place. Its validation loss chooses nothing and is left out.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from cellpose import dynamics, models, train, utils

from pipeline.segmenters.trial import Trial, run

BATCH, EPOCHS = 8, 120
CHANNELS = [0, 0]
"""Grey from all channels, and no second one: how users of grey and stained nuclei call it."""
CELL_PROBABILITY, FLOW = (-1.0, 0.0, 1.0), (0.4, 0.8)
DIAMETERS = ("mean of training", "of the image")
"""Of one: the mean diameter of the training objects, or the median diameter that a first pass with it found."""
ITERATIONS = 200
"""Steps along the flows at a diameter of 30, as the library has them."""
FEW, MORE = 2, 14
"""Steps of the trainings that are timed: their difference is free of what the library does before it."""


def segment(trial: Trial) -> None:
    """Train, choose the thresholds and how diameters are had, and write the masks."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    torch.manual_seed(trial.seed)
    torch.set_num_threads(trial.threads)
    images, labels = trial.pairs("train")
    flows = dynamics.labels_to_flows(labels, device=torch.device("cpu"))
    fits = steps(trial, images, flows)
    epochs = max(1, min(EPOCHS, fits))
    model = new_model()
    with trial.clock("trained"):
        taught(trial, model, images, flows, epochs, BATCH * max(1, fits // epochs))
    trial.facts |= {"epochs": epochs, "steps": epochs * max(1, fits // epochs)}
    model.diam_labels = float(model.net.diam_labels)

    validation = [trial.image("validation", name) for name in trial.names("validation")]
    fields: dict[tuple[int, str], tuple[np.ndarray, np.ndarray, float]] = {}

    def chosen_on(at: int, setting: Mapping[str, Any]) -> np.ndarray:
        key = (at, setting["diameter"])
        if key not in fields:
            diameter = diameter_of(model, validation[at], setting["diameter"])
            _, (_, flow, probability), _ = model.eval(
                validation[at], channels=CHANNELS, diameter=diameter, compute_masks=False
            )
            fields[key] = flow, probability, diameter
        flow, probability, diameter = fields[key]
        found = dynamics.resize_and_compute_masks(
            flow, probability, niter=diameter / model.diam_mean * ITERATIONS,
            cellprob_threshold=setting["cellprob_threshold"], flow_threshold=setting["flow_threshold"],
        )  # fmt: skip
        return np.asarray(found)

    settings = [
        {"diameter": diameter, "cellprob_threshold": probability, "flow_threshold": flow}
        for diameter, probability, flow in itertools.product(DIAMETERS, CELL_PROBABILITY, FLOW)
    ]
    chosen = trial.choose(settings, chosen_on)
    thresholds = {name: value for name, value in chosen.items() if name != "diameter"}

    def objects(image: np.ndarray) -> np.ndarray:
        diameter = diameter_of(model, image, chosen["diameter"])
        return np.asarray(model.eval(image, channels=CHANNELS, diameter=diameter, **thresholds)[0])

    trial.write_masks(objects)


def new_model() -> models.CellposeModel:
    """Return an untrained network; its path through MKL-DNN tensors is for prediction with loaded weights only."""
    return models.CellposeModel(gpu=False, pretrained_model=False, model_type=None, mkldnn=False, diam_mean=30.0)


def taught(
    trial: Trial, model: models.CellposeModel, images: list[np.ndarray], flows: list[np.ndarray], epochs: int, each: int
) -> None:
    """Train with the library's own loop, on so many images in each epoch."""
    train.train_seg(
        model.net, train_data=images, train_labels=flows, channels=CHANNELS, batch_size=BATCH, n_epochs=epochs,
        nimg_per_epoch=each, rescale=True, save_path=trial.work, model_name="cellpose",
    )  # fmt: skip


def steps(trial: Trial, images: list[np.ndarray], flows: list[np.ndarray]) -> int:
    """Time trainings of few and of more steps that are thrown away, which prepare alike; return the steps that fit."""
    seconds = []
    for count in (FEW, FEW, MORE):
        started = time.perf_counter()
        taught(trial, new_model(), images, flows, 1, BATCH * count)
        seconds.append(time.perf_counter() - started)
    step_s = max(1e-3, (seconds[2] - seconds[1]) / (MORE - FEW))
    beside_s = max(0.0, seconds[1] - FEW * step_s)
    fits = max(1, int((trial.seconds - beside_s) / step_s))
    trial.facts["seconds_step"] = round(step_s, 4)
    trial.say(f"a step takes {step_s:.2f} s here: {fits} steps fill {trial.minutes:g} minutes")
    return fits


def diameter_of(model: models.CellposeModel, image: np.ndarray, how: str) -> float:
    """Return the diameter that an image is rescaled by; that of training where a first pass finds nothing."""
    if how == DIAMETERS[0]:
        return float(model.diam_labels)
    first = model.eval(image, channels=CHANNELS, diameter=model.diam_labels)[0]
    found = float(utils.diameters(first)[0]) if first.any() else 0.0
    return found if found > 0 else float(model.diam_labels)


if __name__ == "__main__":
    run(segment, ("cellpose", "torch", "numpy"))
