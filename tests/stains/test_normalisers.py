"""The contract of every normaliser: hostile images get a status, never an error or a silent change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.records.rasters import read_image
from pipeline.stains import METHODS, load
from pipeline.stains.normaliser import INKED, SLIDE_PIXELS, StatisticalNormaliser
from pipeline.stains.optical_density import sample_pixels, tissue_and_ink, to_density, to_image

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


def glow(*colour: int) -> np.ndarray:
    """Bright discs on a dark ground, as a stain that glows shows nuclei."""
    rows, columns = np.mgrid[:64, :64]
    light = sum(np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 60.0) for y, x in ((14, 12), (40, 25), (28, 50)))
    shown = light[..., None] * np.array(colour) + np.random.default_rng(3).normal(6.0, 1.5, (64, 64, 3))
    return shown.clip(0, 255).astype(np.uint8)


GLOWS = {"blue": (0, 0, 245), "red": (180, 0, 0), "magenta": (245, 0, 245), "light blue": (25, 90, 240)}

HOSTILE = {
    "white": (flat(255, 255, 255), "background"),
    "dirty white": (noise(246, 244, 243), "background"),
    "black": (flat(0, 0, 0), "background"),
    "grey": (noise(128, 128, 128, spread=0.0), "background"),
    "fluorescence": (np.repeat(noise(12, 12, 12, spread=9.0)[..., :1], 3, axis=2), "background"),
    **{f"fluorescence in {name}": (glow(*colour), "background") for name, colour in GLOWS.items()},
    "yellow glass": (noise(226, 214, 190), "degenerate"),
    "one colour": (flat(200, 120, 180), "degenerate"),
    "one colour with noise": (noise(200, 120, 180, spread=1.0), "degenerate"),
    "one pixel": (flat(200, 120, 180, shape=(1, 1)), "low_tissue"),
    "one white pixel": (flat(255, 255, 255, shape=(1, 1)), "background"),
    "a few cells": (np.concatenate([tissue(side=64)[:1], flat(255, 255, 255)[1:]]), "low_tissue"),
    "green ink": (noise(20, 160, 70), "background"),
    "blue ink": (noise(40, 60, 190, spread=1.0), "degenerate"),
    "black ink": (noise(12, 12, 14, spread=1.0), "background"),
    "one row": (tissue(side=64)[:1], "low_tissue"),
    "one column": (tissue(side=64)[:, :1], "low_tissue"),
}


@pytest.fixture(params=METHODS)
def fitted(request: pytest.FixtureRequest) -> StatisticalNormaliser:
    return METHODS[request.param]().fit([tissue("north", seed) for seed in range(3)])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_get_their_status_and_never_a_silent_change(fitted: StatisticalNormaliser, name: str) -> None:
    image, expected = HOSTILE[name]
    before = image.copy()
    normalised, status = fitted.transform(image)
    found = fitted.normalise(image)
    np.testing.assert_array_equal(found.image, normalised)
    np.testing.assert_array_equal(image, before)
    assert found.status == status and found.image is not image and not np.shares_memory(found.image, image)
    assert found.image.shape == image.shape and found.image.dtype == np.uint8
    if fitted.method == "ruifrok" and expected == "degenerate":
        # Vectors that are known beforehand may well be measurable where others are not.
        assert status in ("ok", "clipped_gain", "degenerate")
    else:
        assert status == expected
    if found.fallback == "identity":
        np.testing.assert_array_equal(normalised, image)
    elif found.fallback == "reference":
        # Never by more than a half, in density.
        assert status not in ("ok", "background") and (normalised != image).any()
        assert (to_density(normalised) <= 1.6 * to_density(image) + 0.01).all()
    else:
        assert status in ("ok", "clipped_gain")


def test_the_order_of_fallbacks(fitted: StatisticalNormaliser) -> None:
    """Own statistics, the slide's, the reference's or none; a background tile keeps its pixels whatever is known."""
    few = np.concatenate([tissue("east", side=128)[:3], flat(255, 255, 255, shape=(125, 128))])
    slide_status, slide = fitted.pool([tissue("east", seed) for seed in range(3)] + [few])
    assert slide_status == "ok" and slide is not None
    own, shared = fitted.normalise(tissue("east", 9)), fitted.normalise(tissue("east", 9), slide)
    assert (own.status, own.fallback) == (shared.status, shared.fallback) == ("ok", "")
    np.testing.assert_array_equal(own.image, shared.image)
    alone, helped = fitted.normalise(few), fitted.normalise(few, slide)
    assert (alone.status, alone.fallback) == ("low_tissue", "identity" if fitted.method == "reinhard" else "reference")
    assert (helped.status, helped.fallback) == ("low_tissue", "slide")
    whole = fitted.normalise(tissue("east", 0), slide, prefer_pooled=True)
    assert (whole.status, whole.fallback) == ("ok", "")
    assert (whole.image != fitted.normalise(tissue("east", 0)).image).any()
    # The same pixels come out alike, whichever tile of the slide they lie in.
    np.testing.assert_array_equal(fitted.normalise(few, slide, prefer_pooled=True).image[:3, 0], helped.image[:3, 0])
    glass = fitted.normalise(flat(250, 250, 250), slide, prefer_pooled=True)
    assert (glass.status, glass.fallback) == ("background", "identity")
    np.testing.assert_array_equal(glass.image, 250)


def test_pooled_statistics_are_those_of_all_the_tissue_together(fitted: StatisticalNormaliser) -> None:
    """Not the mean of what each image says: haematoxylin in one and eosin in the other are two stains together."""
    whole = tissue("south", 4, side=128)
    halves = [whole[:64], whole[64:], flat(255, 255, 255)]
    status, pooled = fitted.pool(iter(halves))
    _, together = fitted.measure(whole)
    assert status == "ok" and pooled is not None and together is not None
    np.testing.assert_allclose(pooled, together, rtol=0.02, atol=0.01)
    assert fitted.pool([]) == fitted.pool([flat(255, 255, 255)]) == ("background", None)
    assert fitted.pool([tissue(side=64)[:1]])[0] == "low_tissue"
    many = [np.tile(tissue("south", seed), (2, 2, 1)) for seed in range(4)] * 3
    assert sum(image.size // 3 for image in many) > 4 * SLIDE_PIXELS
    _, bounded = fitted.pool(many)
    _, all_of_it = fitted.measure(np.concatenate(many))
    assert bounded is not None and all_of_it is not None
    np.testing.assert_allclose(bounded, all_of_it, rtol=0.04, atol=0.02)


def test_glass_is_measured_and_becomes_the_references(fitted: StatisticalNormaliser) -> None:
    """Where an image shows no glass, light stays as it is, unless its slide has told the white point; both are said."""
    bright, dim = (245.0, 244.0, 246.0), (226.0, 214.0, 190.0)

    def lit(seed: int, white: tuple[float, float, float]) -> np.ndarray:
        return np.rint(tissue("north", seed) * (np.array(white) / 255.0)).astype(np.uint8)

    normaliser = type(fitted)(white="measured").fit([lit(0, bright)])
    assert normaliser.reference_ is not None
    np.testing.assert_allclose(normaliser.reference_[-3:], bright, atol=1.5)
    image = lit(1, dim)
    found = normaliser.normalise(image)
    assert found.status == "ok" and found.white_point is not None
    np.testing.assert_allclose(found.white_point, dim, atol=1.5)
    glass = (tissue("north", 1).min(axis=2) > 252)[..., np.newaxis]
    level = np.median(found.image[glass[..., 0]], axis=0)
    np.testing.assert_allclose(level, dim if fitted.method == "reinhard" else bright, atol=2.0)
    dense = image[~glass[..., 0]]
    dense = dense[dense.max(axis=1) < 150][: 64 * 32].reshape(32, -1, 3)
    assert normaliser.normalise(dense).white_point == (255.0, 255.0, 255.0)
    _, slide = normaliser.pool([image, dense])
    assert slide is not None
    np.testing.assert_allclose(normaliser.normalise(dense, slide).white_point, dim, atol=1.5)


def lit(image: np.ndarray, *white: float) -> np.ndarray:
    """The same image with glass of other grey levels."""
    return np.rint(image * (np.array(white) / 255.0)).astype(np.uint8)


def test_glass_of_255_is_measured_too(fitted: StatisticalNormaliser) -> None:
    """White of the last grey level is a white point like any other, not the sign that none was found."""
    normaliser = type(fitted)(white="measured").fit([lit(tissue("north", 0), 240, 240, 240)])
    bright, dim = [np.minimum(tissue("north", seed) + 3, 255).astype(np.uint8) for seed in (1, 2)], tissue("north", 3)
    for image in bright:
        image[tissue("north", 1).min(axis=2) > 250] = 255
    _, slide = normaliser.pool([*bright, lit(dim, 225, 225, 225)])
    assert slide is not None and slide[-3:].tolist() == [255.0, 255.0, 255.0]
    _, own = normaliser.measure(bright[0])
    assert own is not None and own[-3:].tolist() == [255.0, 255.0, 255.0]
    if fitted.method != "reinhard":
        glass = normaliser.normalise(bright[0]).image[bright[0].min(axis=2) == 255]
        np.testing.assert_allclose(np.median(glass, axis=0), 240.0, atol=2.0)


def test_no_glass_at_all_leaves_the_light_as_it_is(fitted: StatisticalNormaliser) -> None:
    normaliser = type(fitted)(white="measured").fit([lit(tissue("north", 0), 240, 240, 240)])
    dense = tissue("north", 1)
    dense = dense[dense.max(axis=2) < 150][: 32 * 32].reshape(32, 32, 3)
    _, measured = normaliser.measure(dense)
    assert measured is not None and np.isnan(measured[-3:]).all()
    _, pooled = normaliser.pool([dense, dense])
    assert pooled is not None and np.isnan(pooled[-3:]).all()
    for found in (normaliser.normalise(dense), normaliser.normalise(dense, pooled, prefer_pooled=True)):
        assert found.status == "ok" and found.white_point == (255.0, 255.0, 255.0)
    assert np.isfinite(type(fitted)(white="measured").fit([dense]).reference_).all()


@pytest.mark.parametrize("level", [220, 254])
def test_no_step_of_glass_between_a_blank_tile_and_its_neighbours(fitted: StatisticalNormaliser, level: int) -> None:
    """Where the slide's light is brought to the reference's, so is that of its blank tiles, and that is counted."""
    normaliser = type(fitted)(white="measured").fit([lit(tissue("north", 0), 252, 251, 250)])
    stained, blank = lit(tissue("north", 1), level, level, level), flat(level, level, level)
    _, slide = normaliser.pool([stained, blank])
    assert slide is not None
    neighbour = normaliser.normalise(stained, slide, prefer_pooled=True)
    found = normaliser.normalise(blank, slide, prefer_pooled=True)
    glass = np.median(neighbour.image[stained.min(axis=2) >= level - 3], axis=0)
    np.testing.assert_allclose(found.image[0, 0], glass, atol=2.0)
    assert (found.status, found.fallback) == ("background", "identity" if fitted.method == "reinhard" else "slide")
    alone = normaliser.normalise(blank)
    assert (alone.status, alone.fallback) == ("background", "identity")
    np.testing.assert_array_equal(alone.image, blank)


def test_shared_statistics_hide_neither_scarce_tissue_nor_that_there_are_none(fitted: StatisticalNormaliser) -> None:
    few = np.concatenate([tissue("east", side=128)[:3], flat(255, 255, 255, shape=(125, 128))])
    _, slide = fitted.pool([tissue("east", seed) for seed in range(3)])
    shared = fitted.normalise(few, slide, prefer_pooled=True)
    assert (shared.status, shared.fallback) == ("low_tissue", "")
    without = fitted.normalise(tissue("east", 1), None, prefer_pooled=True)
    assert (without.status, without.fallback) == ("ok", "image")
    np.testing.assert_array_equal(without.image, fitted.normalise(tissue("east", 1)).image)
    assert fitted.normalise(few, None, prefer_pooled=True).fallback in ("reference", "identity")


def test_tissue_that_is_glass_under_the_common_white_point_is_not_pooled(fitted: StatisticalNormaliser) -> None:
    """A tile that shows no glass is looked at under white, its slide's densities are taken under the slide's glass."""
    normaliser = type(fitted)(white="measured").fit([tissue("north", 0)])
    slide = [lit(tissue("north", seed), 226, 214, 190) for seed in (1, 2)]
    # Nearly glass there, but pinker than glass: taken for none by itself.
    veil = flat(224, 178, 190, shape=(128, 128))
    _, without = normaliser.pool(slide)
    _, found = normaliser.pool([*slide, veil])
    assert without is not None and found is not None
    np.testing.assert_allclose(found, without, rtol=0.02, atol=0.02)


INKS = {
    "blue": [(40, 60, 190), (30, 60, 170), (20, 40, 140), (0, 0, 255)],
    "green": [(20, 120, 40), (30, 160, 80), (0, 100, 0)],
    "black": [(20, 20, 22), (10, 10, 10), (30, 30, 32), (0, 0, 0)],
    "red": [(200, 30, 40), (220, 20, 40), (190, 30, 50), (255, 0, 0)],
}
COLOURS = [colour for colours in INKS.values() for colour in colours]


def marked(image: np.ndarray, colour: tuple[int, ...], thickness: int) -> np.ndarray:
    """A stroke of a marker across an image, with soft edges and the sensor's noise."""
    import cv2

    height, width = image.shape[:2]
    cover = np.zeros((height, width), np.float32)
    ends = (width // 8, height // 5), (width * 7 // 8, height * 3 // 4)
    cv2.line(cover, *ends, 1.0, max(2, thickness), cv2.LINE_AA)
    cover = cv2.GaussianBlur(cover, (0, 0), 0.8)[..., np.newaxis]
    ink = np.array(colour) + np.random.default_rng(4).normal(0.0, 1.0, image.shape)
    return np.rint((image * (1.0 - cover) + ink * cover).clip(0, 255)).astype(np.uint8)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_pen_mark_is_told_and_takes_no_part_in_the_statistics(
    fitted: StatisticalNormaliser, colour: tuple[int, ...]
) -> None:
    image = tissue("east", 1, side=160)
    inked = marked(image, colour, 20)
    found = fitted.normalise(inked)
    assert found.status == "degenerate" and found.fallback in ("reference", "identity")
    with pytest.raises(ValueError, match="found 1 degenerate"):
        type(fitted)().fit([inked])
    # Others of its slide are what it may be normalised by, which the status must not hide.
    assert fitted.pool([inked, inked]) == ("degenerate", None)
    _, clean = fitted.pool([image])
    _, slide = fitted.pool([inked, image])
    assert clean is not None and slide is not None
    np.testing.assert_array_equal(slide, clean)
    assert (shared := fitted.normalise(inked, slide)).status == "degenerate" and shared.fallback == "slide"
    preferred = fitted.normalise(inked, slide, prefer_pooled=True)
    assert (preferred.status, preferred.fallback) == ("degenerate", "")
    assert fitted.normalise(marked(image, colour, 2)).status in ("ok", "clipped_gain"), "a hair of it is not noticeable"


@pytest.mark.parametrize("chromogen", [(0.268, 0.570, 0.776), (0.35, 0.55, 0.76)])
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_brown_and_blue_are_no_ink(
    fitted: StatisticalNormaliser, chromogen: tuple[float, ...], strength: float
) -> None:
    """Haematoxylin of any of the laboratories, with DAB in place of eosin."""
    for laboratory, (haematoxylin, _) in LABORATORIES.items():
        generator = np.random.default_rng(0)
        amounts = generator.gamma(3.0, 0.1, (128, 128, 2)) * strength * (generator.random((128, 128, 2)) > 0.3)
        image = to_image((amounts @ np.array([haematoxylin, chromogen])).astype(np.float32))
        assert fitted.normalise(image).status in ("ok", "clipped_gain"), laboratory
        assert fitted.normalise(tissue(laboratory, 0, 1.6 * strength)).status in ("ok", "clipped_gain"), laboratory


@pytest.mark.parametrize("laboratory", ["north", "east", "south", "west", "abroad"])
def test_rendered_tissue_is_no_ink_unless_marked(fitted: StatisticalNormaliser, laboratory: str) -> None:
    from pipeline.laboratories import LABORATORIES as SCANNED
    from pipeline.tissue import render_field

    images = [render_field(kind, 160, 160, SCANNED[laboratory], 7).image for kind in ("gland", "lymphoid", "stroma")]
    for image in images:
        assert fitted.normalise(image).status in ("ok", "clipped_gain")
    for colours in INKS.values():
        assert fitted.normalise(marked(images[0], colours[0], 16)).status == "degenerate"


@pytest.mark.parametrize("laboratory", ["east", "south", "west"])
def test_another_laboratory_comes_nearer_to_the_reference(fitted: StatisticalNormaliser, laboratory: str) -> None:
    """The same tissue, known in both stains: the normalised image must be near its twin."""
    twin, image = tissue("north", seed=1), tissue(laboratory, seed=1, strength=0.8)
    normalised, status = fitted.transform(image)
    assert status == "ok"

    def distance(other: np.ndarray) -> float:
        return float(np.abs(other.astype(int) - twin).mean())

    # Vectors that never change leave the difference of hue.
    assert distance(normalised) < (1.0 if fitted.method == "ruifrok" else 0.6) * distance(image)


def test_the_reference_itself_hardly_changes(fitted: StatisticalNormaliser) -> None:
    image = tissue("north", seed=0)
    reference = type(fitted)().fit([image])
    normalised, status = reference.transform(image)
    assert status == "ok"
    # What neither stain explains, here the sensor's noise, is all that may go.
    assert np.abs(normalised.astype(int) - image).mean() < 1.5


def test_glass_stays_glass(fitted: StatisticalNormaliser) -> None:
    image = tissue("east", seed=2)
    image[:32] = 255
    assert (fitted.transform(image)[0][:32] == 255).all()


def test_faint_stain_is_stretched_no_further_than_the_maximum(fitted: StatisticalNormaliser) -> None:
    bounded = type(fitted)(maximum_gain=1.1).fit([tissue("north", strength=1.6)])
    faint = tissue("north", strength=0.7)
    normalised, status = bounded.transform(faint)
    assert status == "clipped_gain"
    free, free_status = type(fitted)(maximum_gain=8.0).fit([tissue("north", strength=1.6)]).transform(faint)
    assert free_status == "ok"
    assert faint.astype(float).std() < normalised.astype(float).std() < free.astype(float).std()


def test_the_reference_is_the_image_nearest_to_the_median(fitted: StatisticalNormaliser) -> None:
    images = [tissue("north", 1, strength) for strength in (0.5, 0.8, 1.0, 1.2, 1.6)]
    images.insert(1, flat(255, 255, 255))
    normaliser = type(fitted)().fit(iter(images))
    assert normaliser.reference_index_ == 3
    alone = type(fitted)().fit([images[3]])
    np.testing.assert_array_equal(normaliser.reference_, alone.reference_)


def test_nothing_to_fit_to_says_so(fitted: StatisticalNormaliser) -> None:
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
def test_what_is_no_rgb_image_is_refused(fitted: StatisticalNormaliser, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected an image of shape \(height, width, 3\) and uint8, found"):
        fitted.transform(image)


def test_it_comes_back_from_its_file_and_the_file_never_differs(fitted: StatisticalNormaliser, tmp_path: Path) -> None:
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
    [{"method": "none"}, {"version": 99}, {"reference": "all"}, {"reference": {}}, {"white_point": [1]}, None],
)
def test_another_file_is_refused(
    fitted: StatisticalNormaliser, change: dict[str, object] | None, tmp_path: Path
) -> None:
    file = tmp_path / "stain.json"
    fitted.save(file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | change) if change is not None else "{")
    with pytest.raises(ValueError, match=r"stain\.json: expected a fitted .* run stage normalise again"):
        load(file)
    with pytest.raises(ValueError, match="expected a fitted"):
        load(tmp_path / "absent.json")


