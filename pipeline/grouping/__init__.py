"""Groups of images found from pixels: adjacent or overlapping crops of one field, and near-duplicates, also turned.

Each image is reduced to a signature, joins of each kind are found among signatures (same_pixels, adjacent), and what
they make must fit together without overlap (layout), so that one false join cannot chain fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from tqdm import tqdm

from pipeline.grouping.adjacent import closing_squares, find_adjacent, stands_alone
from pipeline.grouping.joins import Join, join_sets
from pipeline.grouping.layout import Layout
from pipeline.grouping.same_pixels import find_duplicates, find_overlaps
from pipeline.grouping.signatures import Signature

MAXIMUM_IMAGES = 5_000
"""More images than this are not compared, as the time grows with their square."""


def find_joins(
    case_ids: Iterable[str], load: Callable[[str], np.ndarray], note: Callable[[str], None] | None = None
) -> list[Join]:
    """Find adjacent crops and near-duplicates among images.

    case_ids: unique names; load: gives the (height, width, 3) uint8 RGB image of a name, called once each and again for
    possible duplicates, so that no image stays in memory. note: called with a line for each join that was dropped
    because its group would not fit together. Returns joins ordered by first and second; the order of the names never
    matters. Raises ValueError for more than MAXIMUM_IMAGES images.
    """
    names = sorted(set(case_ids))
    if len(names) > MAXIMUM_IMAGES:
        raise ValueError(
            f"expected at most {MAXIMUM_IMAGES} images to compare by their pixels, found {len(names)}; "
            "give the groups with the cases and set split.groups=given"
        )
    images = [Signature.of(name, load(name)) for name in tqdm(names, desc="borders", unit="image", disable=None)]
    duplicates = find_duplicates(images, load)
    alike = join_sets(names, ((join.first, join.second) for join in duplicates))
    overlaps = find_overlaps(images, load, alike)
    candidates = [
        *find_adjacent(images, alike, "right-of"),
        *find_adjacent(images, alike, "below"),
    ]
    closing = closing_squares(candidates, alike)
    adjacent = [join for join in candidates if join in closing or stands_alone(join)]
    sizes = {image.name: (image.height, image.width) for image in images}
    joins = Layout(sizes).fit([*duplicates, *overlaps], adjacent, note or (lambda line: None))
    return sorted(joins, key=lambda join: (join.first, join.second, join.kind))
