"""Masks of slides: read, predicted, stitched and written block by block, within memory that the slide does not decide.

Blocks without tissue are left out. The maps of a block are a file until the slide is done, so that a killed run carries
on and ends with the same bytes; what they were made from stands beside them, and others' are never taken up.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pipeline.inference import RESIZED, Ensemble, Place, Predictor, grid_of
from pipeline.instances import INTERIOR_REACH, Thresholds, label_raster
from pipeline.intensity import TABLES, count_levels, looked_up
from pipeline.networks.inside import Margins
from pipeline.outputs import Outputs
from pipeline.records.blocks import BLOCK, Block, blocks_of, find_tissue
from pipeline.records.files import write_bytes, write_json, write_text, written_aside
from pipeline.records.rasters import from_levels, to_levels, write_png
from pipeline.records.slides import View
from pipeline.reporting.overlays import PAINT
from pipeline.reporting.slide_page import pieces_of, write_outlines, write_piece, write_slide_page
from pipeline.stitching import FoundObject, Stitcher

if TYPE_CHECKING:
    from pipeline.stains.normaliser import Normaliser

SAMPLED = 24
"""Blocks of tissue that the light and the stain of the whole slide are measured on."""
TILE = 512
"""Pixels along the side of the written mask's tiles."""
OVERVIEW = 1600
"""Pixels along the longer side of the overview."""

Maps = Callable[[np.ndarray, Margins, Place], np.ndarray]


@dataclass
class _Objects:
    """Many objects in little memory: corner, height and width of each, and the bits of its mask."""

    boxes: list[Block] = field(default_factory=list)
    bits: list[bytes] = field(default_factory=list)

    def add(self, found: FoundObject) -> None:
        self.boxes.append((found.top, found.left, *found.mask.shape))
        self.bits.append(np.packbits(found.mask).tobytes())

    def ordered(self) -> _Objects:
        """By place, rows first: numbers do not tell where the slide was cut."""
        order = sorted(range(len(self.boxes)), key=self.boxes.__getitem__)
        return _Objects([self.boxes[index] for index in order], [self.bits[index] for index in order])

    def mask(self, index: int) -> np.ndarray:
        _, _, tall, wide = self.boxes[index]
        bits = np.unpackbits(np.frombuffer(self.bits[index], np.uint8), count=tall * wide)
        return bits.reshape(tall, wide).astype(bool)

    def ring(self, index: int) -> np.ndarray:
        """The outer edge midway between its pixels and others, columns and rows: (points, 2); holes are left out."""
        from skimage.measure import find_contours

        # One pixel of nothing all around, which the half pixel from centres to corners takes back in part.
        padded = np.pad(self.mask(index), 1).astype(np.float32)
        # By extent: a ragged hole may have more points than what is around it.
        outer = max(find_contours(padded, 0.5), key=lambda ring: np.ptp(ring, axis=0).prod()) - 0.5
        # Steps are of halves and wholes, so that products tell exactly where a straight side goes on. scikit-image's
        # approximate_polygon gives the same outline, with some points on straight sides, in 14 times the time.
        down, right = np.diff(outer, axis=0).T
        turns = down[1:] * right[:-1] != down[:-1] * right[1:]
        corners = outer[np.concatenate([[True], turns, [True]]), ::-1]
        return corners + np.array(self.boxes[index][1::-1])


@dataclass(frozen=True)
class SlidePrediction:
    """What became of a slide: objects (None where masks hold classes), blocks with tissue and all, pieces cut."""

    objects: int | None
    tissue: int
    blocks: int
    cut: int


def results_of(stem: str) -> list[str]:
    """Names of what is written of a slide, files first, then folders: of its page, and of maps while it is not done."""
    return [f"{stem}{ending}" for ending in (".tif", ".geojson", "_overview.png", ".html", "_pieces", ".parts")]


