"""The contract of every normaliser: hostile images get a status, never an error or a silent change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from pipeline.records.rasters import read_image
from pipeline.stains import METHODS, load
from pipeline.stains.normaliser import FALLBACKS, Normaliser, Status
from pipeline.stains.optical_density import to_image

LABORATORIES = {
    "north": ((0.6442, 0.7089, 0.2872), (0.1047, 0.9651, 0.2402)),
    "east": ((0.5588, 0.7184, 0.4143), (0.1886, 0.8383, 0.5116)),
    "south": ((0.7622, 0.6098, 0.2172), (0.0900, 0.9400, 0.3290)),
    "west": ((0.4999, 0.8198, 0.2799), (0.0601, 0.9007, 0.4303)),
}


def tissue(laboratory: str = "north", seed: int = 0, strength: float = 1.0, side: int = 128) -> np.ndarray:
    """A known mixture: a third glass, a tenth of the rest near-pure in each stain, sensor noise of one grey level."""
    generator = np.random.default_rng(seed)
    amounts = generator.gamma(4.0, 0.08, (side * side, 2)) * strength
    kind = generator.random(side * side)
    amounts[kind < 0.1, 1] = amounts[(kind >= 0.1) & (kind < 0.2), 0] = 0.0
    amounts[kind > 0.67] = 0.0
    light = 255.0 * 10.0 ** -(amounts @ np.array(LABORATORIES[laboratory])) + generator.normal(
        0.0, 1.0, (side * side, 3)
    )
    return np.rint(light.clip(0, 255)).astype(np.uint8).reshape(side, side, 3)


def flat(*colour: int, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (*shape, 3)).copy()


def noise(*colour: int, spread: float = 2.0) -> np.ndarray:
    pixels = flat(*colour) + np.random.default_rng(3).normal(0.0, spread, (64, 64, 3))
    return pixels.clip(0, 255).astype(np.uint8)


HOSTILE = {
    "white": (flat(255, 255, 255), "background"),
    "dirty white": (noise(246, 244, 243), "background"),
    "black": (flat(0, 0, 0), "background"),
    "grey": (noise(128, 128, 128, spread=0.0), "background"),
    "fluorescence": (np.repeat(noise(12, 12, 12, spread=9.0)[..., :1], 3, axis=2), "background"),
    "yellow glass": (noise(226, 214, 190), "degenerate"),
    "one colour": (flat(200, 120, 180), "degenerate"),
    "one colour with noise": (noise(200, 120, 180, spread=1.0), "degenerate"),
    "one pixel": (flat(200, 120, 180, shape=(1, 1)), "low_tissue"),
    "one white pixel": (flat(255, 255, 255, shape=(1, 1)), "background"),
    "a few cells": (np.concatenate([tissue(side=64)[:1], flat(255, 255, 255)[1:]]), "low_tissue"),
    "green ink": (noise(20, 160, 70), "background"),
}


@pytest.fixture(params=METHODS)
def fitted(request: pytest.FixtureRequest) -> Normaliser:
    return METHODS[request.param]().fit([tissue("north", seed) for seed in range(3)])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_get_their_status_and_keep_their_pixels(fitted: Normaliser, name: str) -> None:
    image, expected = HOSTILE[name]
    before = image.copy()
    normalised, status = fitted.transform(image)
    assert status == expected
    assert normalised.shape == image.shape and normalised.dtype == np.uint8
    assert normalised is not image
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(normalised, image)


def test_every_status_has_its_fallback() -> None:
    assert set(FALLBACKS) == set(get_args(Status))
    assert {status for status, fallback in FALLBACKS.items() if not fallback} == {"ok", "clipped_gain"}


@pytest.mark.parametrize("laboratory", ["east", "south", "west"])
def test_another_laboratory_comes_nearer_to_the_reference(fitted: Normaliser, laboratory: str) -> None:
    """The same tissue, known in both stains: the normalised image must be near its twin."""
    twin, image = tissue("north", seed=1), tissue(laboratory, seed=1, strength=0.8)
    normalised, status = fitted.transform(image)
    assert status == "ok"

    def distance(other: np.ndarray) -> float:
        return float(np.abs(other.astype(int) - twin).mean())

    assert distance(normalised) < 0.6 * distance(image)


def test_the_reference_itself_hardly_changes(fitted: Normaliser) -> None:
    image = tissue("north", seed=0)
    reference = type(fitted)().fit([image])
    normalised, status = reference.transform(image)
    assert status == "ok"
    # What neither stain explains, here the sensor's noise, is all that may go.
    assert np.abs(normalised.astype(int) - image).mean() < 1.5


def test_glass_stays_glass(fitted: Normaliser) -> None:
    image = tissue("east", seed=2)
    image[:32] = 255
    assert (fitted.transform(image)[0][:32] == 255).all()


def test_faint_stain_is_stretched_no_further_than_the_maximum(fitted: Normaliser) -> None:
    bounded = type(fitted)(maximum_gain=1.1).fit([tissue("north", strength=1.6)])
    faint = tissue("north", strength=0.7)
    normalised, status = bounded.transform(faint)
    assert status == "clipped_gain"
    free, free_status = type(fitted)(maximum_gain=8.0).fit([tissue("north", strength=1.6)]).transform(faint)
    assert free_status == "ok"
    assert faint.astype(float).std() < normalised.astype(float).std() < free.astype(float).std()


def test_the_reference_is_the_image_nearest_to_the_median(fitted: Normaliser) -> None:
    images = [
        tissue("north", 0, 0.5),
        flat(255, 255, 255),
        tissue("north", 1),
        tissue("north", 2, 1.6),
        tissue("west", 3),
    ]
    normaliser = type(fitted)().fit(iter(images))
    assert normaliser.reference_index_ == 2
    alone = type(fitted)().fit([images[2]])
    np.testing.assert_array_equal(normaliser.reference_, alone.reference_)


def test_nothing_to_fit_to_says_so(fitted: Normaliser) -> None:
    with pytest.raises(ValueError, match=r"expected an image with stained tissue to fit to, found 2 background.*none"):
        type(fitted)().fit([flat(255, 255, 255), flat(0, 0, 0)])
    with pytest.raises(ValueError, match="found no image"):
        type(fitted)().fit([])
    with pytest.raises(ValueError, match="expected a fitted normaliser"):
        type(fitted)().transform(tissue())


NO_IMAGES = {
    "grey": np.zeros((8, 8), np.uint8),
    "alpha": np.zeros((8, 8, 4), np.uint8),
    "16 bits": np.zeros((8, 8, 3), np.uint16),
    "NaN": np.full((8, 8, 3), np.nan),
    "empty": np.zeros((0, 8, 3), np.uint8),
}


@pytest.mark.parametrize("image", NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_rgb_image_is_refused(fitted: Normaliser, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected an image of shape \(height, width, 3\) and uint8, found"):
        fitted.transform(image)


def test_it_comes_back_from_its_file_and_the_file_never_differs(fitted: Normaliser, tmp_path: Path) -> None:
    file, again = tmp_path / "stain.json", tmp_path / "again.json"
    fitted.save(file, reference_case="a")
    loaded = load(file)
    assert type(loaded) is type(fitted) and loaded.maximum_gain == fitted.maximum_gain
    image = tissue("west", 5)
    np.testing.assert_array_equal(loaded.transform(image)[0], fitted.transform(image)[0])
    loaded.save(again, reference_case="a")
    assert file.read_bytes() == again.read_bytes()
    assert json.loads(file.read_text())["reference_case"] == "a"


@pytest.mark.parametrize(
    "change",
    [{"method": "vahadane"}, {"method": "none"}, {"version": 99}, {"reference": {}}, {"white_point": [1]}, None],
)
def test_another_file_is_refused(fitted: Normaliser, change: dict[str, object] | None, tmp_path: Path) -> None:
    file = tmp_path / "stain.json"
    fitted.save(file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | change) if change is not None else "{")
    with pytest.raises(ValueError, match=r"stain\.json: expected a fitted .* run stage normalise again"):
        load(file)
    with pytest.raises(ValueError, match="expected a fitted"):
        load(tmp_path / "absent.json")


@pytest.mark.real
def test_real_images_are_normalised_by_their_own_statistics(fitted: Normaliser, real_data: Path) -> None:
    """Lymph nodes of three hospitals and the libraries' examples: normalised, nearer to each other, glass kept."""
    target = read_image(real_data / "camelyon17_centres" / "center_2" / "domain_2_8779.png")
    normaliser = type(fitted)().fit([target])
    files = [sorted((real_data / "camelyon17_centres" / f"center_{n}").glob("*.png")) for n in range(3)]
    files.append(sorted((real_data / "stain_examples").glob("veta*")))
    before, after = [], []
    for file in (group[1] for group in files):
        image = read_image(file)[:512, :512]
        normalised, status = normaliser.transform(image)
        assert status == "ok", file.name
        before.append(image.reshape(-1, 3).mean(axis=0))
        after.append(normalised.reshape(-1, 3).mean(axis=0))
    colours = [np.diff(np.array(means), axis=1) for means in (before, after)]
    assert colours[1].std(axis=0).sum() < 0.6 * colours[0].std(axis=0).sum()


def test_darker_stays_darker() -> None:
    """A normalised ramp of one stain falls as the ramp does, up to where it runs into the sensor's floor."""
    ramp = np.linspace(0.0, 1.5, 256)[:, np.newaxis] * np.array(LABORATORIES["east"][0])
    image = np.concatenate(
        [tissue("east", side=256), np.repeat(to_image(ramp[np.newaxis].astype(np.float32)), 8, axis=0)]
    )
    normalised, _ = METHODS["macenko"]().fit([tissue("north")]).transform(image)
    assert (np.diff(normalised[-1, ::8].astype(int).sum(axis=1)) < 0).all()
