"""Maps of cases, whatever the network looks at: the case's image, or the whole volume that the case is a plane of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from pipeline.inference import AnyPredictor, takes_volumes
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image


class CaseMaps:
    """A predictor that is asked for cases.

    cases: all of the data set, among which a volume's planes are found; the maps of one volume are kept, so that
    planes asked for one after another cost one prediction.
    """

    def __init__(self, predict: AnyPredictor, paths: Paths, cases: Iterable[Case]) -> None:
        self.predict, self.paths = predict, paths
        self.volumes = by_volume(cases) if takes_volumes(predict) else None
        self._kept: tuple[str, np.ndarray] | None = None

    def __call__(self, case: Case) -> np.ndarray:
        """Return (channels, height, width) float32 in [0, 1]."""
        if self.volumes is None:
            return self.predict(read_image(self.paths.image(case.image)))
        planes = self.volumes[case.source]
        if self._kept is None or self._kept[0] != case.source:
            self._kept = None
            self._kept = case.source, self.predict(read_planes(planes, self.paths))
        return np.ascontiguousarray(self._kept[1][:, planes.index(case)])


def by_volume(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Gather the planes of each volume, by its raw file, in their order.

    Raises ValueError for cases that are none, and for volumes of which planes in between are missing.
    """
    volumes: dict[str, list[Case]] = {}
    cases = list(cases)
    images = [case.case_id for case in cases if case.plane is None]
    if images:
        raise ValueError(
            f"augment.planes: expected planes of volumes (layout nifti), found {len(images)} image(s) "
            f"({', '.join(images[:3])}); set augment.planes=1"
        )
    for case in sorted(cases, key=lambda case: case.plane or 0):
        volumes.setdefault(case.source, []).append(case)
    gaps = [
        f"{source} without {case.plane + 1}"
        for source, planes in volumes.items()
        for case, following in pairwise(planes)
        if case.plane is not None and following.plane != case.plane + 1
    ]
    if gaps:
        raise ValueError(
            f"augment.planes: expected neighbouring planes, found {len(gaps)} gap(s) ({', '.join(gaps[:3])}); leave "
            "out whole volumes with ingest.exclude, and keep each in one group"
        )
    return volumes


def read_planes(planes: Sequence[Case], paths: Paths) -> np.ndarray:
    """Read the images of a volume's planes: (planes, height, width, 3) uint8."""
    return np.stack([read_image(paths.image(case.image)) for case in planes])
