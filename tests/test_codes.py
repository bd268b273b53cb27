"""Images as codes and back, drawn images, and the table of codes: through runs with untrained weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.code_table import LEAST_CASES, lay_out, write_codes
from pipeline.codes import (
    CONTEXT,
    Coder,
    Stored,
    _jpeg,
    _pieced,
    _told,
    decode_codes,
    encode_images,
    generate_images,
    nearest_jpeg,
)
from pipeline.config import ComputeSettings, Config, dump_config
from pipeline.metrics.stain import psnr
from pipeline.networks import build_network
from pipeline.outputs import Outputs
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, write_png
from pipeline.trained import TrainedRun, open_run
from pipeline.training import save_checkpoint

HERE = ComputeSettings(device="cpu", threads=1, precision="fp32", channels_last=False)


def run_in(folder: Path, network: dict[str, object], task: str = "reconstruction", seed: int = 0) -> TrainedRun:
    """A run's folder with weights as they start, and batch statistics that are not those of a new layer."""
    config = Config.model_validate(
        {"run": folder.name, "seed": 7, "train": {"task": task, "network": network}, "compute": HERE.model_dump()}
    )
    is_image = task == "reconstruction"
    activation = "identity" if network["name"] == "autoencoder:linear" else "sigmoid"
    outputs = Outputs("image", ("red", "green", "blue"), activation, "image")
    if not is_image:
        outputs = Outputs("binary", ("foreground",), "sigmoid", "semantic")
    torch.manual_seed(seed)
    built = build_network(config.train.network, 3, len(outputs.channels))
    built.train()
    with torch.no_grad():
        for _ in range(3):
            built(torch.rand(4, 3, 64, 64))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "model.json").write_text(json.dumps(outputs.as_dict()))
    save_checkpoint(folder / "best.pt", {"network": built.state_dict(), "step": 1})
    return open_run(folder)


def tissue(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured blobs, (height, width, 3) uint8."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


CONVOLUTIONAL = {"name": "autoencoder:convolutional", "width": 4, "depth": 2, "code": 6}
VARIATIONAL = {"name": "autoencoder:variational", "width": 4, "depth": 2, "code": 6}


# --- Coding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [CONVOLUTIONAL, VARIATIONAL, {"name": "autoencoder:linear", "depth": 2, "code": 6}],
    ids=lambda network: str(network["name"]),
)
def test_pieces_make_the_same_code_and_the_same_image_as_the_whole(tmp_path: Path, network: dict[str, object]) -> None:
    image = tissue(165, 211)
    whole, pieced = (Coder(run_in(tmp_path / name, network), HERE) for name in ("whole", "pieced"))
    whole.piece, pieced.piece = 1000, 24
    code = whole.encode(image)
    assert code.shape == (6, 42, 53)
    np.testing.assert_allclose(pieced.encode(image), code, atol=1e-4)
    decoded = whole.decode(code, 165, 211)
    assert decoded.shape == image.shape and decoded.std() > 1
    assert np.abs(pieced.decode(code, 165, 211).astype(int) - decoded).max() <= 1


def test_pieces_that_disagree_fade_into_each_other() -> None:
    seen: list[tuple[int, int]] = []

    def compute(rows: slice, columns: slice) -> np.ndarray:
        seen.append((columns.start, columns.stop))
        return np.full((1, 8 * (rows.stop - rows.start), 8 * (columns.stop - columns.start)), len(seen) - 1.0)

    joined = _pieced((10, 60), 24, 8, (0, 0), compute)
    assert joined.shape == (1, 80, 480) and (joined == joined[:, :1]).all()
    line, count = joined[0, 0], len(seen)
    assert line[0] == 0 and line[-1] == count - 1 and count >= 3
    # From one piece to the next over a place of 8 pixels, in even steps and where both saw enough around.
    assert (np.diff(line) > -1e-6).all() and np.diff(line).max() < 1 / 8 + 1e-6
    for number, ((start, _), (_, stop)) in enumerate(zip(seen[1:], seen[:-1], strict=True)):
        assert line[8 * (start + CONTEXT) - 1] == number and line[8 * (stop - CONTEXT)] == number + 1


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (64, 64), (65, 130)])
def test_every_size_is_coded(tmp_path: Path, size: tuple[int, int]) -> None:
    coder = Coder(run_in(tmp_path / "run", CONVOLUTIONAL), HERE)
    assert coder.decode(coder.encode(tissue(*size)), *size).shape == (*size, 3)
    with pytest.raises(ValueError, match="expected a code of 6x2x2 numbers for an image of 5x5 pixels"):
        coder.decode(np.zeros((6, 3, 3), np.float32), 5, 5)