@pytest.mark.real
def test_real_images_are_normalised_by_their_own_statistics(fitted: StatisticalNormaliser, real_data: Path) -> None:
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
    # Vectors that never change leave the difference of hue.
    assert colours[1].std(axis=0).sum() < (1.0 if fitted.method == "ruifrok" else 0.6) * colours[0].std(axis=0).sum()


def real_tissue(real_data: Path) -> dict[str, np.ndarray]:
    """Every real image of haematoxylin and eosin that is a file of its own."""
    files = sorted((real_data / "camelyon17_centres").rglob("*.png")) + sorted((real_data / "stain_examples").glob("*"))
    files += sorted((real_data / "nuinsseg_human" / "images").glob("*"))
    return {file.name: np.ascontiguousarray(read_image(file)[..., :3]) for file in files}


@pytest.mark.real
def test_real_tissue_is_never_taken_for_ink(real_data: Path) -> None:
    images = real_tissue(real_data)
    patches = real_data.parent / "kaggle" / "breast-histopathology-images"
    images |= {file.name: read_image(file) for file in sorted(patches.rglob("*.png"))}
    assert len(images) > 60
    shares = {}
    for name, image in images.items():
        pixels = sample_pixels(image)
        shares[name] = tissue_and_ink(pixels)[1] / len(pixels)
    assert {name: share for name, share in shares.items() if share > INKED} == {}


