"""Average precision of ranked objects: by hand, and as pycocotools counts it."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.metrics.ranking import THRESHOLDS, Ranking
from pipeline.records.case import IGNORED


def strips(*sides: int, ids: tuple[int, ...] | None = None) -> np.ndarray:
    """Squares in a row, ten rows each of 10 x 10 places, as wide as told; 0 for none."""
    mask = np.zeros((10, 10 * len(sides)), np.uint16)
    for place, side in enumerate(sides):
        mask[:, 10 * place : 10 * place + side] = (ids or range(1, len(sides) + 1))[place] if side else 0
    return mask


def sure(mask: np.ndarray, *confidences: float) -> np.ndarray:
    return np.array([0.0, *confidences], np.float32)[mask]


def test_the_area_is_that_of_a_curve_drawn_by_hand() -> None:
    truth, found = strips(8, 8, 8, 0), strips(8, 0, 5, 8)  # at 1, nothing, at 5/8 and where there is nothing
    ranking = Ranking()
    ranking.add(sure(found, 0.9, 0.0, 0.7, 0.8), truth, found)
    # In order: found, spurious, then one that is found at 0.5 and 0.6 and spurious at 0.75.
    assert ranking.as_dict() == pytest.approx({"ap_50": (1 + 2 / 3) / 3, "ap_60": (1 + 2 / 3) / 3, "ap_75": 1 / 3})
    # A second image, whose object comes first of all.
    one = strips(8)
    ranking.add(sure(one, 1.0), one, one)
    assert ranking.as_dict()["ap_50"] == pytest.approx((1 + 1 + 3 / 4) / 4)


def test_what_is_empty_and_what_is_ignored() -> None:
    nothing, one = strips(0), strips(8)
    assert Ranking().as_dict() == {}
    for truth, found, expected in ((nothing, nothing, 1.0), (one, nothing, 0.0), (nothing, one, 0.0), (one, one, 1.0),
                                   (np.where(one, IGNORED, 0).astype(np.uint16), one, 1.0),
                                   (np.where(one, IGNORED, 0).astype(np.uint16), strips(10), 1.0)):  # fmt: skip
        ranking = Ranking()
        ranking.add(sure(found, 0.6), truth, found)
        assert ranking.as_dict() == dict.fromkeys(THRESHOLDS, expected)


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_pycocotools_counts_the_same(seed: int, crowds: bool, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(seed)
    images, truths, results, ranking = [], [], [], Ranking()
    for image in range(1, 13):
        images.append({"id": image, "height": 10, "width": 300})
        truth = strips(*generator.choice([0, 7, 8, 9], 30).tolist())
        found = strips(*generator.choice([0, 4, 5, 6, 8, 10], 30).tolist())
        if crowds:
            # In places of their own: of what matches a true object COCO compares the ignored pixels too.
            for place in range(0, 30, 3):
                at = slice(10 * place, 10 * place + 10)
                truth[:, at], true_side, crowd = 0, *generator.choice([[0, 5], [0, 7], [2, 6]])
                truth[:, at][:, true_side : true_side + crowd] = IGNORED
                truth[:, at][:, :true_side] = place + 1
                if true_side:
                    found[:, at] = np.where(np.arange(10) > 0, place + 1, 0)
        confidences = generator.permutation(30) / 40 + image / 1000
        ranking.add(np.concatenate([[0], confidences])[found], truth, found)
        for kind, mask in ((truths, truth), (results, found)):
            for number in np.unique(mask[mask > 0]):
                encoded = coco_masks.encode(np.asfortranarray(mask == number).astype(np.uint8))
                kind.append({
                    "id": len(kind) + 1, "image_id": image, "category_id": 1, "segmentation": encoded,
                    "iscrowd": int(number == IGNORED), "area": int((mask == number).sum()),
                    "score": float(confidences[number - 1]) if kind is results else 0.0,
                })  # fmt: skip
    coco = COCO()
    coco.dataset = {"images": images, "annotations": truths, "categories": [{"id": 1, "name": "nucleus"}]}
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "segm")
    evaluation.params.iouThrs = np.array([*THRESHOLDS.values()]) + 1e-9
    evaluation.params.recThrs = np.linspace(0, 1, 100_001)
    evaluation.params.maxDets = [1000]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e9]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    capsys.readouterr()
    theirs = evaluation.eval["precision"][..., 0, 0, 0].mean(axis=1)
    np.testing.assert_allclose([*ranking.as_dict().values()], theirs, atol=2e-4)
