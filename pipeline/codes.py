"""Uses of an autoencoder's code: images stored as codes and brought back, and images drawn from codes at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from pipeline.config import ComputeSettings
from pipeline.inference import Ensemble
from pipeline.intensity import as_input
from pipeline.metrics.stain import psnr
from pipeline.networks.autoencoders import Autoencoder
from pipeline.outputs import to_pixels
from pipeline.records.codes import DIGEST_BYTES, HIGHEST_BITS, SUFFIX, StoredCode, from_bytes, quantise, to_bytes
from pipeline.records.files import file_hash, write_text
from pipeline.records.findings import refuse_unusable
from pipeline.records.images import Readings, encode_image
from pipeline.records.out_folder import refuse_alike, refuse_foreign, write_anew
from pipeline.records.rasters import write_png
from pipeline.tiling import tile_starts
from pipeline.trained import TrainedRun, named_run

CONTEXT = 4
"""Places around a piece of an image, or of a code, that are computed and cut off: what a network sees around a place
(2.5 places in coding, less than 4 in decoding) is then the same as in the whole."""
LEAST_PLACES = 6 * CONTEXT
"""Side of a piece where the tile of the settings holds fewer places."""
GRID_GAP = 4
LARGEST_SHEET = 64
"""Tiles that a grid shows; of more, the first."""
TABLE, GRID = "codes.csv", "grid.png"
LARGEST_JPEG = 65500
"""Pixels of a side that a JPEG holds."""
SAME_SIZE = 0.05
"""Share by which a JPEG may be larger or smaller than a code and still count as one of equal bytes."""
HEADER = "image,height,width,bytes,raw_ratio,file_bytes,file_ratio,psnr,jpeg_quality,jpeg_bytes,jpeg_psnr"
"""Columns of codes.csv. bytes: of the code; raw_ratio, file_ratio: how many times smaller than 8-bit RGB, and than the
file that was given; psnr: of the decoded image, in dB; jpeg_*: the JPEG whose size is nearest."""


class Coder:
    """An autoencoder with everything that turns one image into its code, and a code into its image.

    Computes in float32, whatever the run was trained in, so that a code decodes to the same image, but for rounding, on
    any machine. Memory is bounded by the tile of the run's settings, not by the image.
    Raises ValueError for a run whose network is no autoencoder.
    """

    def __init__(self, trained: TrainedRun, compute: ComputeSettings | None = None) -> None:
        here = trained.compute_here(compute or ComputeSettings()).model_copy(update={"precision": "fp32"})
        predictor = trained.predictor(trained.config.predict, here)
        if isinstance(predictor, Ensemble) or not isinstance(predictor.network, Autoencoder):
            raise ValueError(
                f"{trained.folder}: expected a run of an autoencoder, which has a code, found the network "
                f"{trained.config.train.network.name}; train one with train.network.name=autoencoder:<kind>"
            )
        self.network: Autoencoder = predictor.network
        self.prepare, self.activation, self.device = predictor.prepare, predictor.activation, predictor.device
        self.place = 2**self.network.depth
        self.piece = max(LEAST_PLACES, trained.config.predict.tile // self.place)

    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> np.ndarray:
        """Return the code (channels, rows, columns) float32 of (height, width, 3) uint8; of a variational one the mean.

        Never a sample: the same image has the same code each time.
        """
        height, width = image.shape[:2]
        prepared = self.prepare(image)

        def of_piece(rows: slice, columns: slice) -> np.ndarray:
            cut = np.ascontiguousarray(prepared[self._pixels(rows, height), self._pixels(columns, width)])
            code = self.network.encode(as_input(torch.from_numpy(cut[np.newaxis]).to(self.device)))
            return (code.values if code.mean is None else code.mean)[0].float().cpu().numpy()

        return _pieced(self.network.code_size(height, width), self.piece, 1, (0, 0), of_piece)

    @torch.inference_mode()
    def decode(self, values: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return the image (height, width, 3) uint8 of a code (channels, rows, columns) float32.

        Raises ValueError where the code is not one of an image of that size.
        """
        expected = (self.network.channels_of_code, *self.network.code_size(height, width))
        if values.shape != expected:
            raise ValueError(
                f"expected a code of {'x'.join(map(str, expected))} numbers for an image of {height}x{width} pixels, "
                f"found {'x'.join(map(str, values.shape))}; decode it with the run that encoded it"
            )

        def of_piece(rows: slice, columns: slice) -> np.ndarray:
            cut = torch.from_numpy(np.ascontiguousarray(values[np.newaxis, :, rows, columns])).to(self.device)
            down, across = self._pixels(rows, height), self._pixels(columns, width)
            logits = self.network.decode(cut, down.stop - down.start, across.stop - across.start)
            return self.activation(logits.float())[0].cpu().numpy()

        return to_pixels(_pieced(values.shape[1:], self.piece, self.place, (height, width), of_piece))

    def _pixels(self, places: slice, length: int) -> slice:
        return slice(places.start * self.place, min(places.stop * self.place, length))


