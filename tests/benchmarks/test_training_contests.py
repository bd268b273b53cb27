"""The loop and the bare step take the same steps, what was made ahead counts for nothing, and rows carry the aims."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.benchmarks import SUITES, child, training
from pipeline.benchmarks.timing import Pace
from pipeline.benchmarks.training_sides import AT_HAND_S, Bare, Looped, follow, prepare
from pipeline.tasks.players import NETWORK

TINY = training.Size(
    images=3,
    side=80,
    batch=2,
    crop=64,
    steps=3,
    threads=1,
    networks={
        "tiny": {"name": "unet", "width": 4, "depth": 1},
        "smp": {"name": "smp:Unet", "arguments": {"encoder_name": "tu-tf_efficientnet_lite0", "encoder_weights": None}},
    },
)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("root")
    assert training.render_cases(root, TINY).startswith("batches of 2 crops of 64x64 from 3 of 80x80, 3 steps a pass (")
    return training._task("tiny", root, TINY)


def sides(task: dict[str, Any]) -> tuple[Looped, Bare]:
    looped, bare = prepare(**task, variant="looped"), prepare(**task, variant="bare")
    assert isinstance(looped, Looped) and isinstance(bare, Bare)
    return looped, bare


def test_the_loop_and_the_bare_step_are_of_one_kind(task: dict[str, Any]) -> None:
    looped, bare = sides(task)
    for batch, (image, target, valid, _) in zip((next(looped.batches) for _ in range(3)), bare.batches, strict=True):
        assert torch.equal(batch["image"].permute(0, 3, 1, 2) / 255.0, image)
        assert torch.equal(batch["target"], target) and torch.equal(batch["valid"], valid)
    (optimiser,) = looped.loop.optimisers.values()
    # The schedule writes learning rates into the groups at each step.
    groups, others = ([{**group, "params": None} for group in one.param_groups] for one in (optimiser, bare.optimiser))
    assert groups == others
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_the_loop_and_the_bare_step_end_with_the_same_losses_and_weights(task: dict[str, Any]) -> None:
    looped, bare = sides(task)
    start = [parameter.detach().clone() for parameter in bare.network.parameters()]
    looped()
    bare()
    assert len(bare.losses) == TINY.steps == looped.loop.step
    assert looped.mean_loss() == pytest.approx(bare.mean_loss(), rel=1e-6)
    trained = looped.loop.task.players[NETWORK].module.parameters()
    for one, other, before in zip(trained, bare.network.parameters(), start, strict=True):
        assert torch.equal(one, other) and not torch.equal(other, before)


def test_waiting_is_a_share_of_the_loop_alone(task: dict[str, Any]) -> None:
    looped, bare = (follow(passes=1, **task, variant=variant) for variant in ("looped", "bare"))
    assert looped["waiting"] is not None and 0.0 < looped["waiting"] < 1.0
    assert bare["waiting"] is None and bare["loss"] == pytest.approx(looped["loss"], rel=1e-6)


def test_batches_that_were_made_ahead_are_used_up() -> None:
    def batches() -> Any:
        yield from range(5)
        time.sleep(2 * AT_HAND_S)
        yield from range(5, 9)

    looped = Looped.__new__(Looped)
    looped.batches = batches()
    looped.settle()
    assert next(looped.batches) == 6


def test_settling_is_not_timed(tmp_path: Path) -> None:
    script = tmp_path / "side.py"
    script.write_text(
        "import time\n"
        "class Work:\n"
        "    settled = 0\n"
        "    def __call__(self):\n"
        "        time.sleep(0.01)\n"
        "    def settle(self):\n"
        "        Work.settled += 1\n"
        "        time.sleep(0.5)\n"
        "def prepare():\n"
        "    return Work()\n"
        "def settled():\n"
        "    return Work.settled\n",
        encoding="utf-8",
    )
    answers = io.StringIO()
    requests = [{"prepare": {}}, {"passes": 2}, {"passes": 1}, {"call": "settled", "with": {}}]
    child.serve(str(script), map(json.dumps, requests), answers)
    _, two, _, settled = map(json.loads, answers.getvalue().splitlines())
    assert 0.02 <= two["seconds"] < 0.5 and settled["answer"] == 2


def test_the_suite_compares_with_bare_step_and_recipe() -> None:
    assert SUITES["training"] is training.run
    found = training.run(Pace(turn_s=0.0, contest_s=0.0, least=2, most=2, settle_s=0.0), TINY)
    assert {(row.what, row.items, row.against): row.aim for row in found.rows} == {
        ("training step", "tiny", "bare step"): 0.95,
        ("training step", "smp", "bare step"): 0.95,
        ("training recipe", "smp", "smp's recipe"): 2.5,
    }
    assert all(not row.failed and row.ratio is not None and row.rounds == 2 for row in found.rows), found.rows
    checks = {check.what: check for check in found.checks}
    assert all(checks[f"loss of the bare step, {name}"].met for name in TINY.networks), checks
    assert all(checks[f"waits for batches, {name}"].aim == 5.0 for name in TINY.networks)
    assert "torch" in found.sides["stainseg"] and "segmentation-models-pytorch" in found.sides["smp's recipe"]