@pytest.mark.real
@pytest.mark.parametrize("colour", COLOURS)
def test_pen_marks_over_real_tissue_are_told(real_data: Path, colour: tuple[int, ...]) -> None:
    images = list(real_tissue(real_data).values())[::6]
    normalisers = [METHODS[method]().fit(images[:1]) for method in METHODS]
    for image in images:
        side = min(image.shape[:2])
        for normaliser in normalisers:
            assert normaliser.normalise(marked(image, colour, side // 10)).status == "degenerate"


@pytest.mark.real
def test_real_tissue_never_turns_cyan_or_green(fitted: StatisticalNormaliser, real_data: Path) -> None:
    """Every example brought to three references that differ much: no colour comes up that no stained tissue has."""
    import cv2

    examples, centres = real_data / "stain_examples", real_data / "camelyon17_centres"
    files = [*sorted(examples.glob("*.png")), *(sorted((centres / f"center_{n}").glob("*.png"))[0] for n in range(3))]
    images = [np.ascontiguousarray(read_image(file)[:400, :400, :3]) for file in files]
    for reference in (images[0], images[2], images[-1]):
        normaliser = type(fitted)().fit([reference])
        for file, image in zip(files, images, strict=True):
            normalised, status = normaliser.transform(image)
            assert status in ("ok", "clipped_gain"), file.name
            before, after = (cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[..., 1] for picture in (image, normalised))
            assert ((after < 120) & (before >= 124)).mean() < 0.002, file.name


def test_darker_stays_darker() -> None:
    """A normalised ramp of one stain falls as the ramp does, up to where it runs into the sensor's floor."""
    ramp = np.linspace(0.0, 1.5, 256)[:, np.newaxis] * np.array(LABORATORIES["east"][0])
    image = np.concatenate(
        [tissue("east", side=256), np.repeat(to_image(ramp[np.newaxis].astype(np.float32)), 8, axis=0)]
    )
    normalised, _ = METHODS["macenko"]().fit([tissue("north")]).transform(image)
    assert (np.diff(normalised[-1, ::8].astype(int).sum(axis=1)) < 0).all()