def test_a_variational_code_in_storage_is_no_sample(tmp_path: Path) -> None:
    trained = run_in(tmp_path / "run", VARIATIONAL)
    coder = Coder(trained, HERE)
    coder.network.use = "sample"
    image = tissue(40, 40)
    np.testing.assert_array_equal(coder.encode(image), coder.encode(image))


# --- Storage ------------------------------------------------------------------------------------------------------


def test_encoded_images_come_back_the_same_each_time(tmp_path: Path) -> None:
    trained = run_in(tmp_path / "run", CONVOLUTIONAL)
    for number, size in enumerate(((40, 56), (33, 21))):
        write_png(tmp_path / "in" / f"a{number}.png", tissue(*size, seed=number))
    encode_images(str(trained.folder), tmp_path / "in", tmp_path / "codes", 6, HERE)
    encoded = {file.name: file.read_bytes() for file in sorted((tmp_path / "codes").iterdir())}
    encode_images(str(trained.folder), tmp_path / "in", tmp_path / "codes", 6, HERE)
    assert encoded == {file.name: file.read_bytes() for file in sorted((tmp_path / "codes").iterdir())}
    assert [*encoded] == ["a0.code", "a1.code", "codes.csv"]
    for out in ("once", "again"):
        decode_codes(str(trained.folder), tmp_path / "codes", tmp_path / out, HERE)
    rows = list(csv.DictReader(encoded["codes.csv"].decode().splitlines()))
    for number, row in enumerate(rows):
        once, again = ((tmp_path / out / f"a{number}.png").read_bytes() for out in ("once", "again"))
        image = read_image(tmp_path / "in" / f"a{number}.png")
        assert once == again
        assert int(row["bytes"]) == len(encoded[f"a{number}.code"])
        assert float(row["raw_ratio"]) == pytest.approx(image.nbytes / int(row["bytes"]), abs=1e-3)
        assert int(row["file_bytes"]) == (tmp_path / "in" / f"a{number}.png").stat().st_size
        assert float(row["psnr"]) == pytest.approx(
            psnr(read_image(tmp_path / "once" / f"a{number}.png"), image), abs=1e-3
        )


def test_another_run_does_not_decode(tmp_path: Path) -> None:
    own, other = (run_in(tmp_path / name, CONVOLUTIONAL, seed=seed) for seed, name in enumerate(("own", "other")))
    write_png(tmp_path / "in" / "a.png", tissue(20, 20))
    encode_images(str(own.folder), tmp_path / "in", tmp_path / "codes", compute=HERE)
    with pytest.raises(ValueError, match=r"a\.code: expected a code for the weights of .*other.*; give the run that"):
        decode_codes(str(other.folder), tmp_path / "codes", tmp_path / "out", HERE)
    assert not (tmp_path / "out").exists()


def test_faults_are_listed_together_and_the_rest_is_done(tmp_path: Path) -> None:
    trained = run_in(tmp_path / "run", CONVOLUTIONAL)
    write_png(tmp_path / "in" / "good.png", tissue(20, 20))
    for name in ("bad.png", "worse.png"):
        (tmp_path / "in" / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2 of 3 images could not be used:\n.*bad\.png(.|\n)*worse\.png"):
        encode_images(str(trained.folder), tmp_path / "in", tmp_path / "codes", compute=HERE)
    (tmp_path / "codes" / "bad.code").write_bytes(b"no code")
    with pytest.raises(ValueError, match=r"1 of 2 codes could not be used:\n.*bad\.code: expected a code that starts"):
        decode_codes(str(trained.folder), tmp_path / "codes", tmp_path / "out", HERE)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["good.png"]
    with pytest.raises(ValueError, match=r"expected codes \(\*\.code\)"):
        decode_codes(str(trained.folder), tmp_path / "in", tmp_path / "out", HERE)


def test_an_image_longer_than_any_jpeg_is_named(tmp_path: Path) -> None:
    trained = run_in(tmp_path / "run", CONVOLUTIONAL)
    (tmp_path / "in").mkdir()
    for name, width in (("a.png", 65501), ("b.png", 40)):
        cv2.imwrite(str(tmp_path / "in" / name), tissue(2, width))
    with pytest.raises(ValueError, match=r"a\.png: expected sides of at most 65,500 pixels.* found 65,501 x 2; cut"):
        encode_images(str(trained.folder), tmp_path / "in", tmp_path / "codes", compute=HERE)
    assert sorted(file.name for file in (tmp_path / "codes").iterdir()) == ["b.code", "codes.csv"]


def test_runs_without_a_code_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "in" / "a.png", tissue(20, 20))
    unet = run_in(tmp_path / "unet", {"name": "unet", "width": 4, "depth": 1})
    with pytest.raises(ValueError, match="expected a run of an autoencoder, which has a code, found the network unet"):
        encode_images(str(unet.folder), tmp_path / "in", tmp_path / "codes", compute=HERE)
    masks = run_in(tmp_path / "masks", CONVOLUTIONAL, task="segmentation")
    with pytest.raises(ValueError, match="expected a run that makes images, found one trained for segmentation"):
        encode_images(str(masks.folder), tmp_path / "in", tmp_path / "codes", compute=HERE)
    with pytest.raises(ValueError, match="--bits: expected 1 to 16, found 0"):
        encode_images(str(unet.folder), tmp_path / "in", tmp_path / "codes", bits=0)


