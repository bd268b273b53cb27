"""The one training loop, over Lightning Fabric: steps, averaging, validation, atomic checkpoints, exact resume."""

from __future__ import annotations

import csv
import io
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.multiprocessing import ProcessRaisedException
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pipeline import device
from pipeline.config import IMAGE_TASKS, ComputeSettings, Config, TrainSettings, dump_config
from pipeline.inference import predictor_of
from pipeline.records.files import write_bytes, write_text
from pipeline.tasks.players import NETWORK, Player
from pipeline.torchrun import processes, tell_others
from pipeline.trained import BEST, FROZEN
from pipeline.whole_batch import share_statistics

LAST, HISTORY = "last.pt", "history.csv"
CHECKPOINT_SECONDS = 60.0
"""A checkpoint is written at each validation and at least this often; how often never changes a result."""
PREFETCHED = 4
"""Batches that a worker process makes ahead."""


class Task(Protocol):
    """What the loop needs of a task.

    players: by name, NETWORK among them; others, such as a discriminator, only help to train it.
    headline: column of the history that the progress bar shows, and its name there.
    """

    players: dict[str, Player]
    headline: tuple[str, str]

    def crops(self, workers: int) -> Dataset[dict[str, torch.Tensor]]:
        """Return the training samples; sample n is a function of (seed, n) only."""

    def step(
        self, networks: Mapping[str, nn.Module], batch: dict[str, torch.Tensor], progress: float
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield a player's name and its loss, one turn a player; that player alone is updated before the next turn.

        progress: share of the steps that are done.
        """

    def validate(self, predict: Any) -> dict[str, float]:
        """Return scores of the validation part; validation_score decides which weights are best."""


class TrainingFailed(ValueError):
    """Training cannot go on with these settings; the message says which to change."""


def fit(build: Callable[[Config], Task], config: Config, activation: str, folder: Path) -> Config:
    """Train a task until its steps are done, carrying on from the folder's last checkpoint; return the frozen settings.

    build makes the task from frozen settings, the same each time. Writes last.pt, best.pt (averaged weights of the best
    validation), history.csv and config.yaml (every automatic choice replaced by what was taken).
    Raises TrainingFailed on a loss that is no number, or too little memory.
    """
    frozen = frozen_config(config, folder)
    compute = frozen.compute
    # Its one message repeats what the stage has just said of device and precision.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = fabric_of(compute)
    if started := processes():
        if not started.rank:
            tell_others(trains=True)
        # torchrun has started the others; each goes on from here, once the folder is what the first made it.
        fabric.launch()
        fabric.barrier()
        _fit_in_process(fabric, build, frozen_config(config, folder), activation, folder)
    else:
        try:
            fabric.launch(_fit_in_process, build, frozen, activation, folder)  # type: ignore[arg-type]
        except ProcessRaisedException as error:
            # All that comes from a spawned process is the text of its traceback.
            _, found, told = str(error).rpartition(f"{TrainingFailed.__module__}.{TrainingFailed.__qualname__}: ")
            if not found:
                raise
            raise TrainingFailed(told.strip()) from error
    return read_frozen(folder)


def fabric_of(compute: ComputeSettings) -> Fabric:
    """Return what runs the loop on the device, in its numbers; every automatic choice is made already."""
    started = processes()
    return Fabric(
        accelerator=compute.device,
        devices=started.here if started else compute.devices,
        num_nodes=started.count // started.here if started else 1,
        strategy="ddp" if started else "ddp_spawn" if compute.devices > 1 else "auto",
        precision=device.FABRIC_PRECISION[compute.precision],  # type: ignore[arg-type]
    )


def frozen_config(config: Config, folder: Path) -> Config:
    """Return the settings that this folder's run was started with, or freeze the automatic choices now."""
    if (folder / FROZEN).exists():
        return read_frozen(folder).model_copy(update={"compute": read_frozen(folder).compute.model_copy(
            update={"workers": device.freeze(config.compute).workers})})  # fmt: skip
    return config.model_copy(update={"compute": device.freeze(config.compute)})


def read_frozen(folder: Path) -> Config:
    """Read a run's config.yaml."""
    import yaml

    return Config.model_validate(yaml.safe_load((folder / FROZEN).read_text(encoding="utf-8")))


def _fit_in_process(
    fabric: Fabric, build: Callable[[Config], Task], config: Config, activation: str, folder: Path
) -> None:
    torch.set_num_threads(config.compute.threads)
    device.repeat_bytes(config.compute)
    # One process looks for all: the others might look after it has written.
    if fabric.broadcast(not (folder / FROZEN).exists()):
        steps = config.train.steps
        if config.train.minutes is not None:
            steps = fabric.broadcast(calibrate(fabric, build(config), config, activation))
        config = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps, "minutes": None})})
        if fabric.is_global_zero:
            write_text(folder / FROZEN, dump_config(config))
        fabric.barrier()
    Loop(fabric, build(config), config, activation, folder).run()
    fabric.barrier()