def _pieced(
    places: Sequence[int],
    piece: int,
    scale: int,
    limits: tuple[int, int],
    compute: Callable[[slice, slice], np.ndarray],
) -> np.ndarray:
    """Put together what compute gives of overlapping pieces of a code: (channels, ...) at scale values a place.

    limits: rows and columns of the result where the last place has fewer values than scale, else 0.
    Pieces fade into each other over the middle place of what they share, so that networks which normalise by the
    statistics of the piece leave no seam either.
    """
    sides = [
        [slice(start, start + min(length, piece)) for start in tile_starts(length, piece, (2 * CONTEXT + 2) / piece)]
        for length in places
    ]
    if len(sides[0]) == len(sides[1]) == 1:
        return compute(sides[0][0], sides[1][0])
    shape = [limit or length * scale for limit, length in zip(limits, places, strict=True)]
    total: np.ndarray | None = None
    weights = np.zeros(shape, np.float32)
    for rows in sides[0]:
        for columns in sides[1]:
            values = compute(rows, columns)
            weight = np.outer(_fade(rows, places[0], scale), _fade(columns, places[1], scale)).astype(np.float32)
            weight = weight[: values.shape[1], : values.shape[2]]
            here = np.s_[rows.start * scale :, columns.start * scale :]
            if total is None:
                total = np.zeros((len(values), *shape), np.float32)
            total[:, *here][:, : values.shape[1], : values.shape[2]] += values * weight
            weights[here][: values.shape[1], : values.shape[2]] += weight
    assert total is not None
    return total / weights


def _fade(piece: slice, length: int, scale: int) -> np.ndarray:
    """Weights of a piece along one side: 0 where it lacks its surroundings, 1 at the image's own border."""
    at = piece.start + (np.arange((piece.stop - piece.start) * scale) + 0.5) / scale
    before = np.inf if piece.start == 0 else at - piece.start
    after = np.inf if piece.stop == length else piece.stop - at
    return np.clip(np.minimum(before, after) - CONTEXT, 0.0, 1.0)


# --- Storage ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """What became of one image: sizes in bytes, PSNR in dB; jpeg is the one whose size is nearest to the code's."""

    image: str
    height: int
    width: int
    bytes: int
    file_bytes: int
    psnr: float
    jpeg_quality: int
    jpeg_bytes: int
    jpeg_psnr: float

    @property
    def raw_bytes(self) -> int:
        """Bytes of the pixels as 8-bit RGB."""
        return 3 * self.height * self.width

    def row(self) -> str:
        """The line of codes.csv."""
        ratios = self.raw_bytes / self.bytes, self.file_bytes / self.bytes
        name = '"' + self.image.replace('"', '""') + '"' if set(self.image) & set(',"\n') else self.image
        return (
            f"{name},{self.height},{self.width},{self.bytes},{ratios[0]:.3f},{self.file_bytes},{ratios[1]:.3f},"
            f"{self.psnr:.3f},{self.jpeg_quality},{self.jpeg_bytes},{self.jpeg_psnr:.3f}"
        )


def encode_images(run: str, images: Path, out: Path, bits: int = 8, compute: ComputeSettings | None = None) -> None:
    """Write <stem>.code for an image, or for each of a folder, and codes.csv; print what the storage costs and gains.

    run: a name below data/train/, or the run's folder; bits: of a number of the code, 1 to 16. Every image that cannot
    be read is named at the end, after all others were written. The same command again gives the same bytes; another
    file is never replaced. Raises ValueError for unreadable images, for two images of one stem, for a run that has no
    code or makes no images, and where out cannot be used or holds something else.
    """
    if not 1 <= bits <= HIGHEST_BITS:
        raise ValueError(f"--bits: expected 1 to {HIGHEST_BITS}, found {bits}")
    trained = _run_of_images(run)
    weights = _digest(trained)
    readings, stored = Readings(images, "encode", trained.config.ingest.depth), []
    names = {file: f"{file.stem}{SUFFIX}" for file in readings.files}
    refuse_alike(images, ((name, file.name) for file, name in names.items()))
    _check_codes(out, {*names.values()}, weights, bits)
    coder = Coder(trained, compute)
    for file, image in readings:
        if max(image.shape[:2]) > LARGEST_JPEG:
            readings.faults.append(
                f"{file}: expected sides of at most {LARGEST_JPEG:,} pixels, as a JPEG to compare with has, found "
                f"{image.shape[1]:,} x {image.shape[0]:,}; cut the image into pieces"
            )
            continue
        levels, lowest, step = quantise(coder.encode(image), bits)
        code = StoredCode(levels, lowest, step, bits, image.shape[0], image.shape[1], weights)
        content = to_bytes(code)
        write_anew(out / names[file], content)
        decoded = coder.decode(code.values, code.height, code.width)
        jpeg = nearest_jpeg(image, len(content))
        stored.append(
            Stored(file.name, code.height, code.width, len(content), file.stat().st_size, psnr(decoded, image), *jpeg)
        )
    write_text(out / TABLE, "\n".join([HEADER, *(entry.row() for entry in stored)]) + "\n")
    for remark in readings.remarks:
        print(f"noted: {remark}")
    for line in _told(stored):
        print(line)
    print(f"Written: {len(stored)} of {len(readings.files)} codes, and {TABLE}, to {out}")
    refuse_unusable(readings.faults, len(readings.files), "images could not be used")


