"""The run-length codec of Kaggle's segmentation competitions: pairs `start length`, counted from 1, column by column.

Pixels are numbered down the first column, then down the second, and so on (column-major), starting at 1. Runs rise,
are positive, do not overlap and stay within height * width. An empty mask is an empty text.
Source: the evaluation pages of the 2018 Data Science Bowl and of HuBMAP - Hacking the Kidney.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

from pipeline.records.case import IGNORED, MAXIMUM_OBJECTS

_BLOCK_PIXELS = 1 << 24
_LONGEST_NUMBER = 18
_MOST_BITS = 60
_CARRIERS = {1: np.uint8, 2: np.uint16, 4: np.int32, 8: np.float64}
"""Types of so many bytes that OpenCV moves without looking at them."""
_SHOWN = 5


def encode(mask: np.ndarray) -> str:
    """Encode one mask, e.g. "1 3 10 5"; an empty mask gives "".

    mask: (height, width) bool. Raises ValueError for another shape or dtype.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(
            f"run-length encoding: expected a (height, width) bool mask, found {mask.dtype} of shape {mask.shape}; "
            "give e.g. raster > 0"
        )
    starts, lengths, values = _runs(mask)
    return _text(starts[values], lengths[values])


def encode_labels(labels: np.ndarray) -> dict[int, str]:
    """Encode every object of a label raster straight from the raster, ordered by id.

    labels: (height, width) integer, 0 background; pixels of 65535 (ignored) belong to no object.
    Returns {object id: its runs}. Raises ValueError for another shape, a dtype that is not integer, or negative ids.
    """
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"run-length encoding: expected (height, width) integer labels, found {labels.dtype} {labels.shape}"
        )
    starts, lengths, values = _runs(labels)
    if values.size and values.min() < 0:
        raise ValueError(f"run-length encoding: expected ids of 0 and above, found {values.min()}")
    kept = np.flatnonzero((values != 0) & (values != IGNORED))
    kept = kept[np.argsort(values[kept], kind="stable")]
    if not kept.size:
        return {}
    values = values[kept]
    first = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1, [values.size]))
    numbers = list(map(str, _pairs(starts[kept], lengths[kept]).tolist()))
    edges = (2 * first).tolist()
    ids = values[first[:-1]].tolist()
    return {ids[index]: " ".join(numbers[edges[index] : edges[index + 1]]) for index in range(len(ids))}


def decode(text: str, height: int, width: int) -> np.ndarray:
    """Decode one mask: (height, width) bool.

    Raises ValueError, saying what was found, for an odd count, anything but whole numbers, numbers below 1, runs
    beyond height * width, runs that fall or overlap. Runs that merely touch are taken.
    """
    starts, lengths = read_runs(text, height, width)
    # Steps up and down, summed: two bytes a pixel, however much of a slide is covered.
    steps = np.zeros(height * width + 1, np.int8)
    steps[starts] += 1
    steps[starts + lengths] -= 1
    flat = np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_)
    return _turned(flat.reshape(width, height))


def decode_sampled(text: str, height: int, width: int, shape: tuple[int, int]) -> np.ndarray:
    """Decode one mask at fewer pixels, without all of it ever being in memory: (height, width) bool of shape.

    height, width: of the whole mask; each pixel of shape shows the one in its middle. Raises ValueError as decode does.
    """
    starts, lengths = read_runs(text, height, width)
    rows, columns = (
        np.minimum(((np.arange(few) + 0.5) * many / few).astype(np.int64), many - 1)
        for few, many in zip(shape, (height, width), strict=True)
    )
    if not starts.size:
        return np.zeros(shape, bool)
    mask = np.empty(shape, bool)
    for at, column in enumerate(columns.tolist()):
        pixels = column * height + rows
        run = np.searchsorted(starts, pixels, side="right") - 1
        mask[:, at] = (run >= 0) & (pixels < (starts + lengths)[run])
    return mask


