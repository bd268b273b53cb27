"""Joins found from pixels: rendered fields with known crops, and the real competition's images."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import grouping
from pipeline.grouping import find_joins
from pipeline.grouping.joins import Join, join_sets, members_of, oriented
from pipeline.grouping.layout import lay_out
from pipeline.grouping.same_pixels import find_identical
from pipeline.grouping.sheet import draw_groups
from pipeline.sample import render_sample


def field(seed: int, height: int = 256, width: int = 256, noise: float = 2.0) -> np.ndarray:
    """Bright soft discs on a dark, structured background: (height, width, 3) uint8."""
    generator = np.random.default_rng(seed)
    canvas = np.full((height, width), 12.0, np.float32)
    for _ in range(height * width // 900):
        y, x, radius = generator.uniform(0, height), generator.uniform(0, width), generator.uniform(5, 11)
        cv2.circle(canvas, (int(x), int(y)), int(radius), float(generator.uniform(60, 200)), -1)
    canvas += 4.0 * cv2.GaussianBlur(generator.standard_normal((height, width)).astype(np.float32), (0, 0), 3.0) * 6.0
    canvas = cv2.GaussianBlur(canvas, (0, 0), 1.5) + noise * generator.standard_normal((height, width))
    return np.repeat(np.clip(np.rint(canvas), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def quarters_of(name: str, image: np.ndarray) -> dict[str, np.ndarray]:
    """The four crops that tile an image, named by row and column."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return {
        f"{name}-{row}{column}": image[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in (0, 1)
        for column in (0, 1)
    }


def found(images: dict[str, np.ndarray]) -> tuple[list[Join], dict[str, str]]:
    joins = find_joins(images, images.__getitem__)
    return joins, join_sets(images, ((join.first, join.second) for join in joins))


def test_four_crops_of_each_of_many_alike_fields_find_their_places() -> None:
    images = {name: crop for seed in range(12) for name, crop in quarters_of(f"field{seed:02d}", field(seed)).items()}
    joins, groups = found(images)
    assert members_of(groups) == {
        f"field{seed:02d}-00": [f"field{seed:02d}-{place}" for place in ("00", "01", "10", "11")] for seed in range(12)
    }
    assert {(join.first[-2:], join.second[-2:], join.kind) for join in joins} == {
        ("00", "01", "right-of"), ("10", "11", "right-of"), ("00", "10", "below"), ("01", "11", "below"),
    }  # fmt: skip
    assert {(join.rows, join.columns) for join in joins} == {(0, 128), (128, 0)}
    placed = lay_out(joins, {name: image.shape[:2] for name, image in images.items()})
    assert placed[0] == {"field00-00": (0, 0), "field00-01": (0, 128), "field00-10": (128, 0), "field00-11": (128, 128)}


def test_alike_but_different_fields_do_not_join() -> None:
    joins, _ = found({f"field{seed}": field(seed, 128, 128) for seed in range(40)})
    assert joins == []


@pytest.mark.parametrize(
    "blank",
    [
        lambda seed: np.full((96, 96, 3), 240, np.uint8),
        lambda seed: np.zeros((96, 96, 3), np.uint8),
        lambda seed: np.random.default_rng(seed).integers(236, 246, (96, 96, 3)).astype(np.uint8),
        lambda seed: np.repeat(np.linspace(90, 200, 96).astype(np.uint8)[:, None, None], 96, 1).repeat(3, 2),
    ],
    ids=["white", "black", "noise", "vignette"],
)
def test_blank_images_carry_no_evidence(blank: Callable[[int], np.ndarray]) -> None:
    images = {f"blank{seed}": blank(seed) for seed in range(6)}
    joins = find_joins(images, images.__getitem__)
    assert [join for join in joins if join.kind != "duplicate"] == []
    # Only the vignettes are the same picture with something in it.
    assert (
        len(joins) == (5 if len({image.tobytes() for image in images.values()}) == 1 and blank(0).std() > 5 else 0) * 3
    )


