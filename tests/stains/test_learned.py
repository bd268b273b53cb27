"""The learned normaliser: which runs it takes, and which images it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import dump_config, load_config
from pipeline.networks import build_network
from pipeline.outputs import Outputs
from pipeline.stains.learned import Learned

STAINS = np.array(((0.6442, 0.7089, 0.2872), (0.1047, 0.9651, 0.2402)))
BLUE_INK = (40, 60, 190)


def run_in(folder: Path, *corruption: str, paired: bool | None = False, broken: bool = False) -> Path:
    """A run that makes images, with weights that nothing was taught."""
    settings = ["train.task=reconstruction", "train.network.width=2", "train.network.depth=1",
                *(f"train.corruption.{setting}" for setting in corruption)]  # fmt: skip
    config = load_config(None, [*settings, "compute.device=cpu", "compute.precision=fp32"])
    torch.manual_seed(0)
    network = build_network(config.train.network, 3, 3)
    if broken:
        with torch.no_grad():
            next(network.parameters()).fill_(torch.nan)
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    outputs = Outputs("image", ("red", "green", "blue"), "sigmoid", "image", paired)
    (folder / "model.json").write_text(json.dumps(outputs.as_dict()))
    torch.save({"network": network.state_dict()}, folder / "best.pt")
    return folder


def tissue(share: float) -> np.ndarray:
    """Stained tissue over so much of 96 x 96 pixels of glass."""
    generator = np.random.default_rng(0)
    amounts = generator.gamma(4.0, 0.1, (96, 96, 2))
    amounts[round(96 * share) :] = 0.0
    return np.rint(255.0 * 10.0 ** -(amounts @ STAINS)).astype(np.uint8)


def test_little_tissue_is_normalised_and_told(tmp_path: Path) -> None:
    normaliser = Learned.of_run(run_in(tmp_path / "run"))
    for share, status in ((1.0, "ok"), (0.02, "low_tissue")):
        found = normaliser.normalise(tissue(share))
        assert (found.status, found.fallback) == (status, "")
        assert (found.image != tissue(share)).any()


def test_pen_marks_are_left_as_they_are(tmp_path: Path) -> None:
    image = tissue(1.0)
    image[:20] = BLUE_INK
    found = Learned.of_run(run_in(tmp_path / "run")).normalise(image)
    assert (found.status, found.fallback) == ("degenerate", "identity")
    np.testing.assert_array_equal(found.image, image)
    assert found.image is not image


@pytest.mark.parametrize("colour", [(120, 30, 200), (220, 10, 10), (200, 100, 10), (20, 20, 220)])
def test_fluorescence_is_left_as_it_is(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    image = np.full((96, 96, 3), (10, 5, 20), np.uint8)
    image[30:60, 20:50] = colour
    found = Learned.of_run(run_in(tmp_path / "run")).normalise(image)
    assert (found.status, found.fallback) == ("background", "identity")
    np.testing.assert_array_equal(found.image, image)


def test_a_network_that_gives_no_numbers_is_named(tmp_path: Path) -> None:
    normaliser = Learned.of_run(run_in(tmp_path / "run", broken=True))
    with pytest.raises(ValueError, match=r"run/best\.pt: expected an image of numbers, found"):
        normaliser.normalise(tissue(1.0))


@pytest.mark.parametrize("corruption", ["noise=0.1", "holes=4", "grey=true", "watermark=true"])
def test_a_restorer_is_no_normaliser(tmp_path: Path, corruption: str) -> None:
    name = corruption.partition("=")[0]
    with pytest.raises(ValueError, match=rf"trained to restore images \(train\.corruption\.{name}\).*no pairs"):
        Learned.of_run(run_in(tmp_path / "run", corruption))


@pytest.mark.parametrize(
    ("corruption", "paired"),
    [((), False), (("noise=0.1", "restain=1"), False), (("noise=0.1",), True), (("grey=true",), True),
     (("noise=0.1",), None)],
)  # fmt: skip
def test_runs_that_change_stain_are_taken(tmp_path: Path, corruption: tuple[str, ...], paired: bool | None) -> None:
    assert Learned.of_run(run_in(tmp_path / "run", *corruption, paired=paired)).transform(tissue(1.0))[1] == "ok"
