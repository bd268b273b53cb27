"""Three dimensions: blocks of neighbouring planes to learn from, volumes to predict, the same files in and out."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from pipeline.augmentation import Augmentation, _mirrored_places
from pipeline.case_maps import by_volume
from pipeline.config import (
    AugmentSettings,
    ComputeSettings,
    Config,
    ConfigError,
    NetworkSettings,
    PredictSettings,
    load_config,
)
from pipeline.device import freeze
from pipeline.inference import Ensemble, VolumePredictor, predictor_of
from pipeline.networks import Network, build_network
from pipeline.networks.named import AnyVolume
from pipeline.records.case import Case, read_cases
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_label, read_probabilities
from pipeline.records.volumes import read_volume
from pipeline.runner import run
from pipeline.stages import predict
from pipeline.stages.predict import predict_images, predict_slides
from pipeline.tasks.segmentation import _refuse_divided_volumes
from pipeline.trained import open_run

CONFIG = Path(__file__).parents[1] / "configs" / "nifti_volumes.yaml"
CPU = freeze(ComputeSettings(device="cpu", threads=1, precision="fp32"))
SMALL = NetworkSettings(name="monai:UNet", arguments={"channels": [4, 8], "strides": [2], "num_res_units": 0})


# --- Blocks -----------------------------------------------------------------------------------------------------------


@given(st.integers(-40, 40), st.integers(1, 40), st.integers(1, 12))
def test_places_beyond_the_ends_are_mirrored(start: int, count: int, length: int) -> None:
    found = _mirrored_places(np.arange(start, start + count), length)
    mirrored = np.pad(np.arange(length), 100, mode="reflect") if length > 1 else np.zeros(201, int)
    np.testing.assert_array_equal(found, mirrored[100 + start : 100 + start + count])


@examples(deadline=None, max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(2, 6))
def test_all_planes_of_a_block_are_moved_and_changed_alike(seed: int, planes: int) -> None:
    generator = np.random.default_rng(0)
    plane = generator.integers(0, 256, (50, 40, 3)).astype(np.uint8)
    label = generator.integers(0, 3, (50, 40)).astype(np.uint16)
    augmentation = Augmentation(AugmentSettings(crop=32, colour=1.0, noise=0.0, blur=0.0, dropout=0.0, elastic=0.5))
    block, labels = augmentation.block(np.stack([plane] * 4), np.stack([label] * 4), planes, seed)
    assert block.shape == (planes, 32, 32, 3) and labels.shape == (planes, 32, 32)
    assert (block == block[0]).all() and (labels == labels[0]).all()


def test_light_changes_by_one_rule_in_all_planes_and_noise_is_drawn_for_each() -> None:
    planes = np.full((4, 32, 32, 3), 100, np.uint8)
    planes[2:, 16:] = 250
    label = np.zeros(planes.shape[:3], np.uint16)
    settings = {"crop": 32, "scale": (1.0, 1.0), "elastic": 0.0, "blur": 0.0, "dropout": 0.0, "grey": 0.0}
    lit = Augmentation(AugmentSettings(**settings, colour=1.0, noise=0.0))  # type: ignore[arg-type]
    noisy = Augmentation(AugmentSettings(**settings, colour=0.0, noise=1.0, stain_jitter=0.0))  # type: ignore[arg-type]
    for seed in range(12):
        block, _ = lit.block(planes, label, 4, seed)
        # Two levels in, two levels out, whichever planes hold them.
        assert len(np.unique(block.reshape(-1, 3), axis=0)) == 2
        block, _ = noisy.block(planes, label, 4, seed)
        assert (block[0] != block[1]).any() and (block[2] != block[3]).any()


def test_blur_and_holes_keep_to_their_planes() -> None:
    planes = np.zeros((8, 64, 64, 3), np.uint8)
    planes[1::2] = 200
    label = np.zeros(planes.shape[:3], np.uint16)
    still = {"crop": 64, "scale": (1.0, 1.0), "elastic": 0.0, "grey": 0.0, "colour": 0.0, "noise": 0.0,
             "stain_jitter": 0.0}  # fmt: skip
    blurred = Augmentation(AugmentSettings(**still, blur=1.0, dropout=0.0))  # type: ignore[arg-type]
    holed = Augmentation(AugmentSettings(**still, blur=0.0, dropout=1.0))  # type: ignore[arg-type]
    for seed in range(12):
        block, _ = blurred.block(planes, label, 8, seed)
        assert all(len(np.unique(plane)) == 1 for plane in block)
        block, _ = holed.block(planes, label, 8, seed)
        # Cut in every plane at the same places, as large as in one image.
        uncut = [(plane == plane[0, 0]).all(axis=2) for plane in block]
        assert all((one == uncut[0]).all() for one in uncut) and (~uncut[0]).any(axis=1).mean() < 0.85


def test_blocks_are_neighbouring_planes_in_both_directions_and_reach_all() -> None:
    volume = (
        np.repeat(np.arange(9, dtype=np.uint8)[:, None, None, None], 32, axis=1).repeat(32, axis=2).repeat(3, axis=3)
    )
    label = volume[..., 0].astype(np.uint16)
    augmentation = Augmentation(AugmentSettings(crop=32, recipe="geometry"))
    firsts, steps = set(), set()
    for seed in range(120):
        block, labels = augmentation.block(volume, label, 4, seed)
        np.testing.assert_array_equal(block[..., 0], labels)
        values = block[:, 0, 0, 0].astype(int)
        assert len(set(np.diff(values))) == 1
        firsts.add(int(values.min()))
        steps.add(int(values[1] - values[0]))
    assert firsts == set(range(6)) and steps == {-1, 1}


# --- Networks and predictors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["UNet", "BasicUNet", "DynUNet", "SegResNet", "AttentionUnet"])
def test_networks_of_volumes_keep_every_size(name: str) -> None:
    network = build_network(NetworkSettings(name=f"monai:{name}"), 3, 2, dimensions=3).eval()
    assert isinstance(network, Network) and network.dimensions == 3
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 5, 33, 40)).shape == (1, 2, 5, 33, 40)


def test_a_volume_of_whole_multiples_is_not_padded() -> None:
    arguments = {"channels": [4, 8, 8], "strides": [[1, 2, 2], 2], "num_res_units": 0}
    network = build_network(NetworkSettings(name="monai:UNet", arguments=arguments), 3, 2, dimensions=3).eval()
    assert isinstance(network, AnyVolume) and network.multiples == (2, 4, 4)
    seen: list[tuple[int, ...]] = []
    network.network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    with torch.inference_mode():
        network(torch.rand(1, 3, 2, 8, 4))
        network(torch.rand(1, 3, 3, 5, 9))
    assert seen == [(2, 8, 4), (4, 8, 12)]


def test_networks_of_images_are_refused_for_volumes() -> None:
    with pytest.raises(ValueError, match="expected monai:<Network> for volumes, found unet"):
        build_network(NetworkSettings(), 3, 2, dimensions=3)
    with pytest.raises(ValueError, match="monai:UNETR: expected a network that takes volumes of any size"):
        build_network(NetworkSettings(name="monai:UNETR"), 3, 2, dimensions=3)


def predictor(window: tuple[int, int, int], **more: object) -> VolumePredictor:
    torch.manual_seed(0)
    network = build_network(SMALL, 3, 2, dimensions=3).eval()
    made = predictor_of(
        network, "softmax", "stored", PredictSettings(**more), CPU, makes_images=False, name="that run", window=window  # type: ignore[arg-type]
    )  # fmt: skip
    assert isinstance(made, VolumePredictor)
    return made


def volume_of(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    grey = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3)


def test_a_volume_of_one_window_is_what_the_network_says() -> None:
    planes = volume_of(1, (8, 32, 32))
    predict = predictor((8, 32, 32))
    with torch.inference_mode():
        inputs = torch.from_numpy(planes).float().div(255).movedim(-1, 0)[None]
        expected = torch.softmax(predict.network(inputs), dim=1)[0].numpy()
    np.testing.assert_allclose(predict(planes), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 20, 50), (21, 45, 33)])
@pytest.mark.parametrize("flips", ["none", "all"])
def test_volumes_of_any_size_have_probabilities_everywhere(shape: tuple[int, int, int], flips: str) -> None:
    maps = predictor((8, 32, 32), flips=flips)(volume_of(2, shape))
    assert maps.shape == (2, *shape) and maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum(axis=0), 1.0, atol=1e-5)


def test_flips_make_the_map_of_a_turned_volume_the_turned_map() -> None:
    planes = volume_of(3, (8, 32, 32))
    predict = predictor((8, 32, 32), flips="all")
    turned = predict(np.ascontiguousarray(np.rot90(planes, axes=(1, 2))))
    np.testing.assert_allclose(turned, np.rot90(predict(planes), axes=(2, 3)), atol=1e-5)


def test_images_are_refused_by_a_network_of_volumes_and_so_are_mixed_members() -> None:
    predict = predictor((8, 32, 32))
    with pytest.raises(ValueError, match="that run: expected the planes of a volume, found an image"):
        predict(volume_of(0, (4, 32, 32))[0])
    with pytest.raises(ValueError, match="found both"):
        Ensemble([predict, lambda image: image])
    assert Ensemble([predict, predict]).takes_volumes and not Ensemble([np.abs]).takes_volumes


# --- The line ---------------------------------------------------------------------------------------------------------


TINY = [
    "augment.crop=32", "augment.planes=4", "augment.elastic=0", "train.network.name=monai:UNet",
    "train.network.arguments={channels: [4, 8], strides: [2], num_res_units: 0}", "train.batch=2", "train.steps=3",
    "train.validations=1", "compute.device=cpu", "compute.threads=1", "compute.workers=0",
]  # fmt: skip


def settings_of(root: Path, *more: str) -> tuple[Config, Paths]:
    config = load_config(CONFIG, [*TINY, *more])
    return config, Paths.of(config, root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of nine patients, one of them without truth, from raw files to a report."""
    root = tmp_path_factory.mktemp("volumes")
    raw = root / "data" / "raw" / "nifti"
    for folder in ("images", "masks", "imagesTs"):
        (raw / folder).mkdir(parents=True)
    generator = np.random.default_rng(4)
    for number in range(10):
        values = generator.normal(-300, 60, (40, 36, 7)).astype(np.int16)
        truth = np.zeros(values.shape, np.uint8)
        truth[10:30, 9:27, 2:5] = 1
        values[truth > 0] += 600
        name = f"p{number}.nii.gz"
        nibabel.save(
            nibabel.Nifti1Image(values, np.diag([0.7, 0.7, 3.0, 1.0])),
            raw / ("imagesTs" if number == 9 else "images") / name,
        )
        if number < 9:
            nibabel.save(nibabel.Nifti1Image(truth, np.diag([0.7, 0.7, 3.0, 1.0])), raw / "masks" / name)
    config, paths = settings_of(root)
    run("report", config, paths, with_needs=True)
    return root


