"""Volumes in NIfTI: planes of any orientation, faults in one message, and masks that go back into the same space."""

from __future__ import annotations

import gzip
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest

from pipeline.config import Config, IngestSettings, load_config
from pipeline.readers import READERS, RawDataset
from pipeline.readers.check import check_case
from pipeline.records.case import read_cases
from pipeline.records.findings import FaultyFile
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label
from pipeline.records.raw import RawFolder
from pipeline.records.volumes import class_ids, encode_like, grey_levels, planes_of, read_volume, same_space
from pipeline.runner import run
from pipeline.stages import ingest
from pipeline.stages.predict import predict_images

TINY = [
    "augment.crop=32", "augment.elastic=0", "train.network.name=unet", "train.network.arguments={}",
    "train.network.width=4", "train.network.depth=2", "train.steps=4", "train.batch=4", "train.validations=1",
    "evaluate.resamples=2000", "compute.device=cpu", "compute.threads=1", "compute.workers=0",
]  # fmt: skip
AFFINES = {
    "as it should be": np.diag([0.7, 0.7, 3.0, 1.0]),
    "mirrored": np.array([[-0.7, 0, 0, 20], [0, -0.7, 0, 9], [0, 0, 3.0, -5], [0, 0, 0, 1]]),
    "permuted": np.array([[0, 0, 0.7, 1], [-3.0, 0, 0, 2], [0, 0.7, 0, 3], [0, 0, 0, 1]]),
    "oblique": np.array([[0.7, 0.1, 0, 0], [-0.1, 0.7, 0, 0], [0, 0, -3.0, 30], [0, 0, 0, 1]]),
}


