"""The compiled loops: the same pixels from any number of threads, processes and kinds of array, and no waiting."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.stains import METHODS
from pipeline.stains.optical_density import mix

ROOT = Path(__file__).parents[2]
MATRIX = np.array([[0.9, 0.1, 0.05], [-0.1, 1.1, 0.0], [0.05, 0.0, 0.95]])


def image(side: int = 700) -> np.ndarray:
    """Pink and blue noise: enough pixels for several threads."""
    generator = np.random.default_rng(0)
    amounts = generator.gamma(4.0, 0.08, (side * side, 2)) * (generator.random((side * side, 2)) > 0.2)
    light = 255.0 * 10.0 ** -(amounts @ [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    return np.rint(light).astype(np.uint8).reshape(side, side, 3)


def _send_mixed(pixels: np.ndarray, connection: Connection) -> None:
    connection.send(int(mix(pixels, MATRIX).sum()))


@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_threads_gives_the_same_pixels(method: str) -> None:
    pixels = image()
    normaliser = METHODS[method]().fit([pixels[:128, :128]])
    before = cv2.getNumThreads()
    try:
        found = []
        for threads in (1, 2, 5):
            cv2.setNumThreads(threads)
            found.append(normaliser.transform(pixels)[0])
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_several_python_threads_at_once() -> None:
    pixels = image()
    normaliser = METHODS["vahadane"]().fit([pixels[:128, :128]])
    expected = normaliser.transform(pixels)[0]
    with ThreadPoolExecutor(8) as threads:
        for found, _ in threads.map(normaliser.transform, [pixels] * 16):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_worker_started_after_threads_ran_does_not_wait_for_them(start: str) -> None:
    """As a loader's workers are, in the middle of a run."""
    pixels = image()
    expected = int(mix(pixels, MATRIX).sum())
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_send_mixed, args=(pixels, sender))
    worker.start()
    try:
        assert receiver.poll(60), "the worker hangs"
        assert receiver.recv() == expected
        worker.join(10)
        assert worker.exitcode == 0
    finally:
        worker.kill()
        worker.join()


@pytest.mark.parametrize("method", METHODS)
def test_views_and_read_only_images_are_taken_as_they_are(method: str) -> None:
    pixels = image(200)
    normaliser = METHODS[method]().fit([pixels])
    locked = pixels.copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(normaliser.transform(locked)[0], normaliser.transform(pixels)[0])
    for view in (pixels[::2, ::3], pixels.transpose(1, 0, 2), pixels[:, ::-1]):
        np.testing.assert_array_equal(normaliser.transform(view)[0], normaliser.transform(view.copy())[0])


def test_an_installation_that_cannot_be_written_to_works(tmp_path: Path) -> None:
    """No folder for the machine code: compiled anew. (A file takes the folder's place, as root writes anywhere.)"""
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pipeline" / "stains" / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    script = (
        "import numpy as np; from pipeline.stains.optical_density import mix; "
        "print(mix(np.full((2, 2, 3), 7, np.uint8), np.eye(3)).sum())"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout.strip()) == (0, "84"), done.stderr