@pytest.mark.parametrize("seed", range(6))
def test_one_nucleus_at_the_same_height_by_chance_is_not_a_join(seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = {}
    for name, column, radius, level in (("left", 127, 9, 180), ("right", 0, 11, 130)):
        image = cv2.circle(np.full((128, 128), 10, np.float32), (column, 60), radius, level, -1)
        noisy = cv2.GaussianBlur(image, (0, 0), 1.5) + generator.normal(0, 1.5, image.shape)
        images[name] = np.repeat(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    assert find_joins(images, images.__getitem__) == []


def test_few_of_many_sparse_images_join_by_chance() -> None:
    """A handful of nuclei on pure noise, all fields different: the hardest case, as only nuclei could speak."""
    generator = np.random.default_rng(11)
    images = {}
    for number in range(120):
        image = np.full((128, 128), 10, np.float32)
        for x, y in generator.integers(0, 128, (5, 2)):
            size = (int(generator.integers(6, 11)), int(generator.integers(6, 11)))
            cv2.ellipse(image, (int(x), int(y)), size, 0, 0, 360, float(generator.uniform(60, 200)), -1)
        noisy = cv2.GaussianBlur(image, (0, 0), 1.5) + generator.normal(0, 1.5, image.shape)
        images[f"{number:03d}"] = np.repeat(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    joins, groups = found(images)
    assert len(joins) <= 4
    assert max(map(len, members_of(groups).values())) <= 3


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turned_noisy_brighter_duplicates_join_and_say_how_they_lie(quarters: int, mirrored: bool) -> None:
    first = field(1, 120, 150)
    generator = np.random.default_rng(5)
    copy = np.clip(1.1 * first + 6 + generator.normal(0, 3, first.shape), 0, 255).astype(np.uint8)
    # Undo first's view of second: turn back, then mirror.
    turned = np.rot90(copy, -quarters)
    turned = np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)
    images = {"a": first, "b": turned, "c": field(2, 120, 150), "d": field(3, 150, 120)}
    joins = find_joins(images, images.__getitem__)
    assert [(j.first, j.second, j.kind, j.quarters, j.mirrored) for j in joins] == [
        ("a", "b", "duplicate", quarters, mirrored)
    ]
    assert joins[0].score > 0.9
    assert np.abs(oriented(turned, quarters, mirrored).astype(float) - copy).max() == 0


def test_a_duplicate_crop_does_not_hide_the_neighbour() -> None:
    images = quarters_of("f", field(4)) | {f"other{seed}": field(20 + seed, 128, 128) for seed in range(8)}
    images["twin"] = images["f-01"].copy()
    joins, groups = found(images)
    assert members_of(groups)["f-00"] == ["f-00", "f-01", "f-10", "f-11", "twin"]
    assert Join("f-01", "twin", "duplicate", 1.0) in joins


@pytest.mark.parametrize(("rows", "columns"), [(70, 0), (0, -90), (60, 80), (-50, 64)])
def test_overlapping_crops_join_at_their_shift(rows: int, columns: int) -> None:
    whole = field(6, 320, 320)
    top, left = max(0, -rows), max(0, -columns)
    images = {f"other{seed}": field(30 + seed, 192, 192) for seed in range(8)} | {
        "a": whole[top : top + 192, left : left + 192],
        "b": np.clip(whole[top + rows :, left + columns :][:192, :192] * 1.1 + 5, 0, 255).astype(np.uint8),
    }
    joins, _ = found(images)
    assert [(join.first, join.second, join.kind) for join in joins] == [("a", "b", "overlap")]
    assert abs(joins[0].rows - rows) <= 4 and abs(joins[0].columns - columns) <= 4
    sizes = {name: image.shape[:2] for name, image in images.items()}
    assert {"a", "b"} in [set(piece) for piece in lay_out(joins, sizes)]


def test_jpeg_of_each_crop_by_itself_is_borne() -> None:
    images = {}
    for seed in range(8):
        for name, crop in quarters_of(f"field{seed}", field(seed)).items():
            coded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            images[name] = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    _, groups = found(images)
    assert [len(members) for members in members_of(groups).values()] == [4] * 8


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(12)))
def test_the_order_of_the_images_never_matters(order: list[int]) -> None:
    images = {name: crop for seed in range(3) for name, crop in quarters_of(f"f{seed}", field(seed, 128, 128)).items()}
    names = sorted(images)
    assert find_joins([names[index] for index in order], images.__getitem__) == find_joins(names, images.__getitem__)


def test_every_image_is_loaded_once_where_nothing_looks_the_same() -> None:
    images = {f"f{seed}": field(seed, 96, 96) for seed in range(5)}
    loaded: list[str] = []

    def load(name: str) -> np.ndarray:
        loaded.append(name)
        return images[name]

    find_joins(images, load)
    assert sorted(loaded) == sorted(images)


def test_joins_that_cannot_lie_in_one_plane_are_dropped_from_the_weakest() -> None:
    sizes = dict.fromkeys("abc", (10, 10))
    joins = [
        Join("a", "b", "right-of", 50.0, columns=10),
        Join("a", "c", "right-of", 40.0, columns=10),
        Join("b", "a", "right-of", 30.0, columns=10),
    ]
    assert lay_out(joins, sizes) == [{"a": (0, 0), "b": (0, 10)}, {"c": (0, 0)}]