class Loop:
    """A task's training in this process: run() is all of it, batches() and advance() are its steps alone."""

    def __init__(self, fabric: Fabric, task: Task, config: Config, activation: str, folder: Path) -> None:
        self.fabric, self.task, self.config, self.folder = fabric, task, config, folder
        self.settings: TrainSettings = config.train
        if self.settings.batch % fabric.world_size:
            raise TrainingFailed(
                f"train.batch: expected a multiple of the {fabric.world_size} processes, found {self.settings.batch}"
            )
        self.networks: dict[str, nn.Module] = {}
        self.optimisers: dict[str, Any] = {}
        for name, player in task.players.items():
            device.suit(player.module, config.compute)
            optimiser = torch.optim.AdamW(
                decay_groups(player.module, self.settings.weight_decay), lr=player.learning_rate, betas=player.betas,
                foreach=True,
            )  # fmt: skip
            self.networks[name], self.optimisers[name] = fabric.setup(player.module, optimiser)
        self.trained = task.players[NETWORK].module
        self.averaged = MovingAverage(self.trained, self.settings.average)
        self.predictor = predictor_of(
            self.averaged.module,
            activation,
            self.settings.intensity,
            # Averages cost time; the magnification is what the crops are drawn for. Another engine than PyTorch would
            # go on with the weights of the beginning.
            config.predict.model_copy(
                update={"flips": "none", "scales": config.predict.scales[:1], "engine": "pytorch"}
            ),
            config.compute,
            makes_images=config.train.task in IMAGE_TASKS,
            name=f"{folder}, in validation",
            window=config.augment.window,
        )
        self.step = 0
        # Over the steps since the last validation, on the device, so that no step waits for it.
        self.loss_sums, self.loss_steps = self._no_losses(), 0
        self.gradient_norms = torch.zeros((), device=fabric.device)
        self.best_score = -math.inf
        self.validations_without_gain = 0
        self.history: list[dict[str, Any]] = []
        self.trackers = Trackers(self.settings.track, folder, config) if fabric.is_global_zero else None

    def run(self) -> None:
        """Train to the last step, from the folder's last checkpoint where there is one."""
        self._resume()
        samples = self.batches()
        every = max(1, math.ceil(self.settings.steps / self.settings.validations))
        saved = time.monotonic()
        stop = self.settings.patience and self.validations_without_gain >= self.settings.patience
        bar = tqdm(
            total=self.settings.steps,
            initial=self.step,
            desc="train",
            unit="step",
            disable=None if self.fabric.is_global_zero else True,
        )
        with bar:
            while self.step < self.settings.steps and not stop:
                self.advance(next(samples))
                bar.update()
                validates = self.step % every == 0 or self.step == self.settings.steps
                overdue = time.monotonic() - saved > CHECKPOINT_SECONDS
                if self.step % 10 == 0 or validates or overdue:
                    losses = self.losses()
                    rate = bar.format_dict["rate"]
                    shown = {name: f"{loss:.3f}" for name, loss in losses.items()}
                    shown["images/s"] = f"{rate * self.settings.batch:.1f}" if rate else "-"
                    if self.history:
                        column, title = self.task.headline
                        shown[f"val {title}"] = f"{self.history[-1][column]:.3f}"
                    bar.set_postfix(shown, refresh=False)
                if validates:
                    stop = self._validate(losses)
                if validates or overdue:
                    self._save()
                    saved = time.monotonic()

    def advance(self, batch: dict[str, torch.Tensor]) -> None:
        """Take the next step."""
        for name, loss in self._train_step(batch).items():
            self.loss_sums[name] += loss
        self.loss_steps += 1
        self.step += 1

    def losses(self) -> dict[str, float]:
        """Return the mean losses since the last validation.

        Raises TrainingFailed where one is no number, or a gradient was none: weights may be finite for one step more,
        or not at all, and nothing is saved before this was asked.
        """
        losses = {name: float(total) / self.loss_steps for name, total in self.loss_sums.items()}
        numbers = losses | {"gradients": float(self.gradient_norms)}
        if not all(map(math.isfinite, numbers.values())):
            found = ", ".join(f"{name} {number:g}" for name, number in numbers.items())
            kept = f"The last good weights are in {self.folder / LAST}. " if (self.folder / LAST).exists() else ""
            raise TrainingFailed(
                f"step {self.step}: expected losses and gradients that are numbers, found {found}. {kept}"
                f"Lower train.learning_rate (now {self.settings.learning_rate:g}), lengthen train.warm_up, "
                f"or take compute.precision=fp32 (now {self.config.compute.precision})"
            )
        return losses

    def _train_step(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Whatever is random inside the network depends on the step alone, so that a resumed run draws the same.
        entropy = np.random.SeedSequence([self.config.seed, self.step, self.fabric.global_rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = self.task.players[name].learning_rate * schedule(self.step, self.settings)
        for network in self.networks.values():
            network.train()
        losses = {}
        try:
            for name, loss in self.task.step(self.networks, batch, self.step / self.settings.steps):
                # A turn's backward pass may have reached the players of later turns.
                self.optimisers[name].zero_grad(set_to_none=True)
                self.fabric.backward(loss)
                norm = self.fabric.clip_gradients(
                    self.networks[name], self.optimisers[name], max_norm=self.settings.gradient_clip,
                    error_if_nonfinite=False,
                )  # fmt: skip
                if norm is not None and self._scaler is None:
                    self.gradient_norms += norm.detach()
                self.optimisers[name].step()
                losses[_loss_column(name)] = loss.detach()
        except torch.OutOfMemoryError as error:
            raise TrainingFailed(self._out_of_memory(str(error))) from error
        except RuntimeError as error:
            if "not enough memory" in str(error) or "can't allocate memory" in str(error):
                raise TrainingFailed(self._out_of_memory(str(error))) from error
            raise
        share_statistics(player.module for player in self.task.players.values())
        if self.settings.average:
            self.averaged.update_parameters(self.trained)
        return losses

    @property
    def _scaler(self) -> Any:
        """What scales losses in fp16, and skips a step whose gradients are no numbers; None in other precisions."""
        return getattr(self.fabric._precision, "scaler", None)

    def _no_losses(self) -> dict[str, torch.Tensor]:
        return {_loss_column(name): torch.zeros((), device=self.fabric.device) for name in self.task.players}

    def _out_of_memory(self, detail: str) -> str:
        return (
            f"step {self.step}: the device's memory does not hold a batch of {self.settings.batch} crops of "
            f"{self.config.augment.crop} pixels ({detail.splitlines()[0][:120]}); halve train.batch, "
            f"or lower augment.crop or train.network.width"
        )

    def _validate(self, losses: dict[str, float]) -> bool:
        if not self.settings.average:
            self.averaged.module.load_state_dict(self.trained.state_dict())
        scores: dict[str, float] = {}
        if self.fabric.is_global_zero:
            self.averaged.module.eval()
            scores = self.task.validate(self.predictor)
        scores = self.fabric.broadcast(scores)
        better = scores["validation_score"] > self.best_score
        row = {
            "step": self.step,
            "epoch": round(self.step * self.settings.batch / len(self.crops), 2),  # type: ignore[arg-type]
            "learning_rate": round(self.settings.learning_rate * schedule(self.step - 1, self.settings), 9),
            **{name: round(loss, 6) for name, loss in losses.items()},
            **{name: round(value, 6) for name, value in scores.items()},
            "best": int(better),
        }
        self.history.append(row)
        self.loss_sums, self.loss_steps = self._no_losses(), 0
        self.validations_without_gain = 0 if better else self.validations_without_gain + 1
        if better:
            self.best_score = scores["validation_score"]
        if self.fabric.is_global_zero:
            if better:
                save_checkpoint(self.folder / BEST, {"network": self.averaged.module.state_dict(), "step": self.step})
            self._write_history()
            if self.trackers:
                self.trackers.log(row)
        return bool(self.settings.patience and self.validations_without_gain >= self.settings.patience)

    def _write_history(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.folder / HISTORY, text.getvalue())

    def _save(self) -> None:
        if not self.fabric.is_global_zero:
            return
        state = {
            "step": self.step,
            "loss_sums": {name: float(total) for name, total in self.loss_sums.items()},
            "loss_steps": self.loss_steps,
            "networks": {name: player.module.state_dict() for name, player in self.task.players.items()},
            "averaged": self.averaged.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "best_score": self.best_score,
            "validations_without_gain": self.validations_without_gain,
            "history": self.history,
        }
        if self._scaler is not None:
            state["scaler"] = self._scaler.state_dict()
        save_checkpoint(self.folder / LAST, state)

    def _resume(self) -> None:
        if not (self.folder / LAST).exists():
            return
        # AdamW counts steps on the processor. Loaded onto a device its counts would stay there, stop it at every step,
        # and be saved as other bytes than an uninterrupted run's; all else is copied to where it belongs.
        state = torch.load(self.folder / LAST, map_location="cpu", weights_only=True)
        for name, player in self.task.players.items():
            player.module.load_state_dict(state["networks"][name])
            self.optimisers[name].load_state_dict(state["optimisers"][name])
        self.averaged.load_state_dict(state["averaged"])
        self.step, self.best_score = state["step"], state["best_score"]
        self.loss_sums = {
            name: torch.tensor(total, device=self.fabric.device) for name, total in state["loss_sums"].items()
        }
        self.loss_steps = state["loss_steps"]
        self.validations_without_gain, self.history = state["validations_without_gain"], state["history"]
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Draw the batches of the steps that are left, on the device."""
        workers = self.config.compute.workers
        self.crops = self.task.crops(workers)
        share = self.settings.batch // self.fabric.world_size
        first = share * self.fabric.global_rank
        plan = [
            list(range(step * self.settings.batch + first, step * self.settings.batch + first + share))
            for step in range(self.step, self.settings.steps)
        ]
        loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(
            self.crops, batch_sampler=plan, num_workers=workers, pin_memory=self.config.compute.device == "cuda",
            multiprocessing_context="spawn" if workers else None, prefetch_factor=PREFETCHED if workers else None,
        )  # fmt: skip
        return iter(cast(DataLoader[Any], self.fabric.setup_dataloaders(loader, use_distributed_sampler=False)))


def _loss_column(player: str) -> str:
    return "loss" if player == NETWORK else f"loss_{player}"


class MovingAverage(AveragedModel):
    """An exponential average of a module's parameters and buffers whose memory grows with the steps up to the decay.

    The decay of step n is min(decay, (1 + n) / (10 + n)): a constant one would keep the random start for its first
    1 / (1 - decay) steps. One average belongs to one module.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, use_buffers=True)
        self.decay = decay
        # Found once: to look every tensor up again would take twice as long as to average them.
        self._pairs: tuple[list[torch.Tensor], ...] | None = None

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the module's tensors as they are now; the first time take them over."""
        steps = int(self.n_averaged)
        if steps == 0:
            super().update_parameters(model)
            return
        if self._pairs is None:
            self._pairs = _paired(self.module, model)
        averages, currents, counts, current_counts = self._pairs
        torch._foreach_lerp_(averages, currents, 1 - min(self.decay, (1.0 + steps) / (10.0 + steps)))
        if counts:
            torch._foreach_copy_(counts, current_counts)
        self.n_averaged += 1


def _paired(averaged: nn.Module, current: nn.Module) -> tuple[list[torch.Tensor], ...]:
    """Tensors with a mean, of the average and of the module, then those without (counters)."""
    pairs = [
        (one.detach(), other.detach())
        for one, other in zip(
            [*averaged.parameters(), *averaged.buffers()], [*current.parameters(), *current.buffers()], strict=True
        )
    ]
    means, counts = ([pair for pair in pairs if pair[0].is_floating_point() is wanted] for wanted in (True, False))
    return ([a for a, _ in means], [b for _, b in means], [a for a, _ in counts], [b for _, b in counts])


def schedule(step: int, settings: TrainSettings) -> float:
    """Share of the peak learning rate at a step: a linear rise, then a cosine to 0 at the last step."""
    warm_up = max(1, round(settings.warm_up * settings.steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, settings.steps - warm_up)))


def calibrate(fabric: Fabric, task: Task, config: Config, activation: str) -> int:
    """Measure a step and a validation of a task that is thrown away, and return the steps that fit the time budget.

    The first steps, which allocate and choose kernels, and take what workers had made ahead, are not counted.
    """
    assert config.train.minutes is not None
    uncounted, counted = calibration_steps(config.compute.workers)
    trial = config.model_copy(
        update={"train": config.train.model_copy(update={"steps": uncounted + counted, "track": ()})}
    )
    loop = Loop(fabric, task, trial, activation, Path())
    samples = loop.batches()
    times = []
    for _ in range(uncounted + counted):
        started = time.perf_counter()
        loop.advance(next(samples))
        for total in loop.loss_sums.values():
            float(total)
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    loop.averaged.module.eval()
    task.validate(loop.predictor)
    validation = (time.perf_counter() - started) * config.train.validations
    step = steady_step(times[uncounted:], config.compute.workers)
    budget = config.train.minutes * 60
    steps = int((budget - validation) / step)
    if steps < 1:
        raise TrainingFailed(
            f"train.minutes: {config.train.minutes:g} leave no time for a step ({step:.2f} s) beside "
            f"{config.train.validations} validations ({validation:.0f} s together); "
            f"raise train.minutes or lower train.validations"
        )
    print(f"train     a step takes {step:.2f} s here: {steps} steps fill {config.train.minutes:g} minutes")
    return steps


def steps_taken(folder: Path) -> int:
    """Return the step of a run's last validation, at which it ended: as planned, or for want of a gain before."""
    with (folder / HISTORY).open(encoding="utf-8", newline="") as stream:
        return int(list(csv.DictReader(stream))[-1]["step"])


def calibration_steps(workers: int) -> tuple[int, int]:
    """Return how many steps go by before, and how many in, the measurement; the latter in whole rounds of workers."""
    round_of = max(workers, 1)
    return max(4, PREFETCHED * workers), round_of * math.ceil(8 / round_of)


def steady_step(times: Sequence[float], workers: int) -> float:
    """Return the seconds of a step: the median over rounds, since each worker's wait falls on one step of its round."""
    round_of = max(workers, 1)
    means = sorted(sum(times[at : at + round_of]) / round_of for at in range(0, len(times), round_of))
    return means[len(means) // 2]


def save_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically; the same state gives the same bytes."""
    # Into memory first: a file's own name would become part of the archive.
    buffer = io.BytesIO()
    torch.save(_one_object_a_value(state), buffer)
    write_bytes(file, buffer.getvalue())


def _one_object_a_value(value: Any) -> Any:
    # Pickle writes an object seen before as a reference; which equal strings and containers are one object differs
    # between a resumed and an uninterrupted run.
    if isinstance(value, dict):
        return {_one_object_a_value(key): _one_object_a_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_one_object_a_value(entry) for entry in value])
    return sys.intern(str(value)) if isinstance(value, str) else value


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide a network's parameters for AdamW: norms and biases set scales, which decay would fight."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class Trackers:
    """TensorBoard and MLflow, where asked; history.csv is written in any case."""

    def __init__(self, names: Sequence[str], folder: Path, config: Config) -> None:
        self.writers: list[Callable[[dict[str, Any]], None]] = []
        try:
            if "tensorboard" in names:
                from torch.utils.tensorboard import SummaryWriter

                writer = SummaryWriter(folder / ".tensorboard")

                def to_tensorboard(row: dict[str, Any]) -> None:
                    for key, value in row.items():
                        writer.add_scalar(key, value, row["step"])
                    writer.flush()

                self.writers.append(to_tensorboard)
            if "mlflow" in names:
                import mlflow

                mlflow.set_tracking_uri(f"sqlite:///{(folder / '.mlflow.db').resolve()}")
                mlflow.set_experiment("stainseg")
                mlflow.start_run(run_name=config.run)
                mlflow.log_params({"dataset": config.dataset, "seed": config.seed, "steps": config.train.steps})
                self.writers.append(
                    lambda row: mlflow.log_metrics({key: float(value) for key, value in row.items()}, step=row["step"])
                )
        except ImportError as error:
            raise TrainingFailed(
                f"train.track: {error}; install the trackers with `pip install 'stainseg[tracking]'`"
            ) from error

    def log(self, row: dict[str, Any]) -> None:
        """Hand one row of the history to every tracker."""
        for writer in self.writers:
            writer(row)
