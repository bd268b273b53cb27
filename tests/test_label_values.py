"""What values of label rasters mean, told over whole data sets of every convention."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.label_values import Meaning, check_values, integers, meaning_of, survey
from pipeline.labels import from_raster
from pipeline.records.case import IGNORED
from pipeline.records.findings import FaultyFile


def blobs(generator: np.random.Generator, values: list[int], per_value: int) -> np.ndarray:
    """Each value gets so many 3x3 squares on a grid, none touching."""
    cells = generator.permutation(64)[: len(values) * per_value]
    plane = np.zeros((32, 32), np.uint8)
    for number, cell in enumerate(cells):
        top, left = divmod(int(cell), 8)
        plane[4 * top : 4 * top + 3, 4 * left : 4 * left + 3] = values[number % len(values)]
    return plane


def decided(planes: list[np.ndarray], label_kind: str = "auto") -> Meaning:
    return meaning_of([survey(plane) for plane in planes], label_kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_kinds_of_data_sets_are_told_apart(seed: int) -> None:
    generator = np.random.default_rng(seed)
    empty = np.zeros((32, 32), np.uint8)
    binary = [blobs(generator, [255], 9), blobs(generator, [255], 3), empty]
    smooth = [np.where(plane > 0, generator.integers(120, 256, plane.shape), 0).astype(np.uint8) for plane in binary]
    smooth = [np.where((plane > 0) & (generator.random(plane.shape) < 0.8), 255, plane) for plane in smooth]
    class_ids = [blobs(generator, [1, 2], 9), blobs(generator, [2], 5), blobs(generator, [1], 7), empty]
    objects = [blobs(generator, list(range(1, count + 1)), 1) for count in (12, 3, 40)] + [empty]
    one_class = [blobs(generator, [1], 9), empty]
    assert decided(binary).kind == decided(smooth).kind == "white"
    assert decided([plane.astype(np.uint16) for plane in binary]).kind == "white"
    assert decided([plane.astype(np.uint16) * 257 for plane in binary]).kind == "white"
    assert decided(class_ids) == Meaning("classes", None, decided(class_ids).evidence)
    assert decided(one_class).kind == decided([empty]).kind == decided([]).kind == "classes"
    assert decided(objects).kind == decided([plane.astype(np.uint16) for plane in objects]).kind == "objects"
    assert decided([plane.astype(np.int32) * 70_000 for plane in objects]).kind == "objects"


@pytest.mark.parametrize("quality", [50, 80, 95, 100])
def test_masks_saved_as_jpeg_are_foreground(quality: int) -> None:
    exact = [blobs(np.random.default_rng(seed), [255], 9) for seed in range(3)]
    lossy = [cv2.imdecode(cv2.imencode(".jpg", plane, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], -1) for plane in exact]
    meaning = decided([*lossy, np.zeros((32, 32), np.uint8)])
    assert meaning.kind == "white"
    for plane, wanted in zip(lossy, exact, strict=True):
        label = from_raster(plane, meaning)
        assert (label.raster != wanted // 255).mean() < (0.05 if quality == 50 else 0.01)


def test_few_objects_an_image_are_objects_where_their_number_varies() -> None:
    generator = np.random.default_rng(0)
    assert decided([blobs(generator, list(range(1, count + 1)), 1) for count in (2, 3, 4)]).kind == "objects"
    regions = [blobs(generator, [1, 3], 1), blobs(generator, [2, 3], 1), blobs(generator, [3], 1)]
    assert decided(regions).kind == "classes"


@pytest.mark.parametrize("share", [0.2, 0.8])
@pytest.mark.parametrize("deep", [1, 257])
def test_flat_levels_are_no_shades(share: float, deep: int) -> None:
    generator = np.random.default_rng(0)
    values = [128] * int(10 * share) + [255] * int(10 - 10 * share)
    planes = [np.kron(blobs(generator, values, 1), np.ones((3, 3), np.uint8)).astype(np.uint16) for _ in range(3)]
    planes = [plane * deep if deep > 1 else plane.astype(np.uint8) for plane in planes]
    white = np.where(planes[0] > 128 * deep, planes[0], 0)
    meaning = decided([*planes, white])
    assert meaning.kind == "white"
    check_values(survey(white), meaning)
    found = rf"found the levels 0, {128 * deep}, {255 * deep} over areas; save class ids .* or ingest.threshold where"
    with pytest.raises(FaultyFile, match=rf"flat levels: expected 0 and 255, with shades along edges alone.*{found}"):
        from_raster(planes[0], meaning)
    classes = decided([*planes, white], "semantic")
    label = from_raster(planes[0], classes)
    np.testing.assert_array_equal(label.raster, np.searchsorted([0, 128 * deep, 255 * deep], planes[0]))
    assert [remark.fault for remark in label.remarks] == ["flat levels"] and label.count == 2
    np.testing.assert_array_equal(from_raster(white, classes).raster, 2 * (white > 0))
    one_class = meaning_of([survey(plane) for plane in planes], "auto", one_class=True)
    np.testing.assert_array_equal(from_raster(planes[0], one_class, 200).raster, planes[0] > 200 * deep)


def test_flat_levels_of_floats_keep_their_places() -> None:
    generator = np.random.default_rng(0)
    planes = [np.kron(blobs(generator, [128, 255], 3), np.ones((3, 3), np.uint8)) for _ in range(3)]
    planes[1][planes[1] == 128] = 0
    parts = [integers(np.round(plane / 255, 1).astype(np.float32))[0] for plane in planes]
    classes = decided(parts, "semantic")
    for part, plane in zip(parts, planes, strict=True):
        np.testing.assert_array_equal(from_raster(part, classes).raster, np.searchsorted([0, 128, 255], plane))


def test_a_shade_along_edges_is_no_level() -> None:
    planes = []
    for seed in range(3):
        fine = np.kron(blobs(np.random.default_rng(seed), [255], 9), np.ones((4, 4), np.uint8))
        fine = np.roll(fine, 1, axis=1)
        planes.append(cv2.resize(fine, (64, 64), interpolation=cv2.INTER_AREA))
    assert np.unique(planes).tolist() == [0, 128, 255]
    meaning = decided(planes)
    assert meaning.kind == "white"
    for plane in planes:
        assert [remark.fault for remark in from_raster(plane, meaning).remarks] == ["grey mask"]


@pytest.mark.parametrize(("images", "count", "empty"), [(3, 12, 0), (16, 6, 0), (1, 8, 5)])
def test_many_ids_of_one_region_each_are_objects_however_alike_their_number(
    images: int, count: int, empty: int
) -> None:
    generator = np.random.default_rng(0)
    planes = [blobs(generator, list(range(1, count + 1)), 1) for _ in range(images)]
    meaning = decided(planes + [np.zeros((32, 32), np.uint8)] * empty)
    assert (meaning.kind, meaning.doubt) == ("objects", False)
    # As many classes, some of them in more places than one.
    spread = [blobs(generator, list(range(1, count + 1)), 2) for _ in range(images)]
    assert (decided(spread).kind, decided(spread).doubt) == ("classes", False)


def test_few_ids_of_one_region_each_are_in_doubt_unless_it_is_said_what_they_are() -> None:
    generator = np.random.default_rng(0)
    alike = [blobs(generator, [1, 2, 3], 1) for _ in range(4)]
    varied = [blobs(generator, list(range(1, count + 1)), 1) for count in (2, 3, 4)]
    assert [(decided(planes).kind, decided(planes).doubt) for planes in (alike, varied)] == [
        ("classes", True), ("objects", True),
    ]  # fmt: skip
    assert not decided(alike, "semantic").doubt and not decided(varied, "instance").doubt
    assert not decided([blobs(generator, [1], 1)]).doubt


def test_255_beside_class_ids_is_the_ignored_value() -> None:
    plane = blobs(np.random.default_rng(0), [1, 2, 255], 5)
    mostly_unknown = np.where(plane == 0, 255, plane).astype(np.uint8)
    for planes in ([plane], [mostly_unknown], [plane, blobs(np.random.default_rng(1), [1, 2], 5)]):
        meaning = decided(planes)
        assert (meaning.kind, meaning.ignored) == ("classes", 255)
        label = from_raster(planes[0], meaning)
        assert set(np.unique(label.raster)) <= {0, 1, 2, IGNORED} and label.count == 2
        assert [remark.fault for remark in label.remarks] == ["ignored pixels"]


def test_a_0_1_mask_among_0_255_masks_is_refused_and_not_emptied() -> None:
    generator = np.random.default_rng(0)
    planes = [blobs(generator, [255], 9), blobs(generator, [255], 4), blobs(generator, [1], 6)]
    meaning = decided(planes)
    assert meaning.kind == "white"
    with pytest.raises(
        FaultyFile, match=r"0/255 against ids: expected 0 and 255 .* found values up to 1 alone; multiply"
    ):
        check_values(survey(planes[2]), meaning)
    with pytest.raises(FaultyFile, match="0/255 against ids"):
        from_raster(planes[2], meaning)


def test_a_0_255_mask_among_ids_is_refused() -> None:
    generator = np.random.default_rng(0)
    planes = [blobs(generator, list(range(1, count + 1)), 1) for count in (30, 40, 20)] + [blobs(generator, [255], 4)]
    with pytest.raises(FaultyFile, match=r"0/255 against ids: expected ids .* found 0 and 255 alone"):
        check_values(survey(planes[3]), decided(planes))


def test_one_large_0_255_mask_does_not_outvote_ids() -> None:
    generator = np.random.default_rng(0)
    planes = [blobs(generator, list(range(1, count + 1)), 1) for count in (3, 5, 4)]
    odd = np.full((32, 32), 255, np.uint8)
    odd[0] = 0
    meaning = decided([*planes, odd])
    assert (meaning.kind, meaning.ignored) == ("objects", None)
    for plane in planes:
        check_values(survey(plane), meaning)
    with pytest.raises(FaultyFile, match="found 0 and 255 alone; save it with ids"):
        check_values(survey(odd), meaning)


def test_settings_that_the_values_cannot_give_are_refused() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"label_kind=instance: expected object ids, found 0/255 masks.*set ingest"):
        decided([blobs(generator, [255], 4)], "instance")
    many = np.arange(300, dtype=np.uint16).reshape(10, 30)
    with pytest.raises(
        ValueError, match=r"label_kind=semantic: expected class ids of 0\.\.254, found values up to 299"
    ):
        decided([many], "semantic")
    assert decided([blobs(generator, [1, 2], 5)], "instance").kind == "objects"
    assert decided([blobs(generator, [1, 2, 3], 1)], "semantic").kind == "classes"


def floats(plane: np.ndarray) -> np.ndarray:
    return integers(plane.astype(np.float32))[0]


@pytest.mark.parametrize("counts", [(5, 7, 1, 4), (5, 1, 1, 1, 1)])
def test_an_image_of_one_object_has_the_meaning_of_the_others_in_floats_too(counts: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    planes = [blobs(generator, list(range(1, count + 1)), 1) for count in counts]
    meaning = decided([floats(plane) for plane in planes])
    assert meaning.kind == "objects"
    for plane in planes:
        np.testing.assert_array_equal(from_raster(floats(plane), meaning).raster, plane)


def test_a_file_of_class_1_alone_keeps_its_class_in_floats_beside_ignored_pixels() -> None:
    generator = np.random.default_rng(0)
    planes = [blobs(generator, [1, 2, 255], 5), blobs(generator, [1], 5)]
    meaning = decided([floats(plane) for plane in planes], "semantic")
    assert (meaning.kind, meaning.ignored) == ("classes", 255)
    np.testing.assert_array_equal(from_raster(floats(planes[1]), meaning).raster, planes[1])


def test_floats_of_0_and_1_alone_are_foreground_beside_shades_and_by_themselves() -> None:
    mask = np.kron(blobs(np.random.default_rng(0), [1], 9), np.ones((4, 4), np.uint8))
    soft = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0.4)
    white = blobs(np.random.default_rng(1), [255], 5)
    for others in ([integers(soft)[0]], [white], []):
        meaning = decided([floats(mask), *others])
        assert meaning.kind == ("white" if others else "classes")
        label = from_raster(floats(mask), meaning)
        np.testing.assert_array_equal(label.raster, mask)
        assert (label.count, label.remarks) == (1, ())
    with pytest.raises(ValueError, match=r"label_kind=instance: expected object ids, found masks of 0 and 1 .*set "):
        decided([floats(mask)], "instance")
    assert decided([floats(blobs(np.random.default_rng(2), [1], 1))], "instance").kind == "objects"


@pytest.mark.parametrize(
    ("plane", "expected", "listed"),
    [
        (np.array([[True, False]]), [[True, False]], []),
        (np.array([[0.0, 1.0]], np.float32), [[False, True]], ["float mask"]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [[0, 128, 255]], ["float mask"]),
        (np.array([[0.0, 3.0]], np.float32), [[0, 3]], ["float mask"]),
        (np.array([[0, 3]], np.int32), [[0, 3]], []),
    ],
)
def test_planes_of_any_dtype_become_integers(plane: np.ndarray, expected: list, listed: list[str]) -> None:
    whole, remarks = integers(plane)
    assert whole.dtype.kind in "bui" and whole.tolist() == expected
    assert [remark.fault for remark in remarks] == listed


@pytest.mark.parametrize("bad", [[[-1.0, 0.0]], [[np.nan, 1.0]], [[0.5, 3.0]], [[np.inf, 1.0]]])
def test_floats_that_mean_nothing_are_refused(bad: list) -> None:
    with pytest.raises(FaultyFile, match="unknown range of values"):
        integers(np.array(bad, np.float32))
