"""The codes of a data set as a table, with a map of it in two dimensions."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.codes import Coder
from pipeline.config import ComputeSettings
from pipeline.records.case import Case
from pipeline.records.files import write_text
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image
from pipeline.records.split import read_split_table
from pipeline.trained import TrainedRun

COMPONENTS = 50
"""Principal components that the map is made from."""
SHOWN_COMPONENTS = 5
"""Principal components that the table holds."""
LEAST_CASES = 30
"""Fewer cases are laid out by their first two principal components: t-SNE needs neighbourhoods."""
PERPLEXITY = 30.0
DIGITS = 4
"""Decimals of the table."""


def write_codes(
    trained: TrainedRun, cases: Sequence[Case], paths: Paths, file: Path, compute: ComputeSettings | None = None
) -> str:
    """Write the table of codes of cases: case_id, x, y, stratum, group, and the first principal components (pc_1, ...).

    x, y: the case's place on the map of `lay_out`; group: the split's, else the case's own. A case's code is the mean
    over its places: images of any size become comparable, and where in the image something lies does not count.
    trained: a run of an autoencoder, of whatever task. Returns in words how the map was made.
    """
    from tqdm import tqdm

    coder = Coder(trained, compute)
    ordered = sorted(cases, key=lambda case: case.case_id)
    codes = np.stack(
        [
            coder.encode(read_image(paths.image(case.image))).mean(axis=(1, 2), dtype=np.float64)
            for case in tqdm(ordered, desc="codes", unit="image", disable=None)
        ]
    )
    places, components, told = lay_out(codes, trained.config.seed)
    rows = read_split_table(paths.split_table) if paths.split_table.exists() else {}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["case_id", "x", "y", "stratum", "group", *(f"pc_{number + 1}" for number in range(components.shape[1]))]
    )
    for case, place, own in zip(ordered, places, components, strict=True):
        group = rows.get(case.case_id, {}).get("group") or case.group or ""
        numbers = [f"{value + 0.0:.{DIGITS}f}" for value in (*place, *own)]
        writer.writerow([case.case_id, *numbers[:2], case.stratum or "", group, *numbers[2:]])
    write_text(file, stream.getvalue())
    return told


def lay_out(codes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Lay codes (cases, numbers) out in a plane: places (cases, 2), principal components (cases, up to 5), and how.

    Every number of the code is standardised, so that none counts for its scale, and those that never vary are left out;
    then principal components, at most COMPONENTS; then t-SNE (van der Maaten and Hinton 2008) from the first two of
    them, or, of fewer than LEAST_CASES cases, these two. Distances between far places of a t-SNE mean little. The same
    codes and seed give the same places: one thread adds up in one order.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    codes = np.asarray(codes, np.float64)
    codes = codes[:, codes.std(axis=0) > 1e-12]
    count = min(COMPONENTS, len(codes) - 1, codes.shape[1])
    if count < 1:
        return np.zeros((len(codes), 2)), np.zeros((len(codes), 0)), "every code is the same"
    with threadpool_limits(1):
        components = PCA(count, svd_solver="full").fit_transform(StandardScaler().fit_transform(codes))
        # Two digits less than a float64 holds: what another order of summation changes stays out of the map.
        components = components.round(10)
        plane = np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - count))))
        told = "the first two principal components"
        if len(codes) >= LEAST_CASES and count >= 2:
            perplexity = min(PERPLEXITY, (len(codes) - 1) / 3)
            plane = TSNE(init=_spread(plane), perplexity=perplexity, random_state=seed, n_jobs=1).fit_transform(
                components
            )
            told = f"t-SNE of {count} principal components, perplexity {perplexity:g}"
    return plane, components[:, :SHOWN_COMPONENTS], told


def _spread(plane: np.ndarray) -> np.ndarray:
    """Scale a start as scikit-learn scales its own (Kobak and Berens 2019): standard deviation 0.0001 in x."""
    return (plane / plane[:, 0].std() * 1e-4).astype(np.float32)