def volume(generator: np.random.Generator, affine: np.ndarray, shape: tuple[int, int, int] = (40, 36, 6)) -> tuple:
    """Values between -500 and 500 with a bright box, and its segmentation, both as nibabel's images."""
    values = generator.normal(-300, 60, shape).astype(np.int16)
    truth = np.zeros(shape, np.uint8)
    where = tuple(slice(side // 4, side // 4 + side // 2) for side in shape)
    truth[where] = 1
    values[where] += 600
    return nibabel.Nifti1Image(values, affine), nibabel.Nifti1Image(truth, affine)


def settings_of(root: Path) -> tuple[Config, Paths]:
    config = load_config(Path(__file__).parents[2] / "configs" / "nifti.yaml", TINY)
    return config, Paths.of(config, root)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Nine volumes with segmentation, in every orientation, and one without."""
    raw = tmp_path / "data" / "raw" / "nifti"
    for folder in ("images", "masks", "imagesTs"):
        (raw / folder).mkdir(parents=True)
    generator = np.random.default_rng(4)
    for number in range(9):
        image, truth = volume(generator, list(AFFINES.values())[number % 4])
        nibabel.save(image, raw / "images" / f"v{number}_0000.nii.gz")
        nibabel.save(truth, raw / "masks" / f"v{number}.nii.gz")
    image, _ = volume(generator, AFFINES["permuted"])
    nibabel.save(image, raw / "imagesTs" / "new.nii.gz")
    return raw


@pytest.mark.parametrize("name", AFFINES)
def test_masks_go_back_into_the_space_of_the_file(name: str, tmp_path: Path) -> None:
    image, truth = volume(np.random.default_rng(1), AFFINES[name])
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "a.nii.gz")
    nibabel.save(truth, tmp_path / "t.nii")
    seen = read_volume((tmp_path / "a.nii.gz").read_bytes())
    labels = read_volume((tmp_path / "t.nii").read_bytes())
    assert planes_of((tmp_path / "a.nii.gz").read_bytes()) == len(seen.values) == len(labels.values)
    assert same_space(seen, labels) == ""
    content = encode_like(seen, class_ids(labels.values))
    (tmp_path / "b.nii.gz").write_bytes(content)
    back = nibabel.load(tmp_path / "b.nii.gz")
    assert back.shape == image.shape and back.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(truth.dataobj))
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-6)
    np.testing.assert_allclose(back.header.get_zooms(), image.header.get_zooms(), rtol=1e-6)
    assert back.header.get_xyzt_units()[0] == "mm"
    assert encode_like(seen, class_ids(labels.values)) == content


@pytest.mark.parametrize("name", AFFINES)
def test_an_axis_of_one_time_is_no_fourth_axis(name: str, tmp_path: Path) -> None:
    image, truth = volume(np.random.default_rng(1), AFFINES[name])
    timed = nibabel.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine)
    nibabel.save(timed, tmp_path / "a.nii.gz")
    nibabel.save(image, tmp_path / "b.nii.gz")
    nibabel.save(truth, tmp_path / "t.nii")
    seen, plain, labels = (read_volume((tmp_path / file).read_bytes()) for file in ("a.nii.gz", "b.nii.gz", "t.nii"))
    assert planes_of((tmp_path / "a.nii.gz").read_bytes()) == len(seen.values)
    np.testing.assert_array_equal(seen.values, plain.values)
    assert same_space(seen, labels) == ""
    (tmp_path / "back.nii.gz").write_bytes(encode_like(seen, class_ids(labels.values)))
    back = nibabel.load(tmp_path / "back.nii.gz")
    assert back.shape == timed.shape and back.header.get_zooms() == timed.header.get_zooms()
    np.testing.assert_array_equal(np.asarray(back.dataobj)[..., 0], np.asarray(truth.dataobj))
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-6)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_extensions_of_the_header_may_be_long(kind: type, suffix: str, tmp_path: Path) -> None:
    image, _ = volume(np.random.default_rng(1), AFFINES["permuted"])
    image = kind(np.asarray(image.dataobj), image.affine)
    noise = np.random.default_rng(2).bytes(50_000)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", noise))
    file = tmp_path / f"a{suffix}"
    nibabel.save(image, file)
    seen = read_volume(file.read_bytes())
    assert planes_of(file.read_bytes()) == len(seen.values) == 36
    back = kind.from_bytes(gzip.decompress(encode_like(seen, np.zeros(seen.values.shape, np.uint8))))
    assert back.shape == image.shape and len(back.header.extensions) == 1


COLOURS = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((4, 5, 6), COLOURS, "other voxels: expected a whole or real number a voxel, found RGB; save one"),
        ((4, 5, 6), np.dtype(np.complex64), "other voxels: .*, found complex64"),
        ((4, 5, 0), np.dtype(np.uint8), "empty volume: expected one voxel at least along each axis, found 4 x 5 x 0"),
        ((4, 0, 6), np.dtype(np.uint8), "empty volume: .*, found 4 x 0 x 6"),
    ],
)
def test_what_holds_no_grey_levels_is_refused_by_name(shape: tuple, dtype: np.dtype, message: str) -> None:
    content = nibabel.Nifti1Image(np.zeros(shape, dtype), np.eye(4)).to_bytes()
    for reading in (planes_of, read_volume):
        with pytest.raises(FaultyFile, match=message):
            reading(content)


def test_planes_run_from_feet_to_head_and_columns_from_left_to_right(tmp_path: Path) -> None:
    values = np.zeros((4, 5, 6), np.float32)
    values[3, 0, 5] = 7  # right, back, head of a volume in RAS
    for codes in ("RAS", "LPS", "SAR", "PIL"):
        image = nibabel.Nifti1Image(values, np.eye(4))
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(np.eye(4)), nibabel.orientations.axcodes2ornt(codes)
        )
        nibabel.save(image.as_reoriented(turn), tmp_path / "a.nii")
        seen = read_volume((tmp_path / "a.nii").read_bytes()).values
        assert seen.shape == (6, 5, 4) and np.argwhere(seen).tolist() == [[5, 4, 3]]


def test_grey_levels_follow_the_window_or_the_percentiles() -> None:
    values = np.linspace(-1000, 1000, 2001).reshape(3, 23, 29)
    levels = grey_levels(values, (-100.0, 100.0))
    assert levels.dtype == np.uint8 and levels.flat[0] == 0 and levels.flat[-1] == 255 and levels.flat[1000] == 128
    spread = grey_levels(values, None)
    assert 0.004 < (spread == 0).mean() < 0.01 and 0.004 < (spread == 255).mean() < 0.01
    with pytest.raises(FaultyFile, match="1 that are not"):
        grey_levels(np.array([[[1.0, np.nan]]]), None)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0.0, -1.0, 1.0, -1.0], r"-1 in 2 of 4 voxels"),
        ([0.0, 0.5, 2.0, 2.001], r"0\.5, 2\.001 in 2 of 4 voxels"),
        ([0.0, 65535.0, np.nan, np.inf], r"65535, inf, nan in 3 of 4 voxels"),
        (np.arange(4, dtype=np.int16) - 2, r"-2, -1 in 2 of 4 voxels"),
        (np.arange(8, dtype=np.int16) - 8, r"-8, -7, -6, -5, -4 and 3 more in 8 of 8 voxels"),
    ],
)
def test_values_that_are_no_class_ids_are_named(values: list[float] | np.ndarray, found: str) -> None:
    with pytest.raises(FaultyFile, match=rf"expected whole numbers from 0 to 65534, found {found}; give a seg"):
        class_ids(np.array(values).reshape(1, 2, -1))


def test_class_ids_that_were_scaled_into_bytes_are_whole_again() -> None:
    ids = np.array([0, 1, 2, 3], float).reshape(1, 2, 2)
    image = nibabel.Nifti1Image(ids, np.eye(4))
    image.header.set_data_dtype(np.uint8)
    values = read_volume(image.to_bytes()).values
    assert values.max() != 3 and values.max() == pytest.approx(3)
    np.testing.assert_array_equal(class_ids(values), read_volume(nibabel.Nifti1Image(ids, np.eye(4)).to_bytes()).values)


def test_volumes_go_from_raw_files_to_report_and_back(volumes: Path, tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path)
    run("report", config, paths, with_needs=True)
    cases = {case.case_id: case for case in read_cases(paths.cases)}
    assert len(cases) == sum(planes_of(file.read_bytes()) for file in volumes.glob("images*/*"))
    assert {case.label_kind for case in cases.values()} == {"semantic", "none"}
    raw = read_volume((volumes / "masks" / "v1.nii.gz").read_bytes())
    for plane, expected in enumerate(raw.values):
        case = cases[f"v1_z{plane:04d}"]
        assert (case.group, case.plane, case.source) == ("v1", plane, "images/v1_0000.nii.gz")
        np.testing.assert_array_equal(read_label(paths.ingest / str(case.label)), expected)
        image = read_image(paths.ingest / case.image)
        if expected.any():
            assert image[expected > 0].mean() > image[expected == 0].mean() + 100
    assert (paths.reports / "report.html").stat().st_size > 10_000
    written = sorted((paths.reports / "volumes").glob("*.nii.gz"))
    assert "new.nii.gz" in [file.name for file in written] and len(written) >= 2
    new = nibabel.load(paths.reports / "volumes" / "new.nii.gz")
    given = nibabel.load(volumes / "imagesTs" / "new.nii.gz")
    assert new.shape == given.shape
    np.testing.assert_allclose(new.affine, given.affine, atol=1e-6)
    masks = read_volume((paths.reports / "volumes" / "new.nii.gz").read_bytes()).values
    for plane, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, read_label(paths.reports / "masks" / f"new_z{plane:04d}.png"))
    predict_images(str(paths.train), volumes / "imagesTs", tmp_path / "out", overrides=["compute.threads=1"])
    again = nibabel.load(tmp_path / "out" / "new.nii.gz")
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(new.dataobj))


def test_volumes_that_do_not_fit_are_told_in_one_message(volumes: Path, tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path)
    generator = np.random.default_rng(2)
    _, shifted = volume(generator, AFFINES["as it should be"] + np.array([[0, 0, 0, 5.0], *[[0] * 4] * 3]))
    nibabel.save(shifted, volumes / "masks" / "v0.nii.gz")
    _, larger = volume(generator, AFFINES["mirrored"], (44, 36, 6))
    nibabel.save(larger, volumes / "masks" / "v1.nii.gz")
    (volumes / "masks" / "v2.nii.gz").unlink()
    (volumes / "images" / "v3_0000.nii.gz").write_bytes(gzip.compress(b"no volume"))
    four = nibabel.Nifti1Image(np.zeros((4, 4, 2, 2), np.uint8), np.eye(4))
    nibabel.save(four, volumes / "images" / "v4_0000.nii.gz")
    colours = nibabel.Nifti1Image(np.zeros((4, 4, 2), COLOURS), np.eye(4))
    nibabel.save(colours, volumes / "images" / "v5_0000.nii.gz")
    nibabel.save(colours, volumes / "masks" / "v6.nii.gz")
    with pytest.raises(ValueError) as told:
        ingest.run(config, paths)
    message = str(told.value)
    for part in (
        "v5: other voxels: images/v5_0000.nii.gz",
        "v6_z0000: other voxels: masks/v6.nii.gz",
        "v0_z0000: another space: masks/v0.nii.gz: expected the shape and affine of images/v0_0000.nii.gz, found an af",
        "v1_z0000: another space: masks/v1.nii.gz",
        "v2: missing segmentation: images/v2_0000.nii.gz",
        "v3: no NIfTI",
        "v4: other axes: images/v4_0000.nii.gz: expected a volume of three axes, found 4 x 4 x 2 x 2",
    ):
        assert part in message, message
    told = [line for line in message.splitlines() if "masks/v1.nii.gz" in line]
    assert len(told) == 1 and told[0].endswith("(and 5 more cases: v1_z0001, v1_z0002, v1_z0003, v1_z0004, v1_z0005)")


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 1), np.uint8), np.eye(4)), folder / name)
    return folder


def read(folder: Path) -> RawDataset:
    with RawFolder(folder) as raw:
        return READERS["nifti"].read(raw, IngestSettings())


@pytest.mark.parametrize(
    ("names", "groups", "channels"),
    [
        (("imagesTr/amos_0001", "labelsTr/amos_0001", "imagesTs/amos_0008"), ["amos_0001", "amos_0008"], []),
        (("images/p_0000", "masks/p_0000", "images/p_0001", "masks/p_0001"), ["p", "p_0001"], []),
        (("imagesTr/p_0000", "imagesTr/p_0001", "labelsTr/p", "imagesTs/q_0001"), ["p", "q_0001"], ["imagesTr/p_0001"]),
        (
            ("imagesTr/p_0001_0000", "imagesTr/p_0001_0001", "labelsTr/p_0001", "imagesTs/q_0000", "imagesTs/q_0002"),
            ["p_0001", "q"],
            ["imagesTr/p_0001_0001", "imagesTs/q_0002"],
        ),
    ],
)
def test_a_numbered_volume_is_another_channel_only_beside_a_first_one(
    names: tuple[str, ...], groups: list[str], channels: list[str], tmp_path: Path
) -> None:
    dataset = read(put(tmp_path, *(f"{name}.nii.gz" for name in names)))
    assert dataset.faults == () and [case.group for case in dataset.cases] == groups
    assert [found.detail for found in dataset.findings] == [
        f"{name}.nii.gz: only the first channel is read" for name in channels
    ]


def test_a_patient_without_segmentation_is_told_where_numbers_are_no_channels(tmp_path: Path) -> None:
    names = ("images/p_0000.nii.gz", "masks/p_0000.nii.gz", "images/p_0001.nii.gz")
    (fault,) = read(put(tmp_path, *names)).faults
    assert (fault.case_id, fault.fault) == ("p_0001", "missing segmentation")


def test_two_volumes_of_one_name_and_masks_without_one_are_told(tmp_path: Path) -> None:
    put(
        tmp_path, "images/a.nii.gz", "images/a_0000.nii.gz", "masks/a.nii.gz", "images/b.nii", "images/b.nii.gz",
        "masks/b.nii.gz", "images/c.nii.gz", "masks/c.nii", "masks/c.nii.gz", "images/d.nii.gz", "masks/gone.nii.gz",
        "images/e.nii.gz", "masks/e.nii.gz",
    )  # fmt: skip
    dataset = read(tmp_path)
    assert [case.case_id for case in dataset.cases] == ["e_z0000"] and dataset.findings == ()
    one_name = "several volumes: images/{}: expected one volume of the name {} (_0000 is no part of it), found {}; {}"
    advice = "delete or rename the others"
    assert [str(fault) for fault in dataset.faults] == [
        "a: " + one_name.format("a.nii.gz", "a", "images/a.nii.gz, images/a_0000.nii.gz", advice),
        "b: " + one_name.format("b.nii", "b", "images/b.nii, images/b.nii.gz", advice),
        "c: several segmentations: images/c.nii.gz: expected one masks or labels/c.nii.gz, found masks/c.nii, "
        "masks/c.nii.gz; delete the others",
        "d: missing segmentation: images/d.nii.gz: expected one masks or labels/d.nii.gz, found none; add it, or move "
        "the volume into imagesTs/, which has none",
        "gone: missing image: masks/gone.nii.gz: expected its volume gone.nii.gz, found none; fetch the volume, or "
        "delete the mask",
    ]


def test_a_faulty_volume_is_read_once(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (volumes / "masks" / "v0.nii.gz").write_bytes(gzip.compress(b"no volume"))
    opened: list[str] = []
    with RawFolder(volumes) as raw:
        dataset = READERS["nifti"].read(raw, IngestSettings())
        whole = RawFolder.read
        monkeypatch.setattr(RawFolder, "read", lambda self, name: opened.append(name) or whole(self, name))
        found = [check_case(raw, case, IngestSettings()) for case in dataset.cases if case.group == "v0"]
    assert opened == ["images/v0_0000.nii.gz", "masks/v0.nii.gz"]
    assert [len(one.faults) for one in found] == [1] * 6 and found[5].faults[0].fault == "no NIfTI"


def test_the_real_pair_is_cut_into_planes(real_data: Path, tmp_path: Path) -> None:
    for folder, name in (("images", "example_ct_sm"), ("masks", "example_seg")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "thorax.nii.gz").write_bytes((real_data / "nifti" / f"{name}.nii.gz").read_bytes())
    with RawFolder(tmp_path) as raw:
        dataset = READERS["nifti"].read(raw, IngestSettings())
        checked = check_case(raw, dataset.cases[12], IngestSettings(window=(-160, 240)))
    assert len(dataset.cases) == 30 and not dataset.faults
    assert checked.shape == (101, 122) and checked.label is not None and checked.label.count > 3
    assert checked.image is not None and cv2.cvtColor(checked.image, cv2.COLOR_RGB2GRAY).std() > 30