def test_volumes_are_learned_in_three_dimensions_and_go_back_into_their_space(trained: Path, tmp_path: Path) -> None:
    _, paths = settings_of(trained)
    assert (paths.reports / "report.html").exists()
    opened = open_run(paths.train)
    assert opened.takes_volumes and opened.network().dimensions == 3
    cases = [case for case in read_cases(paths.cases) if case.group == "p9"]
    maps = np.stack([read_probabilities(paths.predict / f"{case.case_id}.tif") for case in cases])
    assert maps.shape[0] == 7
    given = nibabel.load(trained / "data" / "raw" / "nifti" / "imagesTs" / "p9.nii.gz")
    predict_images(
        str(paths.train), trained / "data" / "raw" / "nifti" / "imagesTs", tmp_path, overrides=["compute.threads=1"]
    )
    again = nibabel.load(tmp_path / "p9.nii.gz")
    assert again.shape == given.shape
    np.testing.assert_allclose(again.affine, given.affine, atol=1e-6)
    masks = read_volume((tmp_path / "p9.nii.gz").read_bytes()).values
    for case, mask in zip(cases, masks, strict=True):
        np.testing.assert_array_equal(mask, read_label(paths.reports / "masks" / f"{case.case_id}.png"))


def test_a_rerun_gives_the_same_maps(trained: Path, tmp_path: Path) -> None:
    config, paths = settings_of(trained)
    before = {file.name: file.read_bytes() for file in paths.predict.glob("*.tif")}
    run("train", config, paths, force=True)
    run("predict", config, paths, force=True)
    assert before == {file.name: file.read_bytes() for file in paths.predict.glob("*.tif")}