def decode_codes(run: str, codes: Path, out: Path, compute: ComputeSettings | None = None) -> None:
    """Write <stem>.png for a code, or for each of a folder; the same bytes each time.

    run: the run that encoded them, by its name below data/train/ or its folder. Every code that cannot be decoded is
    named at the end, after all others were. Another file is never replaced. Raises ValueError for codes that cannot be
    decoded, for a folder without codes, and where out cannot be used or holds something else.
    """
    from tqdm import tqdm

    trained = _run_of_images(run)
    files = sorted(codes.glob(f"*{SUFFIX}")) if codes.is_dir() else [codes] if codes.is_file() else []
    if not files:
        raise ValueError(f"{codes}: expected codes (*{SUFFIX}) that `python -m pipeline encode` wrote, found none")
    refuse_foreign(out, {f"{file.stem}.png" for file in files})
    coder, weights = Coder(trained, compute), _digest(trained)
    faults = []
    for file in tqdm(files, desc="decode", unit="image", disable=None):
        try:
            code = from_bytes(file.read_bytes())
            if code.weights != weights:
                raise ValueError(
                    f"expected a code for the weights of {trained.folder} (SHA-256 {weights.hex()}...), found one for "
                    f"{code.weights.hex()}...; give the run that encoded it with --run"
                )
            image = coder.decode(code.values, code.height, code.width)
        except ValueError as error:
            faults.append(f"{file}: {error}")
            continue
        target = out / f"{file.stem}.png"
        write_anew(target, encode_image(target.name, image))
    print(f"Written: {len(files) - len(faults)} of {len(files)} images to {out}")
    refuse_unusable(faults, len(files), "codes could not be used")


def _check_codes(out: Path, names: set[str], weights: bytes, bits: int) -> None:
    """Refuse a folder that holds anything but codes of these names, weights and bits, and their table."""
    table = out / TABLE
    ours = {TABLE} if table.is_file() and table.read_bytes().startswith(HEADER.encode() + b"\n") else set()
    refuse_foreign(out, names | ours)
    others = sorted(name for name in names if (out / name).exists() and not _is_code(out / name, weights, bits))
    if others:
        raise ValueError(
            f"--out {out}: expected an empty folder or the result of the same command, found {len(others)} codes of "
            f"other weights or bits, {others[0]} among them; name another folder, or remove them"
        )


def _is_code(file: Path, weights: bytes, bits: int) -> bool:
    try:
        code = from_bytes(file.read_bytes())
    except ValueError:
        return False
    return (code.weights, code.bits) == (weights, bits)


def nearest_jpeg(image: np.ndarray, size: int) -> tuple[int, int, float]:
    """Return quality, bytes and PSNR of the JPEG of an image whose size in bytes is nearest to the one given.

    JPEG as it is usually written, with halved colour resolution (4:2:0) and Huffman tables of its own. Its size rises
    with the quality, so that halving finds it.
    """
    low, high = 1, 100
    encoded = {quality: _jpeg(image, quality) for quality in (low, high)}
    while high - low > 1:
        middle = (low + high) // 2
        encoded[middle] = _jpeg(image, middle)
        low, high = (middle, high) if len(encoded[middle]) <= size else (low, middle)
    quality = min((low, high), key=lambda candidate: abs(len(encoded[candidate]) - size))
    decoded = cv2.imdecode(np.frombuffer(encoded[quality], np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return quality, len(encoded[quality]), psnr(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), image)


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    settings = (
        cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    )  # fmt: skip
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)[1].tobytes()


