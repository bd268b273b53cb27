"""What every peer's script shares: the exchanged folder, the clock, the choice on validation, and what it hands back.

It runs in the environments of other libraries: the standard library, NumPy, Pillow, SciPy and numba, and of ours
only the definition of average precision, so that all choose by the same figure.
Reads:  <data>/{train,validation}/{images,labels}/<case_id>.png, <data>/test/images/<case_id>.png
Writes: <out>/masks/<case_id>.png of the test images (16-bit object ids), and <out>/facts.json last
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from pipeline.metrics.instance import average_precision, overlaps

WARM_UP, MEASURED, MEASURED_SHARE = 2, 5, 0.015
"""Steps that are not timed, since they allocate and choose kernels; steps of which the median is taken at least, and
for which share of the training's time: other work on the machine comes and goes."""
THRESHOLDS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
SMALLEST = (0, 10, 20, 40)
"""Of foreground that is cut into its connected components: probabilities and pixels that are tried."""


class Trial:
    """One peer on one exchanged folder.

    data, out: folders; minutes: wall clock of training; threads: how many may be used; seed: of the training.
    facts: what facts.json will hold; a script adds thresholds and steps.
    """

    def __init__(self, data: Path, out: Path, minutes: float, threads: int, seed: int) -> None:
        self.data, self.out, self.minutes, self.threads, self.seed = data, out, minutes, threads, seed
        self.work = out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.facts: dict[str, Any] = {"minutes": minutes, "threads": threads, "seed": seed}

    @property
    def seconds(self) -> float:
        """Wall clock that training may take, its validations included."""
        return 60.0 * self.minutes

    def names(self, part: str) -> list[str]:
        """Return the case ids of train, validation or test, in order."""
        return sorted(file.stem for file in (self.data / part / "images").glob("*.png"))

    def image(self, part: str, name: str) -> np.ndarray:
        """Read an image: (height, width, 3) uint8 RGB."""
        with Image.open(self.data / part / "images" / f"{name}.png") as image:
            return np.asarray(image.convert("RGB"))

    def label(self, part: str, name: str) -> np.ndarray:
        """Read a label of train or validation: (height, width) int32, 0 background, 1..n objects."""
        with Image.open(self.data / part / "labels" / f"{name}.png") as image:
            return np.asarray(image).astype(np.int32)

    def pairs(self, part: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Read all images and labels of train or validation."""
        names = self.names(part)
        return [self.image(part, name) for name in names], [self.label(part, name) for name in names]

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Add the wall clock of a block to facts.json as seconds_<what>."""
        started = time.perf_counter()
        yield
        key = f"seconds_{what}"
        self.facts[key] = round(self.facts.get(key, 0.0) + time.perf_counter() - started, 2)

    def steps_that_fit(self, step: Callable[[], object], beside_s: float = 0.0) -> int:
        """Time a step of a training that is thrown away, and return how many fit beside other work; at least 1."""
        for _ in range(WARM_UP):
            step()
        times: list[float] = []
        while len(times) < MEASURED or sum(times) < MEASURED_SHARE * self.seconds:
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        step_s = sorted(times)[len(times) // 2]
        steps = max(1, int((self.seconds - beside_s) / step_s))
        self.facts |= {"seconds_step": round(step_s, 4), "steps": steps}
        self.say(f"a step takes {step_s:.2f} s here: {steps} steps fill {self.minutes:g} minutes")
        return steps

    def choose(
        self, settings: Sequence[Mapping[str, Any]], segment: Callable[[int, Mapping[str, Any]], np.ndarray]
    ) -> dict[str, Any]:
        """Return the settings that give the highest mean average precision over the validation part.

        segment: makes the object ids of validation case number n with given settings; (height, width) integers.
        """
        truths = [self.label("validation", name) for name in self.names("validation")]
        scores = []
        with self.clock("chosen"):
            for setting in settings:
                found = [average_precision(overlaps(truth, segment(at, setting))) for at, truth in enumerate(truths)]
                scores.append(float(np.mean(found)))
                self.say(f"{dict(setting)}: average precision {scores[-1]:.4f}")
        best = int(np.argmax(scores))
        self.facts |= {"thresholds": dict(settings[best]), "validation_ap": round(scores[best], 6)}
        return dict(settings[best])

    def write_masks(self, segment: Callable[[np.ndarray], np.ndarray]) -> None:
        """Segment every test image and write its object ids; the time of it all is told of an image."""
        names = self.names("test")
        folder = self.out / "masks"
        folder.mkdir(parents=True, exist_ok=True)
        with self.clock("predicted"):
            for name in names:
                mask = np.asarray(segment(self.image("test", name)))
                Image.fromarray(mask.astype(np.uint16)).save(folder / f"{name}.png")
        self.facts["test_images"] = len(names)

    def say(self, text: str) -> None:
        """Print a line of the log at once."""
        print(text, flush=True)


def connected(foreground: np.ndarray, threshold: float, smallest: int) -> np.ndarray:
    """Number the connected components of foreground above a threshold that have at least so many pixels.

    foreground: (height, width) probabilities. Returns (height, width) int32, neighbours by their sides.
    """
    labels, _ = ndimage.label(foreground > threshold)
    return without_small(labels, smallest)


def without_small(labels: np.ndarray, smallest: int) -> np.ndarray:
    """Take objects of fewer pixels away; ids stay as they are."""
    sizes = np.bincount(labels.ravel())
    return np.where(sizes[labels] >= smallest, labels, 0).astype(np.int32)


def foreground_settings() -> list[dict[str, Any]]:
    """Return the thresholds and smallest sizes that connected is tried with."""
    return [{"threshold": one, "smallest": size} for one, size in itertools.product(THRESHOLDS, SMALLEST)]


def padded(image: np.ndarray, multiple: int) -> np.ndarray:
    """Reflect an image, (height, width, channels), at its lower and right border up to multiples of a length."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="reflect")


def peak_megabytes() -> float:
    """Largest resident memory that this process, or the largest of its children, ever had."""
    unit = 1 if sys.platform == "darwin" else 1024
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(largest * unit / 1e6, 1)


def run(segment: Callable[[Trial], None], distributions: Sequence[str]) -> None:
    """Do a peer's trial as the command line says, and write facts.json when all of it is done.

    segment: trains, chooses and writes masks; distributions: those whose versions are told.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the exchanged folder: train, validation, test")
    parser.add_argument("--out", type=Path, required=True, help="folder for masks/ and facts.json")
    parser.add_argument("--minutes", type=float, required=True, help="wall clock of the training")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    trial = Trial(options.data.resolve(), options.out.resolve(), options.minutes, options.threads, options.seed)
    segment(trial)
    versions = {name: metadata.version(name) for name in distributions}
    trial.facts |= {"versions": {"python": platform.python_version()} | versions, "peak_megabytes": peak_megabytes()}
    aside = trial.out / ".facts.json"
    aside.write_text(json.dumps(trial.facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    aside.replace(trial.out / "facts.json")
