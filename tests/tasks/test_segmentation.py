"""What validation says of a network that has learned nothing yet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pipeline.outputs import Outputs
from pipeline.records.case import Case
from pipeline.records.rasters import write_png
from pipeline.tasks.segmentation import Segmentation


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
