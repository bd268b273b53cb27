"""StarDist as its example notebooks train it: star-convex shapes of 32 rays, thresholds by its own optimize_thresholds.

Percentiles 1 and 99.8 of each channel, flips and turns, random brightness and noise, patches of 256, batches of 4, Adam
3e-4 that is halved on a plateau. 400 epochs of 100 steps are what it would take; EPOCHS share the time instead.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import tensorflow as tf
from csbdeep.utils import normalize
from stardist import fill_label_holes
from stardist.models import Config2D, StarDist2D, StarDistData2D

from pipeline.segmenters.trial import Trial, run

EPOCHS, FEWEST_STEPS = 25, 4
PATCH = 256
BATCHES = 1000
"""Of other patches each, while a step is timed."""
PATIENCE = 0.2
"""Share of the epochs without gain after which the learning rate is halved. The library's 40 of 400 would be 2 or 3 of
so few, which the noise of the validation loss reaches."""


def segment(trial: Trial) -> None:
    """Train, let the library choose its thresholds, and write the masks."""
    tf.config.threading.set_intra_op_parallelism_threads(trial.threads)
    tf.config.threading.set_inter_op_parallelism_threads(trial.threads)
    tf.keras.utils.set_random_seed(trial.seed)
    train, validation = (prepared(trial, part) for part in ("train", "validation"))
    spare = StarDist2D(config(1, 1), name="spare", basedir=None)
    epochs, steps = schedule(trial, spare, train, validation)
    model = StarDist2D(config(epochs, steps), name="stardist", basedir=str(trial.work))
    trial.facts |= {"epochs": epochs, "steps": epochs * steps}
    with trial.clock("trained"):
        model.train(*train, validation_data=validation, augmenter=augment, seed=trial.seed)
    with trial.clock("chosen"):
        whole = [as_input(trial.image("validation", name)) for name in trial.names("validation")]
        labels = [trial.label("validation", name) for name in trial.names("validation")]
        trial.facts["thresholds"] = model.optimize_thresholds(whole, labels)

    def objects(image: np.ndarray) -> np.ndarray:
        ready = as_input(image)
        labels, _ = model.predict_instances(ready, n_tiles=model._guess_n_tiles(ready), show_tile_progress=False)
        return np.asarray(labels)

    trial.write_masks(objects)


def config(epochs: int, steps: int) -> Config2D:
    """Return the library's settings for so many epochs and steps in each."""
    return Config2D(
        n_rays=32, grid=(2, 2), n_channel_in=3, train_patch_size=(PATCH, PATCH), train_epochs=epochs,
        train_steps_per_epoch=steps, train_tensorboard=False,
        train_reduce_lr={"factor": 0.5, "patience": max(2, round(PATIENCE * epochs)), "min_delta": 0},
    )  # fmt: skip


def schedule(
    trial: Trial,
    spare: StarDist2D,
    train: tuple[list[np.ndarray], list[np.ndarray]],
    validation: tuple[list[np.ndarray], list[np.ndarray]],
) -> tuple[int, int]:
    """Time a step and a validation of a model that is thrown away; return the epochs, and steps in each, that fit."""
    spare.prepare_for_training()
    settings = {
        "n_rays": spare.config.n_rays, "grid": spare.config.grid, "patch_size": spare.config.train_patch_size,
        "foreground_prob": spare.config.train_foreground_only,
    }  # fmt: skip
    size = spare.config.train_batch_size
    batches = StarDistData2D(*train, batch_size=size, augmenter=augment, length=BATCHES, **settings)
    numbers = itertools.cycle(range(BATCHES))
    trial.steps_that_fit(lambda: spare.keras_model.train_on_batch(*batches[next(numbers)]))
    inputs, wanted = StarDistData2D(*validation, batch_size=len(validation[0]), length=1, **settings)[0]
    started = time.perf_counter()
    spare.keras_model.evaluate(inputs, wanted, batch_size=size, verbose=0)
    validation_s = time.perf_counter() - started
    for epochs in range(EPOCHS, 0, -1):
        steps = int((trial.seconds / epochs - validation_s) / trial.facts["seconds_step"])
        if steps >= FEWEST_STEPS:
            return epochs, steps
    return 1, FEWEST_STEPS


def prepared(trial: Trial, part: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return normalised images and labels without holes, of at least a patch: smaller ones are reflected."""
    images, labels = trial.pairs(part)
    missing = [tuple((0, max(0, PATCH - length)) for length in label.shape) for label in labels]
    # Holes are filled before: an object on the edge and its mirror image may enclose what is no hole of either.
    return (
        [np.pad(as_input(image), (*more, (0, 0)), mode="reflect") for image, more in zip(images, missing, strict=True)],
        [np.pad(fill_label_holes(label), more, mode="reflect") for label, more in zip(labels, missing, strict=True)],
    )


def as_input(image: np.ndarray) -> np.ndarray:
    """Bring each channel's percentiles 1 and 99.8 to 0 and 1."""
    return np.asarray(normalize(image, 1, 99.8, axis=(0, 1)), np.float32)


def augment(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and turn both, change brightness and add noise, from NumPy's global state as the library itself does."""
    turns, flipped = np.random.randint(4), np.random.randint(2)  # noqa: NPY002
    image, label = (np.rot90(one, turns) for one in (image, label))
    if flipped:
        image, label = image[:, ::-1], label[:, ::-1]
    image = image * np.random.uniform(0.6, 2.0) + np.random.uniform(-0.2, 0.2)  # noqa: NPY002
    noise = np.random.normal(0.0, 1.0, image.shape)  # noqa: NPY002
    return image + 0.02 * np.random.uniform() * noise, label  # noqa: NPY002


if __name__ == "__main__":
    run(segment, ("stardist", "tensorflow", "numpy"))
