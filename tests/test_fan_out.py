"""Work over the workers of a Dask scheduler: the same results in the same order, whatever happens to a worker."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import cv2
import numpy as np
import pytest
import tifffile
import torch
from distributed import LocalCluster

from pipeline.config import load_config
from pipeline.fan_out import ItemFailed, _checked, in_order
from pipeline.records.case import Case
from pipeline.records.files import write_text
from pipeline.records.paths import Paths
from pipeline.stages import predict
from pipeline.stages.predict import predict_slides

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


def refused(task: tuple[str, int]) -> int:
    """Take every number but three, and write down each try."""
    folder, number = task
    with (Path(folder) / "tries").open("a") as stream:
        stream.write(f"{number}\n")
    if number == 3:
        raise ValueError("three is refused")
    return number


def named(task: tuple[str, int]) -> str:
    return f"number {task[1]}"


def predict_cases(task: tuple[str, str, str, list[Case]]) -> int:
    """Write the map of a case as stage predict does."""
    return predict._predict_cases(task)


def predict_cases_by_a_mortal(task: tuple[str, str, str, list[Case]]) -> int:
    """The same, but the worker that first comes to a tenth map is killed before it."""
    marker = Path(task[1]) / "died"
    if len(list((Path(task[1]) / "data/predict/tiny").glob("*.tif"))) >= 9 and not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return predict._predict_cases(task)


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


def test_an_error_names_its_item_and_is_not_tried_again(cluster: LocalCluster, tmp_path: Path) -> None:
    items = [(str(tmp_path), number) for number in range(6)]
    for scheduler in ("", cluster.scheduler_address):
        with pytest.raises(ItemFailed, match=r"^number 3: three is refused$"):
            list(in_order(refused, items, scheduler, tmp_path, named))
        assert (tmp_path / "tries").read_text().split().count("3") == 1
        (tmp_path / "tries").unlink()
    assert not list(tmp_path.glob(".seen-*"))


def test_a_scheduler_that_goes_away_is_told(tmp_path: Path) -> None:
    made = LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1", silence_logs=50
    )
    work = [(str(tmp_path), number) for number in range(40)]
    results = in_order(written, work, made.scheduler_address, tmp_path, name=lambda task: str(task[1]))
    assert next(results) == 0
    made.close()
    with pytest.raises(ItemFailed, match=r"expected an answer, found that the scheduler went away; start it again"):
        list(results)


def test_no_scheduler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fan_out.PATIENCE_S", 1)
    with pytest.raises(ValueError, match=r"compute\.scheduler=tcp://127\.0\.0\.1:9: expected a Dask scheduler"):
        list(in_order(written, [("", 1)], "tcp://127.0.0.1:9"))


def test_workers_of_several_threads_are_refused(tmp_path: Path) -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, host="127.0.0.1",
            protocol="tcp://", silence_logs=50,
        ) as cluster,
        pytest.raises(ValueError, match=r"expected workers of one thread each, found 1 of more.*--nthreads 1"),
    ):  # fmt: skip
        list(in_order(written, [(str(tmp_path), 1)], cluster.scheduler_address, tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_worker_that_comes_later_is_asked_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a worker that sees .*share the folder"):
        _checked(written, (str(tmp_path), 1), str(tmp_path / ".seen-elsewhere"))
    assert not list(tmp_path.iterdir())


def test_workers_that_see_another_folder_are_refused(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.fan_out._reads", lambda file: "")
    with pytest.raises(ValueError, match=r"expected workers that see .* found 2 that do not"):
        list(in_order(written, [("", 1)], cluster.scheduler_address, tmp_path))


def test_slides_are_the_same_bytes_from_workers(cluster: LocalCluster, untrained_run: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    (tmp_path / "slides").mkdir()
    for number in range(3):
        picture = cv2.resize(generator.integers(0, 256, (20, 30, 3)).astype(np.uint8), (600, 400 + 8 * number))
        tifffile.imwrite(tmp_path / "slides" / f"s{number}.tif", picture, tile=(128, 128), photometric="rgb")
    settings = ["predict.engine=pytorch", "compute.device=cpu", "compute.threads=1"]
    for out, more in (("here", []), ("there", [f"compute.scheduler={cluster.scheduler_address}"])):
        predict_slides(str(untrained_run), tmp_path / "slides", tmp_path / out, overrides=[*settings, *more])
    here, there = (
        {file.relative_to(tmp_path / out): file.read_bytes() for file in (tmp_path / out).rglob("*") if file.is_file()}
        for out in ("here", "there")
    )
    assert len(here) > 12 and here == there


def test_stage_predict_is_the_same_bytes_though_a_worker_dies_and_a_run_is_trained_anew(
    cluster: LocalCluster, submitted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    shutil.copytree(submitted_run, root, symlinks=True, ignore=shutil.ignore_patterns("predict", "reports"))

    def maps(work: Callable[[tuple[str, str, str, list[Case]]], int], scheduler: str = "") -> dict[str, bytes]:
        shutil.rmtree(root / "data/predict", ignore_errors=True)
        monkeypatch.setattr("pipeline.stages.predict._predict_cases", work)
        config = load_config(
            root / "tiny.yaml", ["compute.threads=1", *([f"compute.scheduler={scheduler}"] if scheduler else [])]
        )
        predict.run(config, Paths.of(config, root))
        return {file.name: file.read_bytes() for file in (root / "data/predict/tiny").iterdir()}

    in_process = predict._predict_cases
    here = maps(in_process)
    assert len(here) > 20 and maps(predict_cases_by_a_mortal, cluster.scheduler_address) == here
    assert (root / "died").exists()
    weights = root / "data/train/tiny/best.pt"
    state = torch.load(weights, weights_only=True)
    state["network"] = {
        key: value * 1.5 if value.is_floating_point() else value for key, value in state["network"].items()
    }
    torch.save(state, weights)
    anew = maps(in_process)
    assert anew != here and maps(predict_cases, cluster.scheduler_address) == anew
