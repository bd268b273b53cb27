"""What validation says of a network that has learned nothing yet, and crops of images that are mostly unknown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pipeline.augmentation import Augmentation
from pipeline.config import AugmentSettings
from pipeline.outputs import Outputs
from pipeline.records.case import IGNORED, Case
from pipeline.records.rasters import write_png
from pipeline.tasks.segmentation import LabelledCrops, Segmentation


def test_an_image_of_noise_scores_nothing_and_training_goes_on(tmp_path: Path) -> None:
    label = np.zeros((600, 600), np.uint16)
    label[200:240, 200:240] = 1
    write_png(tmp_path / "label.png", label)
    write_png(tmp_path / "whole.png", np.full((600, 600, 3), 255, np.uint8))
    write_png(tmp_path / "noise.png", np.zeros((600, 600, 3), np.uint8))
    case = Case("whole", "few", "whole.png", "label.png", "instance", None, None, 600, 600, None, "raw")
    noise = np.zeros((1, 600, 600), np.float32)
    noise[0, ::2, ::2] = 1.0  # 90,000 specks
    task = SimpleNamespace(
        outputs=Outputs("binary", ("foreground",), "sigmoid", "instance"),
        validation=[case, replace(case, case_id="noise", image="noise.png")],
        paths=SimpleNamespace(ingest=tmp_path, image=lambda name: tmp_path / name),
    )

    def predict(image: np.ndarray) -> np.ndarray:
        return (label > 0)[np.newaxis].astype(np.float32) if image.any() else noise

    assert Segmentation.validate(task, predict) == {
        "validation_dice": 0.5,
        "validation_iou": 0.5,
        "validation_score": 0.5,
    }


def test_crops_are_drawn_anew_where_nothing_is_known() -> None:
    label = np.full((600, 600), IGNORED, np.uint16)
    label[:300, :] = 0
    image = np.random.default_rng(0).integers(0, 256, (600, 600, 3)).astype(np.uint8)
    settings = AugmentSettings(recipe="geometry", crop=64)
    augmentation = Augmentation(settings)
    crops = SimpleNamespace(
        augmentation=augmentation, outputs=Outputs("binary", ("foreground",), "sigmoid", "coarse", cell=50),
        boundary_weight=0.0, place=(0, 1, (64, 64)), of_objects=[],
    )  # fmt: skip
    crops._crop = lambda *given: LabelledCrops._crop(crops, *given)
    case = Case("a", "few", "a.png", "a.png", "coarse", None, None, 600, 600, None, "raw", cell=50)
    redrawn = 0
    for seed in (*range(40), 2**64 - 1):
        sample = LabelledCrops.cut(crops, case, image, label, seed)
        first, known = augmentation(image, label, seed)
        assert sample["valid"].any()
        if (known != IGNORED).any():
            np.testing.assert_array_equal(sample["image"], first)
        else:
            redrawn += 1
    assert redrawn
    # An image of which nothing is known still gives a crop, from which the loss learns nothing.
    assert not LabelledCrops.cut(crops, case, image, np.full_like(label, IGNORED), 0)["valid"].any()


def test_where_pixels_are_blocks_offsets_are_means_over_objects_alone() -> None:
    label = np.zeros((64, 64), np.uint16)
    label[13:50, 13:50] = 1
    outputs = Outputs("offsets", ("foreground", "down", "right"), "sigmoid", "instance")
    assert outputs.of_objects == [1, 2]
    crops = SimpleNamespace(
        augmentation=lambda image, label, seed: (image, label), outputs=outputs, boundary_weight=0.0,
        place=(0, 4, (16, 16)), of_objects=outputs.of_objects,
    )  # fmt: skip
    case = Case("a", "few", "a.png", "a.png", "instance", None, None, 64, 64, None, "raw")
    target = LabelledCrops.cut(crops, case, np.zeros((64, 64, 3), np.uint8), label, 0)["target"]
    # Blocks 3 to 12 hold the pixels 13 to 49, whose offsets rise from -1 to 1: the first three of them, the last two.
    places = (1 + (np.arange(13, 50) - 31) / 18) / 2
    means = [places[max(4 * block - 13, 0) : 4 * block - 9].mean() for block in range(3, 13)]
    np.testing.assert_allclose(target[2, 8, 3:13], means, atol=1e-6)
