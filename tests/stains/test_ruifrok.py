"""Ruifrok: fixed vectors, amounts alone change, and what the vectors do not explain follows."""

from __future__ import annotations

import numpy as np

from pipeline.stains.optical_density import HAEMATOXYLIN_EOSIN, stain_basis, to_density, to_image
from pipeline.stains.ruifrok import Ruifrok

BASIS = stain_basis(HAEMATOXYLIN_EOSIN)


def tissue(seed: int, depth: tuple[float, float]) -> np.ndarray:
    generator = np.random.default_rng(seed)
    amounts = generator.gamma(4.0, 0.08, (128 * 128, 2)) * depth
    amounts[: 128 * 20] = 0.0
    return to_image((amounts @ BASIS[:2]).astype(np.float32).reshape(128, 128, 3))


def test_amounts_become_the_references_and_vectors_are_the_papers() -> None:
    reference, image = tissue(0, (1.0, 1.0)), tissue(0, (0.6, 1.4))
    normaliser = Ruifrok().fit([reference])
    assert normaliser.reference_ is not None
    np.testing.assert_allclose(normaliser.reference_[:6].reshape(2, 3), BASIS[:2])
    normalised, status = normaliser.transform(image)
    assert status == "ok"
    # 8 bits of the image are what is left between the two.
    assert np.abs(normalised.astype(int) - reference).mean() < 1.0


def test_the_reference_itself_stays_as_it_is_whatever_its_hue() -> None:
    image = np.random.default_rng(1).normal((190, 110, 150), 25.0, (100, 100, 3)).clip(0, 255).astype(np.uint8)
    normalised, status = Ruifrok().fit([image]).transform(image)
    assert status == "ok"
    np.testing.assert_array_equal(normalised, image)


def test_the_plain_formula_gives_the_same_pixels() -> None:
    """Non-negative amounts scaled by their gains, the rest by the geometric mean of both."""
    image = np.random.default_rng(2).integers(0, 256, (200, 100, 3), dtype=np.uint8)
    gain = np.array([1.4, 0.6])
    white = (255.0, 255.0, 255.0)
    found = Ruifrok()._exchange(image, BASIS[:2], BASIS[:2], gain, white, white)
    density = to_density(image).reshape(-1, 3).astype(np.float64)
    amounts = density @ np.linalg.pinv(BASIS[:2])
    alone = density @ BASIS[:2].T
    for stain, other in ((1, 0), (0, 1)):
        below = (density @ np.linalg.pinv(BASIS[:2]))[:, stain] < 0.0
        amounts[below, stain], amounts[below, other] = 0.0, alone[below, other]
    rest = density - amounts @ BASIS[:2]
    light = 255.0 * 10.0 ** -(amounts * gain @ BASIS[:2] + np.sqrt(gain.prod()) * rest)
    assert np.abs(found.reshape(-1, 3) - light.clip(0, 255)).max() < 0.52
