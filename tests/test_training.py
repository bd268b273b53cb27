"""The loop: an interrupted run ends with the same bytes, budgets become steps, and failures say what to change."""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from pipeline.config import ComputeSettings, Config, load_config
from pipeline.device import repeat_bytes
from pipeline.tasks.players import Player
from pipeline.training import (
    MovingAverage,
    TrainingFailed,
    calibration_steps,
    fit,
    schedule,
    steady_step,
    steps_taken,
)

SETTINGS = ("compute.device=cpu", "compute.precision=fp32", "compute.threads=1", "train.steps=24", "train.batch=4",
            "train.validations=4", "train.learning_rate=0.01")  # fmt: skip


class Interrupted(Exception):
    """Stands for a kill at a step."""


class Crops(torch.utils.data.Dataset):
    """Noise to be doubled; sample n is a function of n alone."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        image = torch.from_numpy(np.random.default_rng(n).random((3, 8, 8), np.float32))
        return {"image": image, "target": 2 * image}


class Doubling:
    """Learns to double its input, with dropout and batch norm, so that hidden state matters."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        self.network = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.3), nn.ReLU(), nn.Conv2d(8, 3, 1)
        )
        self.players = {"network": Player(self.network, config.train.learning_rate)}
        self.config = config

    headline = ("validation_dice", "Dice")
    interrupt_at: int | None = None
    poison_at: int | None = None
    poison_gradient_at: int | None = None
    steps_taken = 0

    def crops(self, workers: int) -> Crops:
        return Crops()

    def step(self, networks, batch: dict[str, torch.Tensor], progress: float) -> Iterator[tuple[str, torch.Tensor]]:
        type(self).steps_taken += 1
        if type(self).steps_taken == type(self).interrupt_at:
            raise Interrupted
        loss = (networks["network"](batch["image"]) - batch["target"]).square().mean()
        if type(self).steps_taken == type(self).poison_gradient_at:
            loss.register_hook(lambda gradient: gradient * math.nan)
        yield "network", loss * math.nan if type(self).steps_taken == type(self).poison_at else loss

    def validate(self, predict) -> dict[str, float]:
        with torch.no_grad():
            error = float(
                sum(
                    (predict.network(item["image"][None]) - item["target"]).abs().mean()
                    for item in map(Crops().__getitem__, range(5))
                )
            )
        return {"validation_dice": 1 - error / 5, "validation_iou": 1 - error / 5, "validation_score": 1 - error / 5}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Doubling.interrupt_at = Doubling.poison_at = Doubling.poison_gradient_at = None
    Doubling.steps_taken = 0


def train(folder: Path, *overrides: str) -> Path:
    folder.mkdir(exist_ok=True)
    fit(Doubling, load_config(None, [*SETTINGS, *overrides]), "sigmoid", folder)
    return folder


def same_files(one: Path, other: Path) -> bool:
    names = ["last.pt", "best.pt", "history.csv"]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_two_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    assert same_files(train(tmp_path / "one"), train(tmp_path / "two"))


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    assert not same_files(train(tmp_path / "one"), train(tmp_path / "two", "seed=2"))


@pytest.mark.parametrize("step", [3, 7, 12, 24])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path, step: int) -> None:
    whole = train(tmp_path / "whole")
    Doubling.steps_taken, Doubling.interrupt_at = 0, step
    with pytest.raises(Interrupted):
        train(tmp_path / "cut")
    Doubling.interrupt_at = None
    assert same_files(whole, train(tmp_path / "cut"))


def test_loader_workers_change_nothing(tmp_path: Path) -> None:
    assert same_files(train(tmp_path / "none"), train(tmp_path / "two", "compute.workers=2"))


def test_history_has_a_row_a_validation(tmp_path: Path) -> None:
    with (train(tmp_path / "run") / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [6, 12, 18, 24]
    assert float(rows[-1]["validation_score"]) > float(rows[0]["validation_score"])
    assert rows[0]["best"] == "1"
    assert float(rows[-1]["epoch"]) == 24 * 4 / 10


def test_the_average_follows_its_formula_copies_counters_and_goes_on_after_loading() -> None:
    network = nn.BatchNorm1d(2)
    average, expected = MovingAverage(network, decay=0.5), 0.0
    for step in range(12):
        with torch.no_grad():
            network.weight.fill_(float(step * step))
        network.load_state_dict({**network.state_dict(), "num_batches_tracked": torch.tensor(7 * step)})
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1 - decay) * step * step
        if step == 6:
            kept, average = average.state_dict(), MovingAverage(nn.BatchNorm1d(2), decay=0.5)
            average.load_state_dict(kept)
        average.update_parameters(network)
        found = average.state_dict()
        assert found["module.weight"].tolist() == pytest.approx([expected] * 2, rel=1e-6)
        assert int(found["module.num_batches_tracked"]) == 7 * step
        assert int(found["n_averaged"]) == step + 1


def test_training_stops_early_when_validation_does_not_gain(tmp_path: Path) -> None:
    folder = train(
        tmp_path / "run",
        "train.patience=1",
        "train.learning_rate=1e-12",
        "train.average=0",
        "train.steps=40",
        "train.validations=8",
    )
    with (folder / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) < 8 and steps_taken(folder) == int(rows[-1]["step"]) < 40


