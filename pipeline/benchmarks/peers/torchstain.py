"""The sides of torchstain: its NumPy and torch backends, as its README calls them, without the extra stain images."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any, Literal

import numpy as np
import torch
from torchstain.numpy.normalizers import NumpyMacenkoNormalizer, NumpyReinhardNormalizer
from torchstain.torch.normalizers import TorchMacenkoNormalizer, TorchReinhardNormalizer

NORMALIZERS = {
    ("macenko", "numpy"): NumpyMacenkoNormalizer,
    ("macenko", "torch"): TorchMacenkoNormalizer,
    ("reinhard", "numpy"): NumpyReinhardNormalizer,
    ("reinhard", "torch"): TorchReinhardNormalizer,
}


def prepare(
    method: str, tiles: str, reference: str, threads: int, variant: Literal["numpy", "torch"]
) -> Callable[[], object]:
    """Return one pass over the tiles of a .npy file: (height, width, 3) uint8 in, the same size out."""
    torch.set_num_threads(threads)
    as_input: Callable[[np.ndarray], Any] = _as_tensor if variant == "torch" else _as_it_is
    normalizer = NORMALIZERS[method, variant]()
    normalizer.fit(as_input(np.load(reference)))
    only_image = {"stains": False} if method == "macenko" else {}
    stack = np.load(tiles)
    return lambda: [normalizer.normalize(as_input(tile), **only_image) for tile in stack]


def macenko(tiles: str, reference: str, out: str) -> dict[str, Any]:
    """Normalise tiles by Macenko's method and write them to a .npy file.

    Returns its stain vectors, (2, 3) natural density, and largest concentrations of each tile and of the reference.
    """
    normalizer = NumpyMacenkoNormalizer()
    normalizer.fit(np.load(reference))
    stack = np.load(tiles)
    np.save(out, np.stack([normalizer.normalize(tile, stains=False)[0] for tile in stack]))
    measured = []
    for tile in [np.load(reference), *stack]:
        own = NumpyMacenkoNormalizer()
        own.fit(tile)
        measured.append({"vectors": own.HERef.T.tolist(), "largest": own.maxCRef.tolist()})
    return {"reference": measured[0], "tiles": measured[1:]}


def versions() -> str:
    """Say which versions take part."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("torchstain", "torch", "numpy"))


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    """(height, width, 3) to a (3, height, width) view: both take uint8 and convert it themselves."""
    return torch.from_numpy(image).permute(2, 0, 1)


def _as_it_is(image: np.ndarray) -> np.ndarray:
    return image
