"""Fixtures for every test: no network, and the real data where it is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure() -> None:
    """Give each of several test processes cores of its own: threads that share one wait for each other for minutes."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        number, count = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, cores[number::count] or cores)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process waits for another one's last."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def network_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches out fails and says so; local sockets of worker processes stay open."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "localhost", "::1"):  # type: ignore[index]
            raise AssertionError(f"a test reached out to {address}; tests run without a network")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", refuse)


def _real(*parts: str) -> Path:
    """Real data lies beside the checkout, or where STAINSEG_REAL_DATA says."""
    home = Path(os.environ.get("STAINSEG_REAL_DATA", Path(__file__).parents[2] / "shared"))
    folder = home.joinpath(*parts)
    if not folder.exists():
        pytest.skip(f"real data absent: {Path(*parts)} (set STAINSEG_REAL_DATA to the folder that holds it)")
    return folder


@pytest.fixture(scope="session")
def dsb2018() -> Path:
    """The Data Science Bowl's files as Kaggle serves them."""
    return _real("kaggle", "data-science-bowl-2018")


@pytest.fixture(scope="session")
def idc_patient() -> Path:
    """One patient of Breast Histopathology Images, in the layout of the download."""
    return _real("kaggle", "breast-histopathology-images")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of other real images."""
    return _real("real")


@pytest.fixture(scope="session")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample, written once for the whole suite; never changed by a test."""
    from pipeline.sample import write_sample

    folder = tmp_path_factory.mktemp("written") / "raw" / "sample"
    folder.parent.mkdir()
    write_sample(folder)
    return folder


@pytest.fixture(scope="session")
def submitted_run(tmp_path_factory: pytest.TempPathFactory, sample_folder: Path) -> Path:
    """A root where tiny.yaml went from the sample's raw files to its submission; never changed by a test."""
    root = tmp_path_factory.mktemp("submitted")
    (root / "data" / "raw").mkdir(parents=True)
    (root / "data" / "raw" / "sample").symlink_to(sample_folder)
    (root / "tiny.yaml").write_text(
        "dataset: sample\nrun: tiny\ningest: {group_csv: truth/groups.csv}\nsubmit: {competition: sample-competition}\n"
        "split: {test_share: 0.25, validation_share: 0.25}\naugment: {crop: 64}\n"
        "train: {network: {width: 8, depth: 2}, learning_rate: 0.004, average: 0.9, steps: 48, batch: 4, "
        "validations: 2}\n"
    )
    subprocess.run(
        [sys.executable, "-m", "pipeline", "submit", "-c", "tiny.yaml", "--with-needs"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}, check=True, timeout=200,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return root


@pytest.fixture
def untrained_run(tmp_path: Path) -> Path:
    """The folder of a run of a tiny network with random weights, which makes masks of objects."""
    import torch

    from pipeline.config import dump_config, load_config
    from pipeline.networks import build_network
    from pipeline.outputs import Outputs
    from pipeline.records.files import write_json, write_text
    from pipeline.records.paths import Paths

    config = load_config(None, ["dataset=sample", "run=tiny", "train.network.width=4", "train.network.depth=2"])
    folder = Paths.of(config, tmp_path).train
    torch.manual_seed(5)
    network = build_network(config.train.network, 3, 2, pretrained=False)
    write_text(folder / "config.yaml", dump_config(config))
    outputs = Outputs("boundary", ("foreground", "boundary"), "sigmoid", "instance")
    write_json(folder / "model.json", outputs.as_dict())
    chosen = {"thresholds": {"minimum_size": 300}, "trained_on": [], "chosen_on": {"cases": []}}
    write_json(folder / "thresholds.json", chosen)
    torch.save({"network": network.state_dict()}, folder / "best.pt")
    return folder