def encode_coco(mask: np.ndarray) -> bytes:
    """Encode one mask as COCO's compressed run lengths: the counts that pycocotools gives for it.

    mask: (height, width) bool. Lengths of runs alternate, column by column, the first of nothing; each is written less
    the one before the last, five bits a letter, lowest first. Raises ValueError for another shape or dtype.
    Source: cocodataset.org, "Data format"; maskApi.c, rleToString.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"run-length encoding: expected a (height, width) bool mask, found {mask.dtype} {mask.shape}")
    _, lengths, values = _runs(mask)
    counts = ([0] if values.size and values[0] else []) + lengths.tolist()
    letters = bytearray()
    for index, count in enumerate(counts):
        left = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits, left = left & 0x1F, left >> 5
            more = left != (-1 if bits & 0x10 else 0)
            letters.append((bits | 0x20 if more else bits) + 48)
    return bytes(letters)


def decode_coco(letters: bytes, height: int, width: int) -> np.ndarray:
    """Decode COCO's compressed run lengths: (height, width) bool.

    Raises ValueError for letters that are none of its, a number that does not end or is larger than any image, and
    as decode_counts does.
    """
    counts: list[int] = []
    number = shift = 0
    for place, letter in enumerate(letters, start=1):
        bits = letter - 48
        if not 0 <= bits < 64:
            raise ValueError(f"expected COCO's letters '0' to 'o', found {bytes([letter])!r}")
        number |= (bits & 0x1F) << shift
        shift += 5
        if shift > _MOST_BITS:
            found = letters[place - shift // 5 : place]
            raise ValueError(f"expected numbers of at most {_MOST_BITS // 5} letters, found one that begins {found!r}")
        if not bits & 0x20:
            number -= (1 << shift) if bits & 0x10 else 0
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    if shift:
        raise ValueError("expected whole numbers, found an end within one")
    return decode_counts(counts, height, width)


def decode_counts(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """Decode COCO's run lengths as they are listed: (height, width) bool.

    counts: pixels of the runs, column by column, of nothing and of the object in turn. Raises ValueError for lengths
    that are no whole numbers from 0 on, and runs that are not height * width pixels together.
    """
    together = f"expected runs of {height} x {width} pixels together"
    try:
        # Whole numbers are exact in these up to more pixels than any image has, and larger ones do not overflow.
        lengths = np.array(counts, np.float64)
    except OverflowError as error:
        raise ValueError(f"{together}, found one of more than 1e308") from error
    strange = lengths[~((lengths >= 0) & (lengths == np.floor(lengths)))]
    if strange.size:
        shown = ", ".join(f"{length:g}" for length in strange[:_SHOWN].tolist())
        raise ValueError(f"expected lengths that are whole numbers from 0 on, found {shown}")
    if lengths.sum() != height * width:
        raise ValueError(f"{together}, found {lengths.sum():.15g}")
    flat = np.repeat(np.arange(lengths.size) % 2 == 1, lengths.astype(np.int64))
    return _turned(flat.reshape(width, height))


def decode_labels(rows: Iterable[str] | Mapping[int, str], height: int, width: int) -> np.ndarray:
    """Decode several objects of one image into one raster: (height, width) uint16, 0 background.

    rows: the objects' runs, numbered 1, 2, ... in their order (an empty row keeps its number and has no pixels), or
    {object id: runs} as encode_labels gives. Raises ValueError listing every faulty row, pixels that two objects
    claim, ids outside 1..65534.
    """
    named = dict(rows) if isinstance(rows, Mapping) else dict(enumerate(rows, start=1))
    faults = [f"id {name}: expected 1..{MAXIMUM_OBJECTS}" for name in named if not 1 <= name <= MAXIMUM_OBJECTS]
    parsed: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for name, text in named.items():
        try:
            parsed[name] = read_runs(text, height, width)
        except ValueError as error:
            faults.append(f"object {name}: {error}")
    if not faults and parsed:
        starts = np.concatenate([runs[0] for runs in parsed.values()])
        lengths = np.concatenate([runs[1] for runs in parsed.values()])
        owners = np.repeat(list(parsed), [runs[0].size for runs in parsed.values()])
        faults = _overlaps(starts, lengths, owners, height)
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise ValueError("run-length rows: " + "; ".join([*faults[:_SHOWN], *more]))
    flat = np.zeros(height * width, np.uint16)
    if parsed:
        flat[run_pixels(starts, lengths)] = np.repeat(owners, lengths).astype(np.uint16)
    return _turned(flat.reshape(width, height))


def read_runs(text: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one text's runs without unrolling them: starts (counted from 0, column-major) and lengths, int64.

    Raises ValueError as decode does.
    """
    tokens = text.split()
    # Asked of all at once, a tenth of the time: only where something is wrong is it asked of each.
    sound = not tokens or (text.isascii() and "".join(tokens).isdigit() and max(map(len, tokens)) <= _LONGEST_NUMBER)
    if not sound:
        strange = [one for one in tokens if not (one.isascii() and one.isdigit() and len(one) <= _LONGEST_NUMBER)]
        raise ValueError(f"expected whole numbers of 1 and above, found {', '.join(map(repr, strange[:_SHOWN]))}")
    if len(tokens) % 2:
        raise ValueError(f"expected pairs of start and length, found an odd count of numbers, {len(tokens)}")
    numbers = np.array(list(map(int, tokens)), np.int64)
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    for fault, meaning in (
        ((starts < 0) | (lengths < 1), "expected starts and lengths of 1 and above"),
        (starts + lengths > height * width, f"expected runs within {height} x {width} = {height * width} pixels"),
    ):
        if fault.any():
            raise ValueError(f"{meaning}, found {_show(starts, lengths, fault)}")
    back = np.concatenate(([False], starts[1:] < starts[:-1] + lengths[:-1]))
    if back.any():
        at = int(np.flatnonzero(back)[0])
        wrong = "falling" if starts[at] < starts[at - 1] else "overlapping"
        raise ValueError(
            f"expected rising runs without overlap, found {wrong} runs: "
            f"{starts[at - 1] + 1} {lengths[at - 1]} then {starts[at] + 1} {lengths[at]}"
        )
    return starts, lengths