def test_the_nearest_jpeg_is_found() -> None:
    image = tissue(64, 80)
    sizes = {quality: len(_jpeg(image, quality)) for quality in range(1, 101)}
    for size in (0, sizes[10], (sizes[50] + sizes[60]) // 2, 10**6):
        quality, found, quality_psnr = nearest_jpeg(image, size)
        assert found == sizes[quality]
        assert abs(found - size) == min(abs(other - size) for other in sizes.values())
        assert 10 < quality_psnr < 60


def test_what_is_told_of_jpeg_and_of_sizes_is_what_was_found() -> None:
    def stored(size: int, file: int, psnr: float, jpeg: int, jpeg_psnr: float) -> Stored:
        return Stored("a.png", 10, 10, size, file, psnr, 50, jpeg, jpeg_psnr)

    ratios, _, jpeg = _told([stored(100, 50, 30, 104, 31), stored(100, 50, 30, 96, 29), stored(100, 50, 30, 150, 31)])
    assert "3.0 times smaller than their pixels, 2.0 times larger than their files" in ratios
    assert jpeg == (
        "At equal or fewer bytes the code is better for 1 of 3 images, JPEG for 1; 1 without a JPEG of that size, or "
        "with equal PSNR"
    )
    assert [*_told([stored(100, 50, 30, 90, 31)])][2].endswith("the code is better for 0 of 1 images, JPEG for 1")


def everything_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}


def test_nothing_of_another_command_is_replaced(tmp_path: Path) -> None:
    own, other = (
        str(run_in(tmp_path / name, VARIATIONAL, seed=seed).folder) for seed, name in enumerate(("own", "other"))
    )
    for folder, seed in (("in", 0), ("others", 1)):
        write_png(tmp_path / folder / "a.png", tissue(20, 20, seed))
    images, codes, back, drawn = (tmp_path / name for name in ("in", "codes", "back", "drawn"))
    encode_images(own, images, codes, compute=HERE)
    decode_codes(own, codes, back, HERE)
    generate_images(own, drawn, 3, 16, compute=HERE)
    before = [everything_in(folder) for folder in (images, codes, back, drawn)]
    same = "expected an empty folder or the result of the same command, found "
    with pytest.raises(ValueError, match=same + r"1 codes of other weights or bits, a\.code among them"):
        encode_images(other, images, codes, compute=HERE)
    with pytest.raises(ValueError, match="other weights or bits"):
        encode_images(own, images, codes, 4, HERE)
    with pytest.raises(ValueError, match=r"never overwritten: .* another at .*a\.code"):
        encode_images(own, tmp_path / "others", codes, compute=HERE)
    with pytest.raises(ValueError, match=same + r"1 other files: a\.png"):
        encode_images(own, images, images, compute=HERE)
    with pytest.raises(ValueError, match=same + r"2 other files: a\.code, codes\.csv"):
        decode_codes(own, codes, codes, HERE)
    with pytest.raises(ValueError, match=r"never overwritten: .* another at .*a\.png"):
        decode_codes(own, codes, images, HERE)
    with pytest.raises(ValueError, match=r"never overwritten: .* another at .*tile_0001\.png"):
        generate_images(other, drawn, 3, 16, compute=HERE)
    with pytest.raises(ValueError, match=same + r"1 other files: tile_0003\.png"):
        generate_images(own, drawn, 2, 16, compute=HERE)
    encode_images(own, images, codes, compute=HERE)
    decode_codes(own, codes, back, HERE)
    generate_images(own, drawn, 3, 16, compute=HERE)
    assert before == [everything_in(folder) for folder in (images, codes, back, drawn)]


@pytest.mark.parametrize("out", ["note", "note/below"])
def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path, out: str) -> None:
    run = str(run_in(tmp_path / "run", VARIATIONAL).folder)
    write_png(tmp_path / "in" / "a.png", tissue(20, 20))
    encode_images(run, tmp_path / "in", tmp_path / "codes", compute=HERE)
    (tmp_path / "note").write_text("mine")
    found = "--out .*note.*: expected a folder, found (a file|that .*note is a file); name another folder"
    with pytest.raises(ValueError, match=found):
        encode_images(run, tmp_path / "in", tmp_path / out, compute=HERE)
    with pytest.raises(ValueError, match=found):
        decode_codes(run, tmp_path / "codes", tmp_path / out, HERE)
    with pytest.raises(ValueError, match=found):
        generate_images(run, tmp_path / out, 2, 16, compute=HERE)
    assert (tmp_path / "note").read_text() == "mine"