def finished(out: Path, stem: str, made_from: str) -> SlidePrediction | None:
    """Return what became of a slide that is done, of the same run, settings and file; None where it is not."""
    try:
        found = json.loads(_done_file(out, stem).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    there = {name: file.stat().st_size for name in found["files"] if (file := out / name).is_file()}
    if found["made_from"] != made_from or there != found["files"]:
        return None
    return SlidePrediction(**found["prediction"])


def remove_maps(out: Path, stem: str) -> None:
    """Remove the maps of a slide that is done, whose call may have been killed before it did so itself."""
    parts = out / f"{stem}.parts"
    if parts.exists():
        shutil.rmtree(parts)


def _done_file(out: Path, stem: str) -> Path:
    return out / f".{stem}.done.json"


def predict_slide(
    view: View, predict: Predictor | Ensemble, outputs: Outputs, thresholds: Thresholds, out: Path, stem: str,
    normaliser: Normaliser | None = None, made_from: str = "",
) -> SlidePrediction:  # fmt: skip
    """Segment a view of a slide.

    made_from: what the result depends on, in one word; blocks that a killed call left of another are made again.
    Writes <stem>.tif, one plane of object ids (uint32) or class ids in tiles, at the view's resolution; <stem>.geojson,
    outlines of objects in pixels of the slide's finest level, as QuPath opens it; <stem>_overview.png; <stem>.html with
    <stem>_pieces/, to look at in a browser. Light (train.intensity) and stain are measured once for the whole slide, on
    blocks of tissue: blocks do not differ.
    """
    tissue = find_tissue(view, blocks_of(view))
    sample = [view.window(*place) for place in _evenly(tissue, SAMPLED)]
    seen = _restained(normaliser, sample)
    predict = _in_light(predict, sum((count_levels(seen(image)) for image in sample), np.zeros((256, 3), np.int64)))
    seeing = _reach(predict), _grid(predict)

    def maps_of(window: np.ndarray, off: Margins, at: Place) -> np.ndarray:
        return predict(seen(window), off, at)

    return write_slide(view, maps_of, seeing, tissue, outputs, thresholds, out, stem, made_from)


def write_slide(
    view: View, maps_of: Maps, seeing: tuple[int, int], tissue: Sequence[Block], outputs: Outputs,
    thresholds: Thresholds, out: Path, stem: str, made_from: str = "",
) -> SlidePrediction:  # fmt: skip
    """Predict the blocks of tissue, stitch what they hold, and write it; see predict_slide.

    maps_of: (height, width, 3) uint8, what of it is only seen, and where it lies, to (channels, height, width) of the
    rest; seeing: pixels that a map looks beyond its own, and those whose multiples a window is to begin and end at.
    """
    parts = out / f"{stem}.parts"
    page = out / f"{stem}.html"
    _begin(parts, page, _done_file(out, stem), made_from)
    _predict_blocks(view, maps_of, seeing, tissue, parts, page)
    blocks = len(blocks_of(view))
    if outputs.has_objects:
        stitcher = Stitcher(view.height, view.width, outputs.channels, thresholds)
        objects = _Objects()
        for found in _stitched(view, tissue, parts, stitcher, len(outputs.channels)):
            objects.add(found)
        objects = objects.ordered()
        _write_tiles(out / f"{stem}.tif", view, _object_tiles(view, objects), np.dtype(np.uint32))
        _write_outlines(out / f"{stem}.geojson", view, objects)
        glance = _at_a_glance(view)
        _write_overview(out / f"{stem}_overview.png", view, objects, glance)
        _write_page(page, view, objects, tissue, glance)
        done = SlidePrediction(len(objects.boxes), len(tissue), blocks, stitcher.cut_)
    else:
        tiles = _class_tiles(view, tissue, parts, outputs, thresholds)
        _write_tiles(out / f"{stem}.tif", view, tiles, np.dtype(np.uint16))
        done = SlidePrediction(None, len(tissue), blocks, 0)
    files = {name: file.stat().st_size for name in results_of(stem) if (file := out / name).is_file()}
    write_json(_done_file(out, stem), {"made_from": made_from, "files": files, "prediction": asdict(done)})
    remove_maps(out, stem)
    return done


def _begin(parts: Path, page: Path, done: Path, made_from: str) -> None:
    """Keep the blocks that a killed call made from the same, and remove those made from something else."""
    stamp = parts / "made_from.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != made_from:
        for folder in (parts, pieces_of(page)):
            if folder.exists():
                shutil.rmtree(folder)
        write_text(stamp, made_from)
    done.unlink(missing_ok=True)


# --- What is predicted ------------------------------------------------------------------------------------------------


def _restained(normaliser: Normaliser | None, sample: Sequence[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Bring windows to the stain that the run was trained with, by the statistics of the whole slide."""
    from pipeline.stains.normaliser import StatisticalNormaliser

    if normaliser is None:
        return lambda window: window
    if not isinstance(normaliser, StatisticalNormaliser):
        return lambda window: normaliser.transform(window)[0]
    _, pooled = normaliser.pool(sample)
    return lambda window: normaliser.normalise(window, pooled, prefer_pooled=True).image


def _members(predict: Predictor | Ensemble) -> list[Predictor]:
    """The predictors of an ensemble, or the one there is."""
    members = predict.members if isinstance(predict, Ensemble) else [predict]
    return [member for member in members if isinstance(member, Predictor)]


def _in_light(predict: Callable[..., np.ndarray], counts: np.ndarray) -> Predictor | Ensemble:
    """Return the predictor, or its like, that stretches every window by the levels of the whole slide."""
    if isinstance(predict, Ensemble):
        return Ensemble([_in_light(member, counts) for member in predict.members])
    assert isinstance(predict, Predictor)
    if predict.prepare not in TABLES or not counts.any():
        return predict
    fixed = copy.copy(predict)
    fixed.prepare = partial(looked_up, TABLES[predict.prepare](counts))
    return fixed


def _reach(predict: Predictor | Ensemble) -> int:
    """Pixels beyond its own that a map depends on: the networks', at the smallest magnification, brought back."""
    looked = [(member.network.reach, scale) for member in _members(predict) for scale in member.settings.scales]
    return max(math.ceil((reach + RESIZED * (scale != 1.0)) / scale) for reach, scale in looked)


def _evenly(places: Sequence[Block], count: int) -> list[Block]:
    picked = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    return [places[index] for index in picked]


def _grid(predict: Predictor | Ensemble) -> int:
    """Pixels at whose multiples a window shows each network the pixels that it would see of the whole."""
    return math.lcm(*(grid_of(member.settings.scales) for member in _members(predict)))


def _predict_blocks(
    view: View, maps_of: Maps, seeing: tuple[int, int], tissue: Sequence[Block], parts: Path, page: Path
) -> None:
    """Write the maps of every block of tissue that has none yet, with INTERIOR_REACH pixels more on each side.

    While the network looks at a block, the next one is read and the last one is written; three are in memory.
    """
    from tqdm import tqdm

    reach, grid = seeing
    margin = reach + INTERIOR_REACH
    waiting = [block for block in tissue if not _part(parts, block).exists()]

    def read(block: Block) -> np.ndarray:
        return view.window(*_grown(view, block, margin, grid))

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        windows = _ahead(reader, read, waiting)
        written: Future[None] | None = None
        progress = tqdm(
            waiting, desc="predict", unit="block", initial=len(tissue) - len(waiting), total=len(tissue), disable=None
        )
        for block, window in zip(progress, windows, strict=True):
            top, left, tall, wide = _grown(view, block, margin, grid)
            first, start, height, width = _grown(view, block, INTERIOR_REACH)
            above, before = first - top, start - left
            inner = maps_of(window, Margins(above, tall - height - above, before, wide - width - before), (top, left))
            if written is not None:
                written.result()
            seen = window[block[0] - top : block[0] - top + block[2], block[1] - left : block[1] - left + block[3]]
            written = writer.submit(_write_block, _part(parts, block), inner, page, block, seen)
        if written is not None:
            written.result()


def _ahead(
    reader: ThreadPoolExecutor, read: Callable[[Block], np.ndarray], blocks: Sequence[Block]
) -> Iterator[np.ndarray]:
    """Yield what is read of blocks in their order, the next one being read meanwhile."""
    upcoming = reader.submit(read, blocks[0]) if blocks else None
    for following in [*blocks[1:], None]:
        if upcoming is None:
            return
        window = upcoming.result()
        upcoming = None if following is None else reader.submit(read, following)
        yield window


def _write_block(file: Path, maps: np.ndarray, page: Path, block: Block, seen: np.ndarray) -> None:
    """Write the picture of a block, then its maps, which stand for both."""
    write_piece(page, block[0], block[1], seen)
    levels = to_levels(maps)
    done, packed = cv2.imencode(".png", levels.reshape(-1, levels.shape[2]), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    write_bytes(file, packed.tobytes())


def _part(parts: Path, block: Block) -> Path:
    return parts / f"{block[0]}_{block[1]}.png"


def _grown(view: View, block: Block, margin: int, grid: int = 1) -> Block:
    """A block and so many pixels more on each side that is not the view's own, up to multiples of the grid."""
    top, left, height, width = block
    first, start = (max(side - margin, 0) // grid * grid for side in (top, left))
    below, right = (-(-(end + margin) // grid) * grid for end in (top + height, left + width))
    return first, start, min(below, view.height) - first, min(right, view.width) - start


def _maps(view: View, block: Block, parts: Path, channels: int) -> np.ndarray:
    """The maps of a block of tissue and its rim."""
    file = _part(parts, block)
    levels = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    assert levels is not None, f"{file} was written whole, and is no raster now"
    return from_levels(levels.reshape(channels, *_grown(view, block, INTERIOR_REACH)[2:]))


# --- What is made of it -----------------------------------------------------------------------------------------------


def _stitched(
    view: View, tissue: Sequence[Block], parts: Path, stitcher: Stitcher, channels: int
) -> Iterator[FoundObject]:
    with_tissue = set(tissue)
    for block in blocks_of(view):
        yield from stitcher.add(_maps(view, block, parts, channels) if block in with_tissue else None, *block)


def _object_tiles(view: View, objects: _Objects) -> Iterator[np.ndarray | None]:
    """Paint object ids, one tile after another, row by row: (TILE, TILE) uint32, None where there are none."""
    reaching: list[int] = []
    begun = 0
    for top in range(0, view.height, TILE):
        while begun < len(objects.boxes) and objects.boxes[begun][0] < top + TILE:
            reaching.append(begun)
            begun += 1
        reaching = [index for index in reaching if objects.boxes[index][0] + objects.boxes[index][2] > top]
        within: dict[int, list[int]] = {}
        for index in reaching:
            _, left, _, wide = objects.boxes[index]
            for column in range(left // TILE, (left + wide - 1) // TILE + 1):
                within.setdefault(column * TILE, []).append(index)
        for left in range(0, view.width, TILE):
            if left not in within:
                yield None
                continue
            tile = np.zeros((TILE, TILE), np.uint32)
            for index in within[left]:
                _paint(
                    tile, objects.mask(index), objects.boxes[index][0] - top, objects.boxes[index][1] - left, index + 1
                )
            yield tile


def _paint(tile: np.ndarray, mask: np.ndarray, top: int, left: int, number: int) -> None:
    """Set the pixels of a mask whose corner lies at top and left of a tile, and may lie outside."""
    rows = slice(max(top, 0), min(top + mask.shape[0], TILE))
    columns = slice(max(left, 0), min(left + mask.shape[1], TILE))
    tile[rows, columns][mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]] = number


def _class_tiles(
    view: View, tissue: Sequence[Block], parts: Path, outputs: Outputs, thresholds: Thresholds
) -> Iterator[np.ndarray | None]:
    """Make class ids, one tile after another, row by row: (TILE, TILE) uint16, None where there is no tissue."""
    rows: dict[int, list[Block]] = {}
    for block in tissue:
        rows.setdefault(block[0], []).append(block)
    for row in range(0, view.height, BLOCK):
        rasters = {}
        for block in rows.get(row, []):
            made = label_raster(_maps(view, block, parts, len(outputs.channels)), outputs, thresholds)
            raster = np.zeros((BLOCK, BLOCK), np.uint16)
            top, left, height, width = block
            inner = made[min(top, INTERIOR_REACH) :, min(left, INTERIOR_REACH) :][:height, :width]
            raster[:height, :width] = inner
            rasters[left] = raster
        for top in range(row, min(row + BLOCK, view.height), TILE):
            for left in range(0, view.width, TILE):
                start = left // BLOCK * BLOCK
                whole = rasters.get(start)
                within = slice(top - row, top - row + TILE), slice(left - start, left - start + TILE)
                yield None if whole is None else whole[within]


def _write_tiles(file: Path, view: View, tiles: Iterator[np.ndarray | None], dtype: np.dtype) -> None:
    """Write a raster in compressed tiles; None is an empty one, which is compressed once."""
    import tifffile

    def packed() -> Iterator[bytes]:
        empty = _packed(np.zeros((TILE, TILE), dtype))
        for tile in tiles:
            yield empty if tile is None else _packed(tile)

    resolution = None if view.slide.mpp is None else (1e4 / (view.slide.mpp * view.scale),) * 2
    with written_aside(file) as aside:
        tifffile.imwrite(
            aside, packed(), shape=(view.height, view.width), dtype=dtype, tile=(TILE, TILE), compression="zlib",
            photometric="minisblack", bigtiff=view.height * view.width > 1 << 28, resolution=resolution,
            resolutionunit="CENTIMETER" if resolution else None, metadata=None, software=False,
        )  # fmt: skip


def _packed(tile: np.ndarray) -> bytes:
    return zlib.compress(np.ascontiguousarray(tile).tobytes(), 1)


def _write_outlines(file: Path, view: View, objects: _Objects) -> None:
    """Write a FeatureCollection, one Polygon an object, a line each."""
    with written_aside(file) as aside, aside.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write('{"type": "FeatureCollection", "features": [')
        for index in range(len(objects.boxes)):
            corners = np.round(objects.ring(index) * view.scale, 2).tolist()
            feature = {
                "type": "Feature", "id": index + 1, "geometry": {"type": "Polygon", "coordinates": [corners]},
                "properties": {"objectType": "detection"},
            }  # fmt: skip
            stream.write((",\n" if index else "\n") + json.dumps(feature))
        stream.write("\n]}\n")


def _write_page(page: Path, view: View, objects: _Objects, tissue: Sequence[Block], glance: np.ndarray) -> None:
    """Write what one looks at in a browser: outlines by the block of their corner, then the page."""
    within: dict[tuple[int, int], list[int]] = {block[:2]: [] for block in tissue}
    for index, (top, left, _, _) in enumerate(objects.boxes):
        within.setdefault((top // BLOCK * BLOCK, left // BLOCK * BLOCK), []).append(index)
    for (top, left), indices in within.items():
        write_outlines(page, top, left, map(objects.ring, indices))
    mpp = None if view.slide.mpp is None else view.slide.mpp * view.scale
    shown = [block for block in blocks_of(view) if block[:2] in within]
    summary = f"{len(objects.boxes):,} objects; {len(tissue)} of {len(blocks_of(view))} blocks hold tissue"
    write_slide_page(page, summary, (view.height, view.width), mpp, glance, shown)


def _at_a_glance(view: View) -> np.ndarray:
    coarse = View(view.slide, view.scale * max(1.0, max(view.height, view.width) / OVERVIEW))
    return coarse.window(0, 0, coarse.height, coarse.width)


def _write_overview(file: Path, view: View, objects: _Objects, glance: np.ndarray) -> None:
    """Draw the slide at a glance, with the outlines of objects."""
    shrink = max(1.0, max(view.height, view.width) / OVERVIEW)
    picture = glance.copy()
    for index, (top, left, _, _) in enumerate(objects.boxes):
        contours, _ = cv2.findContours(objects.mask(index).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        corners = [((contour + np.array([left, top])) / shrink).astype(np.int32) for contour in contours]
        cv2.polylines(picture, corners, True, PAINT)
    write_png(file, picture)