def _told(stored: Sequence[Stored]) -> Iterator[str]:
    if not stored:
        return
    total = sum(entry.bytes for entry in stored)
    raw, files = sum(entry.raw_bytes for entry in stored), sum(entry.file_bytes for entry in stored)
    yield (
        f"{len(stored)} images, {total:,} bytes ({24 * total / raw:.3f} bits a pixel): {_times(total, raw)} than their "
        f"pixels, {_times(total, files)} than their files"
    )
    own, other = (np.median([getattr(entry, name) for entry in stored]) for name in ("psnr", "jpeg_psnr"))
    jpeg = sum(entry.jpeg_bytes for entry in stored)
    yield (
        f"PSNR, median: {own:.2f} dB; JPEG of the nearest size: {other:.2f} dB at {jpeg:,} bytes, "
        f"{jpeg / total:.2f} times the codes'"
    )
    yield f"At equal or fewer bytes {_verdict(stored)}"


def _times(size: int, other: int) -> str:
    return f"{other / size:.1f} times smaller" if size <= other else f"{size / other:.1f} times larger"


def _verdict(stored: Sequence[Stored]) -> str:
    """Say for how many images the code, or JPEG, is better: higher PSNR in equal or fewer bytes."""
    code = sum(e.psnr > e.jpeg_psnr and e.bytes <= e.jpeg_bytes * (1 + SAME_SIZE) for e in stored)
    jpeg = sum(e.psnr < e.jpeg_psnr and e.jpeg_bytes <= e.bytes * (1 + SAME_SIZE) for e in stored)
    undecided = len(stored) - code - jpeg
    told = f"the code is better for {code} of {len(stored)} images, JPEG for {jpeg}"
    return told + (f"; {undecided} without a JPEG of that size, or with equal PSNR" if undecided else "")


def _run_of_images(run: str) -> TrainedRun:
    """Open a run that makes images of images. Raises ValueError for any other."""
    trained = named_run(run)
    if not trained.outputs.is_image:
        raise ValueError(
            f"{trained.folder}: expected a run that makes images, found one trained for {trained.config.train.task} "
            f"({', '.join(trained.outputs.channels)}); train an autoencoder with train.task=reconstruction"
        )
    return trained


def _digest(trained: TrainedRun) -> bytes:
    return bytes.fromhex(file_hash(trained.weights))[:DIGEST_BYTES]


# --- Drawing ------------------------------------------------------------------------------------------------------


def generate_images(
    run: str,
    out: Path,
    count: int = 16,
    size: int = 128,
    seed: int | None = None,
    compute: ComputeSettings | None = None,
) -> None:
    """Write tile_<n>.png, and grid.png of all, decoded from codes drawn from N(0, 1); the same bytes each time.

    run: of a variational autoencoder, by its name below data/train/ or its folder; size: side in pixels; seed: by
    default the run's. Tile n does not depend on the count. Another file is never replaced. Raises ValueError for any
    other run, and where out cannot be used or holds something else.
    """
    from tqdm import tqdm

    asked = (("--count", count, 1, 9999), ("--size", size, 1, 8192), ("--seed", seed or 0, 0, 2**32 - 1))
    for flag, value, least, largest in asked:
        if not least <= value <= largest:
            raise ValueError(f"{flag}: expected {least} to {largest}, found {value}")
    trained = _run_of_images(run)
    if trained.config.train.network.name != "autoencoder:variational":
        raise ValueError(
            f"{trained.folder}: expected a variational autoencoder, whose codes are trained to lie as N(0, 1) does, "
            f"found {trained.config.train.network.name}: nothing says where its codes lie; train one with "
            f"train.network.name=autoencoder:variational"
        )
    names = [f"tile_{number:04d}.png" for number in range(1, count + 1)]
    refuse_foreign(out, {*names, *([GRID] if (out / names[0]).exists() else [])})
    coder = Coder(trained, compute)
    generator = torch.Generator().manual_seed(trained.config.seed if seed is None else seed)
    shown: list[np.ndarray] = []
    for name in tqdm(names, desc="generate", unit="image", disable=None):
        with torch.inference_mode():
            tile = to_pixels(coder.activation(coder.network.sample(1, size, size, generator).float())[0].cpu().numpy())
        write_anew(out / name, encode_image(name, tile))
        shown += [tile] if len(shown) < LARGEST_SHEET else []
    write_png(out / GRID, _grid(shown))
    print(f"Written: {count} images of {size} x {size} pixels, and grid.png, to {out}")


def _grid(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Lay square tiles of one size out in a square, white between them."""
    side = len(tiles[0])
    columns = int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // columns)
    step = side + GRID_GAP
    grid = np.full((rows * step + GRID_GAP, columns * step + GRID_GAP, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (GRID_GAP + step * at for at in divmod(number, columns))
        grid[top : top + side, left : left + side] = tile
    return grid
