"""Work over the workers of a Dask scheduler: the same results in the same order, whatever happens to a worker."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import cv2
import numpy as np
import pytest
import tifffile
import torch
from distributed import LocalCluster

from pipeline.config import dump_config, load_config
from pipeline.fan_out import in_order
from pipeline.networks import build_network
from pipeline.outputs import Outputs
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.stages.predict import _opened, predict_slides

# Workers do not know this module; what it defines goes to them by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two worker processes of one thread."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1", silence_logs=50
    ) as made:
        yield made


def written(task: tuple[str, int]) -> int:
    """Write a file for a number, and return its square."""
    folder, number = task
    write_text(Path(folder) / f"{number}.txt", f"{number}\n")
    return number**2


def written_by_a_mortal(task: tuple[str, int]) -> int:
    """The same, but the worker that first has number 5 is killed in the middle."""
    folder, number = task
    marker = Path(folder) / "died"
    if number == 5 and not marker.exists():
        marker.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return written(task)


def counted_and_refused(file: str) -> None:
    """Tell each try by a letter."""
    with Path(file).open("a") as stream:
        stream.write("x")
    raise ValueError("refused")


def refused(task: int) -> int:
    """Take every number but three."""
    if task == 3:
        raise ValueError("three is refused")
    return task


def test_results_come_in_order_from_this_process_or_workers(cluster: LocalCluster, tmp_path: Path) -> None:
    items = [(str(tmp_path), number) for number in range(30)]
    here = list(in_order(written, items))
    assert here == [number**2 for number in range(30)]
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    assert list(in_order(written, items, cluster.scheduler_address, tmp_path)) == here
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"{number}.txt" for number in range(30))


def test_a_worker_that_dies_loses_nothing(cluster: LocalCluster, tmp_path: Path) -> None:
    items = [(str(tmp_path), number) for number in range(12)]
    found = list(in_order(written_by_a_mortal, items, cluster.scheduler_address, tmp_path))
    assert found == [number**2 for number in range(12)] and (tmp_path / "died").exists()
    assert all((tmp_path / f"{number}.txt").read_text() == f"{number}\n" for number in range(12))


def test_an_error_names_its_item(cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="three is refused") as told:
        list(in_order(refused, range(6), cluster.scheduler_address, tmp_path))
    assert told.value.__notes__ == ["while a worker had 3"]


def test_what_is_refused_is_tried_once(cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"):
        list(in_order(counted_and_refused, [str(tmp_path / "tries")], cluster.scheduler_address, tmp_path))
    assert (tmp_path / "tries").read_text() == "x"


def test_workers_of_several_threads_are_refused(tmp_path: Path) -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as crowded,
        pytest.raises(ValueError, match=r"expected workers of one thread.*--nthreads 1"),
    ):
        list(in_order(refused, range(2), crowded.scheduler_address, tmp_path))


def test_what_a_process_keeps_open_belongs_to_one_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Run:
        config = load_config(None, [])

        def predictor(self, *_: object) -> object:
            return object()

        def compute_here(self, compute: object) -> object:
            return compute

    monkeypatch.setattr("pipeline.trained.open_run", lambda _: Run())
    monkeypatch.setattr("pipeline.pairs.Pairs", lambda *_: None)
    settings = load_config(None, []).model_dump_json()
    first, same, later = (_opened(settings, str(tmp_path), call)[2] for call in ("a", "a", "b"))
    assert first is same and later is not first


def test_no_scheduler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fan_out.PATIENCE_S", 1)
    with pytest.raises(ValueError, match=r"compute\.scheduler=tcp://127\.0\.0\.1:9: expected a Dask scheduler"):
        list(in_order(refused, range(2), "tcp://127.0.0.1:9"))


def test_workers_that_see_another_folder_are_refused(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fan_out._reads", lambda file: "")
    with pytest.raises(ValueError, match=r"expected workers that see .* found 2 that do not"):
        list(in_order(refused, range(2), cluster.scheduler_address))


def test_slides_are_the_same_bytes_from_workers(cluster: LocalCluster, tmp_path: Path) -> None:
    config = load_config(None, ["dataset=sample", "run=tiny", "train.network.width=4", "train.network.depth=2"])
    folder = Paths.of(config, tmp_path).train
    torch.manual_seed(5)
    network = build_network(config.train.network, 3, 2, pretrained=False)
    write_text(folder / "config.yaml", dump_config(config))
    outputs = Outputs("boundary", ("foreground", "boundary"), "sigmoid", "instance")
    write_json(folder / "model.json", outputs.as_dict())
    write_json(folder / "thresholds.json", {"thresholds": {}, "trained_on": [], "chosen_on": {"cases": []}})
    torch.save({"network": network.state_dict()}, folder / "best.pt")
    generator = np.random.default_rng(3)
    (tmp_path / "slides").mkdir()
    for number in range(3):
        picture = cv2.resize(generator.integers(0, 256, (20, 30, 3)).astype(np.uint8), (600, 400 + 8 * number))
        tifffile.imwrite(tmp_path / "slides" / f"s{number}.tif", picture, tile=(128, 128), photometric="rgb")
    settings = ["predict.engine=pytorch", "compute.device=cpu", "compute.threads=1"]
    for out, more in (("here", []), ("there", [f"compute.scheduler={cluster.scheduler_address}"])):
        predict_slides(str(folder), tmp_path / "slides", tmp_path / out, overrides=[*settings, *more])
    here, there = (
        {file.relative_to(tmp_path / out): file.read_bytes() for file in (tmp_path / out).rglob("*") if file.is_file()}
        for out in ("here", "there")
    )
    assert len(here) > 12 and here == there