def test_an_ensemble_of_volumes_goes_the_same_way(trained: Path) -> None:
    members = "train={members: [nifti_volumes]}"
    plain = [setting for setting in TINY if setting.startswith("compute.")]
    config = load_config(
        None, ["dataset=nifti", "split.groups=given", "run=both", "predict.overlap=0.5", members, *plain]
    )
    paths = Paths.of(config, trained)
    run("evaluate", config, paths, with_needs=True)
    _, alone = settings_of(trained)
    for file in alone.predict.glob("*.tif"):
        np.testing.assert_array_equal(read_probabilities(file), read_probabilities(paths.predict / file.name))


def test_a_corrected_space_is_written_again_and_nothing_is_learned_again(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(trained, root)
    config, paths = settings_of(root)
    raw = next((paths.raw / "imagesTs").iterdir())
    before = (paths.train / "best.pt").stat().st_mtime_ns
    nibabel.save(nibabel.Nifti1Image(nibabel.load(raw).get_fdata().astype(np.int16), np.diag([0.5, 0.5, 2, 1])), raw)
    run("evaluate", config, paths, with_needs=True)
    assert nibabel.load(paths.reports / "volumes" / "p9.nii.gz").header.get_zooms() == (0.5, 0.5, 2.0)
    assert (paths.train / "best.pt").stat().st_mtime_ns == before


def test_the_planes_of_a_volume_are_handed_out_together(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, paths = settings_of(trained)
    handed: list[list[Case]] = []

    def in_order(work: object, items: list[tuple[str, str, str, list[Case]]], *_: object, **__: object) -> list[int]:
        handed.extend(cases for *_, cases in items)
        return []

    monkeypatch.setattr("pipeline.fan_out.in_order", in_order)
    monkeypatch.setattr("pipeline.stages.predict._map_of", lambda *_: paths.root / "never")
    predict.run(config, paths)
    assert len(handed) > 1 and all(len(cases) == 7 and len({case.source for case in cases}) == 1 for cases in handed)


def test_images_and_slides_are_refused(trained: Path, tmp_path: Path) -> None:
    _, paths = settings_of(trained)
    with pytest.raises(ValueError, match=r"expected NIfTI volumes for the run in .*found images"):
        predict_images(str(paths.train), trained / "data" / "ingest" / "nifti" / "images", tmp_path)
    with pytest.raises(ValueError, match="expected a run that looks at images, found one of NIfTI volumes"):
        predict_slides(str(paths.train), tmp_path, tmp_path)


def test_what_would_be_left_out_in_silence_is_refused(trained: Path, tmp_path: Path) -> None:
    _, paths = settings_of(trained)
    mixed = tmp_path / "mixed"
    shutil.copytree(trained / "data" / "raw" / "nifti" / "imagesTs", mixed)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"--overlay draws on images, found volumes in .*mixed"):
        predict_images(str(paths.train), mixed, out, overlay=True)
    with pytest.raises(ValueError, match=r"no predict\.tile .*augment\.planes and augment\.crop.* and 128"):
        predict_images(str(paths.train), mixed, out, overrides=["predict.tile=128"])
    (mixed / ".hidden.png").write_bytes(b"")
    predict_images(str(paths.train), mixed, tmp_path / "alone", overrides=["compute.threads=1"])
    (mixed / "photo.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 volume\(s\) and 1 image\(s\), such as p9\.nii\.gz and photo\.png"):
        predict_images(str(paths.train), mixed, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.network.name=unet", "train.network.arguments={}"], "train.network.name=monai:<Network>"),
        (["train.target=offsets"], "train.target=auto, binary or classes"),
        (["predict.scales=[1.4]"], r"predict\.scales=\[1\.0\]"),
        (["train.loss.boundary_weight=2"], "train.loss.boundary_weight=0"),
    ],
)
def test_settings_that_volumes_cannot_have_are_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.planes=4: three dimensions need .*{words}"):
        load_config(CONFIG, [*TINY, *settings])