# --- Drawing ------------------------------------------------------------------------------------------------------


def test_drawn_images_depend_on_the_seed_and_not_on_their_number(tmp_path: Path) -> None:
    trained = run_in(tmp_path / "run", VARIATIONAL)
    for out, count, seed in (("a", 5, None), ("b", 2, 7), ("c", 2, 8)):
        generate_images(str(trained.folder), tmp_path / out, count, 24, seed, HERE)
    tiles = {out: (tmp_path / out / "tile_0002.png").read_bytes() for out in "abc"}
    assert tiles["a"] == tiles["b"] != tiles["c"]
    assert read_image(tmp_path / "a" / "tile_0005.png").shape == (24, 24, 3)
    grid = read_image(tmp_path / "a" / "grid.png")
    assert grid.shape == (2 * 28 + 4, 3 * 28 + 4, 3)
    np.testing.assert_array_equal(grid[4:28, 32:56], read_image(tmp_path / "a" / "tile_0002.png"))
    assert (grid[32:, 60:] == 255).all()


def test_only_a_variational_run_draws(tmp_path: Path) -> None:
    trained = run_in(tmp_path / "run", CONVOLUTIONAL)
    with pytest.raises(ValueError, match=r"expected a variational autoencoder.*found autoencoder:convolutional"):
        generate_images(str(trained.folder), tmp_path / "out", compute=HERE)
    with pytest.raises(ValueError, match="--count: expected 1 to 9999, found 0"):
        generate_images(str(trained.folder), tmp_path / "out", 0, compute=HERE)
    with pytest.raises(ValueError, match="--seed: expected 0 to 4294967295, found -5"):
        generate_images(str(trained.folder), tmp_path / "out", seed=-5, compute=HERE)


# --- The table ----------------------------------------------------------------------------------------------------


def test_the_map_keeps_clusters_apart_and_is_the_same_each_time() -> None:
    generator = np.random.default_rng(2)
    centres = 6 * generator.normal(size=(3, 12))
    codes = np.concatenate([centre + generator.normal(size=(20, 12)) for centre in centres])
    places, components, told = lay_out(codes, 4)
    assert places.shape == (60, 2) and components.shape == (60, 5)
    assert "t-SNE of 12 principal components" in told
    np.testing.assert_array_equal(places, lay_out(codes, 4)[0])
    middles = places.reshape(3, 20, 2).mean(axis=1)
    inside = max(
        np.linalg.norm(own - middle, axis=1).max()
        for own, middle in zip(places.reshape(3, 20, 2), middles, strict=True)
    )
    apart = min(np.linalg.norm(middles[i] - middles[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert apart > inside


def test_few_cases_are_laid_out_by_principal_components() -> None:
    from sklearn.decomposition import PCA

    codes = np.random.default_rng(2).normal(size=(LEAST_CASES - 1, 6)) * [9, 1, 1, 1, 1, 0]
    places, _, told = lay_out(codes, 1)
    assert told == "the first two principal components"
    scaled = (codes[:, :5] - codes[:, :5].mean(axis=0)) / codes[:, :5].std(axis=0)
    np.testing.assert_allclose(places, PCA(2, svd_solver="full").fit_transform(scaled), atol=1e-8)
    assert lay_out(np.ones((40, 3)), 1)[2] == "every code is the same"
    assert lay_out(np.arange(4.0)[:, None], 1)[0].shape == (4, 2)


def test_the_table_of_codes(tmp_path: Path) -> None:
    trained = run_in(tmp_path / "run", CONVOLUTIONAL)
    paths = Paths.of(trained.config, tmp_path)
    cases = []
    for number in range(8):
        name = f"images/c{number}.png"
        write_png(paths.image(name), tissue(24, 24 + number, seed=number))
        cases.append(Case(f"c{number}", "d", name, None, "none", f"p{number}", "a", 24, 24 + number, None, name))
    told = write_codes(trained, cases[::-1], paths, tmp_path / "codes.csv", HERE)
    first = (tmp_path / "codes.csv").read_bytes()
    write_codes(trained, cases, paths, tmp_path / "codes.csv", HERE)
    assert first == (tmp_path / "codes.csv").read_bytes()
    rows = list(csv.DictReader(first.decode().splitlines()))
    assert told == "the first two principal components"
    assert [*rows[0]] == ["case_id", "x", "y", "stratum", "group", "pc_1", "pc_2", "pc_3", "pc_4", "pc_5"]
    assert [row["case_id"] for row in rows] == [case.case_id for case in cases]
    assert all(row["group"] == f"p{number}" and row["x"] == row["pc_1"] for number, row in enumerate(rows))