def run_pixels(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Number all pixels of the runs, in their order: int64, counted from 0, column-major."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def _runs(raster: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts (from 0), lengths and values of all runs of equal pixels, a block of columns at a time to bound memory."""
    height, width = raster.shape
    if not raster.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, raster.dtype)
    columns = max(1, _BLOCK_PIXELS // height)
    starts, values = [], []
    for left in range(0, width, columns):
        flat = _turned(raster[:, left : left + columns]).ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if not left or flat[0] != raster[-1, left - 1]:
            changes = np.concatenate(([0], changes))
        starts.append(changes + left * height)
        values.append(flat[changes])
    joined = np.concatenate(starts)
    return joined, np.diff(joined, append=raster.size), np.concatenate(values)


def _turned(raster: np.ndarray) -> np.ndarray:
    """Transpose in memory, (rows, columns) of any integer or bool dtype, by blocks: a tenth of NumPy's time."""
    if not raster.size:
        return np.ascontiguousarray(raster.T)
    return cv2.transpose(raster.view(_CARRIERS[raster.itemsize])).view(raster.dtype).reshape(raster.shape[::-1])


def _pairs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.stack((starts + 1, lengths), axis=1).ravel()


def _text(starts: np.ndarray, lengths: np.ndarray) -> str:
    return " ".join(map(str, _pairs(starts, lengths).tolist()))


def _show(starts: np.ndarray, lengths: np.ndarray, fault: np.ndarray) -> str:
    wrong = np.flatnonzero(fault)[:_SHOWN]
    return ", ".join(f"'{starts[at] + 1} {lengths[at]}'" for at in wrong)


def _overlaps(starts: np.ndarray, lengths: np.ndarray, owners: np.ndarray, height: int) -> list[str]:
    """One line for each pair of neighbouring runs that share pixels."""
    order = np.argsort(starts, kind="stable")
    starts, lengths, owners = starts[order], lengths[order], owners[order]
    ends = np.maximum.accumulate(starts + lengths)
    faults = []
    for at in np.flatnonzero(starts[1:] < ends[:-1]) + 1:
        # The run that reaches furthest so far is the one that covers this start.
        covering = int(np.flatnonzero((starts + lengths)[:at] == ends[at - 1])[0])
        faults.append(
            f"objects {owners[covering]} and {owners[at]} both claim pixel {starts[at] + 1} "
            f"(row {starts[at] % height}, column {starts[at] // height})"
        )
    return faults