def plane(case_id: str, source: str, number: int | None) -> Case:
    return Case(case_id, "d", "", "", "semantic", None, None, 4, 4, None, source, plane=number)


def test_planes_are_gathered_by_volume_in_their_order() -> None:
    cases = [plane("b1", "b.nii", 1), plane("a3", "a.nii", 3), plane("b0", "b.nii", 0), plane("a2", "a.nii", 2)]
    found = {name: [case.case_id for case in planes] for name, planes in by_volume(cases).items()}
    assert found == {"a.nii": ["a2", "a3"], "b.nii": ["b0", "b1"]}
    with pytest.raises(ValueError, match=r"1 gap\(s\) \(a\.nii without 1\); leave out whole volumes"):
        by_volume([plane("a2", "a.nii", 2), plane("a0", "a.nii", 0)])
    with pytest.raises(ValueError, match=r"expected planes of volumes \(layout nifti\), found 1 image\(s\) \(x\)"):
        by_volume([plane("x", "x.png", None)])


@pytest.mark.parametrize("planes", [(0, 1, 2), (0, 2, 4)])
def test_a_volume_that_is_partly_tested_on_is_not_learned(planes: tuple[int, ...]) -> None:
    whole = [plane(f"a{number}", "a.nii", number) for number in range(7)]
    with pytest.raises(ValueError, match=r"augment\.planes: expected (every volume in one part|neighbouring planes)"):
        _refuse_divided_volumes([[whole[number] for number in planes]], whole)
    _refuse_divided_volumes([whole, []], whole)


def test_members_of_images_and_of_volumes_are_refused_before_anything_is_tuned(trained: Path) -> None:
    flat = [setting for setting in TINY if "network" not in setting and "planes" not in setting]
    config = load_config(
        CONFIG, [*flat, "augment.planes=1", "train.network={name: unet, width: 4, depth: 2}", "run=flat"]
    )
    run("train", config, Paths.of(config, trained), with_needs=True)
    both = load_config(
        None, ["dataset=nifti", "split.groups=given", "run=mix", "train={members: [nifti_volumes, flat]}"]
    )
    with pytest.raises(ValueError, match=r"flat has dimensions 2, .*nifti_volumes 3"):
        run("train", both, Paths.of(both, trained), with_needs=True)


def test_planes_of_one_volume_on_both_sides_are_refused(trained: Path, tmp_path: Path) -> None:
    config, paths = settings_of(trained, "split.groups=none", "split.name=torn", "run=torn")
    with pytest.raises(ValueError, match=r"augment\.planes: expected (neighbouring planes|every volume in one part)"):
        run("train", config, paths, with_needs=True)