def test_too_small_images_are_left_alone() -> None:
    images = {"a": np.zeros((1, 1, 3), np.uint8), "b": field(1, 3, 5), "c": field(2, 1, 40)}
    assert find_joins(images, images.__getitem__) == []
    assert find_joins([], images.__getitem__) == []


def test_identical_images_in_any_orientation_but_no_plain_ones() -> None:
    image = field(1, 40, 50)
    images = {
        "a": image,
        "b": np.ascontiguousarray(np.rot90(image)),
        "c": field(2, 40, 50),
        "plain": image * 0,
        "too": image * 0,
    }
    assert find_identical(images, images.__getitem__) == [Join("a", "b", "duplicate", 1.0, quarters=3)]


def test_too_many_images_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "MAXIMUM_IMAGES", 3)
    with pytest.raises(ValueError, match=r"at most 3 images.*found 4.*split\.groups=given"):
        find_joins("abcd", lambda name: np.zeros((4, 4, 3), np.uint8))


def test_contact_sheet_shows_joined_groups_and_says_when_there_are_none() -> None:
    images = quarters_of("f", field(4)) | {"alone": field(9, 128, 128)}
    sizes = {name: image.shape[:2] for name, image in images.items()}
    joins, _ = found(images)
    sheet = draw_groups(joins, images.__getitem__, sizes)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    whole = cv2.resize(field(4), (314, 314), interpolation=cv2.INTER_AREA)[..., 0].astype(float)
    shown = sheet[18 : 18 + 314, :314, 0].astype(float)
    assert np.corrcoef(np.sqrt(whole).ravel(), shown.ravel())[0, 1] > 0.97
    assert draw_groups([], images.__getitem__, sizes).max() > 200


def pairs_of(groups: dict[str, str]) -> set[tuple[str, str]]:
    return {(a, b) for members in members_of(groups).values() for a in members for b in members if a < b}


def test_the_samples_fields_are_found() -> None:
    """Two patients of each laboratory; the true field of every image is known."""
    images = list(itertools.islice(render_sample(7), 56))
    pixels = {image.case_id: image.pixels for image in images}
    true = pairs_of({image.case_id: image.field for image in images})
    _, groups = found(pixels)
    assert len(true) > 50
    assert len(pairs_of(groups) & true) / len(true) >= 0.98
    assert len(pairs_of(groups) & true) / len(pairs_of(groups)) >= 0.9


@pytest.mark.real
def test_nuclei_cut_by_a_common_border_go_on_in_the_competitions_masks(dsb2018: Path) -> None:
    """The masks took no part in the search: a nucleus cut by a found border must be cut on both sides."""
    with zipfile.ZipFile(dsb2018 / "stage1_train.zip") as archive:
        files = sorted(name for name in archive.namelist() if "/images/" in name and name.endswith(".png"))
        chosen = {Path(name).stem: name for name in files if archive.getinfo(name).file_size < 100_000}

        def load(case_id: str) -> np.ndarray:
            raw = cv2.imdecode(np.frombuffer(archive.read(chosen[case_id]), np.uint8), cv2.IMREAD_COLOR)
            return cv2.cvtColor(raw, cv2.COLOR_BGR2RGB)

        joins = find_joins(chosen, load)
        members = members_of(join_sets(chosen, ((join.first, join.second) for join in joins)))
        sizes = [len(group) for group in members.values()]
        assert max(sizes) <= 0.05 * len(chosen)
        assert sizes.count(4) > sum(size not in (1, 4) for size in sizes)
        masks: dict[str, list[str]] = {}
        for name in archive.namelist():
            if "/masks/" in name and name.endswith(".png"):
                masks.setdefault(name.split("/")[-3], []).append(name)

        def foreground(case_id: str) -> np.ndarray:
            return (
                np.max([cv2.imdecode(np.frombuffer(archive.read(n), np.uint8), 0) for n in masks[case_id]], axis=0) > 0
            )

        overlaps = [seam_overlap(join, foreground) for join in joins if not join.same_pixels][::20]
    judged = [overlap for overlap in overlaps if overlap is not None]
    assert len(judged) >= 8
    assert np.mean([overlap > 0.5 for overlap in judged]) >= 0.9


def seam_overlap(join: Join, foreground: Callable[[str], np.ndarray]) -> float | None:
    """Dice of the foreground on both sides of a seam; None where less than 20 pixels of nuclei touch it."""
    first, second = foreground(join.first), foreground(join.second)
    one, other = (first[:, -1], second[:, 0]) if join.kind == "right-of" else (first[-1], second[0])
    if one.sum() + other.sum() < 40:
        return None
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))
