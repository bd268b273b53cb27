"""What submit says of a submission that is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.config import load_config
from pipeline.records.case import write_cases
from pipeline.records.files import write_text
from pipeline.records.paths import Paths
from pipeline.records.rasters import write_png, write_probabilities
from pipeline.stages import submit


def test_an_image_of_another_size_than_the_sample_gives_it_is_noted(tmp_path: Path) -> None:
    config = load_config(None, ["dataset=hubmap2023", "run=tiny"])
    paths = Paths.of(config, tmp_path)
    labels = np.zeros((6, 8), np.uint16)
    labels[1:4, 2:5] = 1
    write_cases(paths.cases, [])
    for name in "ab":
        write_png(paths.reports / "masks" / f"{name}.png", labels)
        write_probabilities(paths.predict / f"{name}.tif", np.full((1, 6, 8), 0.5, np.float32))
    write_text(paths.sample_submission, "id,height,width,prediction_string\nb,6,8,\na,512,512,\n")
    *_, noted = submit.run(config, paths)
    assert noted == (
        "noted: the sample gives 1 image(s) another height x width than their files, which were written: "
        "a (6 x 8, not 512 x 512); see whether the images are those that it asks for"
    )
    lines = (paths.reports / "submission.csv").read_text().splitlines()
    assert [line[:5] for line in lines[1:]] == ["b,6,8", "a,6,8"]
    write_text(paths.sample_submission, "id,height,width,prediction_string\nb,6,8,\na,6,8,\n")
    assert "noted" not in "".join(submit.run(config, paths))