@pytest.mark.parametrize(
    ("poisoned", "step", "found"),
    [
        ("poison_at", 15, "loss nan"),
        ("poison_gradient_at", 15, "loss nan"),
        ("poison_gradient_at", 18, "gradients nan"),
    ],
)
def test_what_is_no_number_says_what_to_change_and_keeps_the_last_good_weights(
    poisoned: str, step: int, found: str, tmp_path: Path
) -> None:
    # After step 18 the weights are broken, and its loss is a number still: it was measured before.
    setattr(Doubling, poisoned, step)
    expected = rf"expected losses and gradients that are numbers, found .*{found}.*last\.pt.*Lower train\.learning_rate"
    with pytest.raises(TrainingFailed, match=expected):
        train(tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["step"] == 12
    assert all(torch.isfinite(value).all() for value in state["networks"]["network"].values())


def test_what_fails_in_a_spawned_process_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> None:
        told = (
            "Traceback (most recent call last):\n  ...\npipeline.training.TrainingFailed: step 3: halve train.batch\n"
        )
        raise ProcessRaisedException(told, 1, 99)

    monkeypatch.setattr("pipeline.training.Fabric.launch", raises)
    with pytest.raises(TrainingFailed, match=r"^step 3: halve train\.batch$"):
        train(tmp_path / "run")


@pytest.mark.parametrize(("name", "wanted"), [("cuda", True), ("cpu", False)])
def test_cuda_is_asked_for_the_same_bytes(name: str, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    try:
        repeat_bytes(ComputeSettings(device=name))
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


def test_a_batch_that_does_not_fit_says_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(self, networks, batch, progress):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Doubling, "step", exhausted)
    with pytest.raises(TrainingFailed, match=r"does not hold a batch of 4 crops.*halve train\.batch"):
        train(tmp_path / "run")


class Contest(Doubling):
    """Two players: the second learns from what the first gives, and reaches back into it."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.judge = nn.Conv2d(3, 1, 1)
        self.players["judge"] = Player(self.judge, 0.02, (0.5, 0.999))

    def step(self, networks, batch: dict[str, torch.Tensor], progress: float) -> Iterator[tuple[str, torch.Tensor]]:
        given = networks["network"](batch["image"])
        before = [value.clone() for value in self.judge.parameters()]
        yield "judge", (networks["judge"](given.detach()) - 1.0).square().mean()
        assert any(not torch.equal(old, new) for old, new in zip(before, self.judge.parameters(), strict=True))
        for name, loss in super().step(networks, batch, progress):
            yield name, loss + networks["judge"](given).mean()


def test_two_players_each_have_their_turn_and_resume_exactly(tmp_path: Path) -> None:
    def run(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        fit(Contest, load_config(None, [*SETTINGS]), "sigmoid", folder)
        return folder

    whole = run(tmp_path / "whole")
    Contest.steps_taken, Contest.interrupt_at = 0, 9
    with pytest.raises(Interrupted):
        run(tmp_path / "cut")
    Contest.interrupt_at = None
    assert same_files(whole, run(tmp_path / "cut"))
    state = torch.load(whole / "last.pt", weights_only=True)
    assert set(state["networks"]) == set(state["optimisers"]) == {"network", "judge"}
    with (whole / "history.csv").open() as stream:
        assert {"loss", "loss_judge"} <= set(next(csv.DictReader(stream)))


def test_minutes_become_steps_once_and_are_frozen(tmp_path: Path) -> None:
    from pipeline.training import read_frozen

    folder = train(tmp_path / "run", "train.minutes=0.02", "train.validations=2")
    frozen = read_frozen(folder)
    assert frozen.train.minutes is None
    assert frozen.train.steps > 1
    assert frozen.compute.precision == "fp32"
    before = (folder / "config.yaml").read_bytes()
    train(folder, "train.minutes=0.02", "train.validations=2")
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_validation_looks_at_the_weights_as_they_are_now(tmp_path: Path, engine: str) -> None:
    """OpenVINO would go on with those of the beginning."""
    scores: list[torch.Tensor] = []

    class Watched(Doubling):
        def validate(self, predict) -> dict[str, float]:
            image = Crops()[0]["image"][None]
            with torch.inference_mode():
                scores.append(predict.forward(image))
                assert torch.equal(scores[-1], predict.network(image))
            return super().validate(predict)

    fit(Watched, load_config(None, [*SETTINGS, f"predict.engine={engine}"]), "sigmoid", tmp_path)
    assert len(scores) == 4
    assert not torch.equal(scores[0], scores[-1])


def test_a_budget_without_room_for_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="leave no time for a step"):
        train(tmp_path / "run", "train.minutes=0.00001")


def test_the_schedule_rises_then_falls_to_nothing() -> None:
    settings = load_config(None, ["train.steps=100", "train.warm_up=0.1"]).train
    values = [schedule(step, settings) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == pytest.approx(1.0)
    assert max(values) <= 1.0
    assert values[55] == pytest.approx(0.5)
    assert values[99] < 0.001
    assert all(later < earlier for earlier, later in itertools.pairwise(values[10:]))


def test_a_steady_step_is_the_mean_over_a_round_of_workers() -> None:
    assert steady_step([1.0, 9.0, 1.0, 1.0], 0) == 1.0
    for workers in (2, 4, 16):
        uncounted, counted = calibration_steps(workers)
        assert uncounted >= 4 * workers and counted >= 8 and counted % workers == 0
        # Every worker's batch comes at once, and is waited for once a round.
        times = [2.0 if step % workers == 0 else 0.0 for step in range(counted)]
        assert steady_step(times, workers) == pytest.approx(2.0 / workers)
