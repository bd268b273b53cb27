"""The loops over pixels, compiled: what NumPy and OpenCV would need many passes over memory for.

Pixels are (n, 3) uint8 RGB in rows, C order. Every loop runs in one thread and lets others run (nogil); transforms are
split over threads that live for one call only. Nothing is kept between calls, so that forked workers, several Python
threads and loaders cannot wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import cv2
import numba
import numpy as np

LEAST_PART = 2**17
"""Pixels below which a thread of its own is not worth its start."""
BLOCK = 256
"""Pixels that stay in the first cache while they go through several steps."""


def _compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call and keep the machine code beside the module, or in the user's cache folder."""
    options: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:
        # Neither folder can be written, as in a read-only installation: compiled anew in each process.
        return numba.njit(**options)(loop)


def over_image(loop: Callable[..., Any], image: np.ndarray, *tables: np.ndarray) -> np.ndarray:
    """Run a loop(pixels, out, *tables) over all pixels of an image, split over as many threads as OpenCV may use.

    image: (height, width, 3) uint8; returns a new one.
    """
    pixels = _writable(image).reshape(-1, 3)
    out = np.empty(image.shape, np.uint8)
    flat = out.reshape(-1, 3)
    parts = max(1, min(cv2.getNumThreads(), len(pixels) // LEAST_PART))
    if parts == 1:
        loop(pixels, flat, *tables)
        return out
    ends = np.linspace(0, len(pixels), parts + 1).astype(int).tolist()
    pieces = [slice(*pair) for pair in pairwise(ends)]
    with ThreadPoolExecutor(parts - 1) as threads:
        others = [threads.submit(loop, pixels[piece], flat[piece], *tables) for piece in pieces[1:]]
        loop(pixels[pieces[0]], flat[pieces[0]], *tables)
        for other in others:
            other.result()
    return out


def _writable(image: np.ndarray) -> np.ndarray:
    """C order, writable: an array of another kind would be compiled for once more."""
    image = np.ascontiguousarray(image)
    return image if image.flags.writeable else image.copy()


def grid(image: np.ndarray, step: int) -> np.ndarray:
    """Take every step-th pixel of every step-th row, shifted from row to row so that no pattern is met in step.

    image: (height, width, 3) uint8; returns (n, 3).
    """
    rows, columns = -(-image.shape[0] // step), -(-image.shape[1] // step)
    pixels = np.empty((rows * columns, 3), np.uint8)
    return pixels[: _grid(_writable(image), step, pixels)]


@_compiled
def _grid(image: np.ndarray, step: int, pixels: np.ndarray) -> int:
    n, shift = 0, 0
    for row in range(0, image.shape[0], step):
        for column in range(shift, image.shape[1], step):
            for channel in range(3):
                pixels[n, channel] = image[row, column, channel]
            n += 1
        # Multiples of the golden section meet all shifts about equally often.
        shift = int((row // step + 1) * 0.6180339887498949 * step) % min(step, image.shape[1])
    return n


@_compiled
def select(pixels: np.ndarray, density: np.ndarray, thresholds: np.ndarray, kept: np.ndarray) -> int:
    """Copy stained tissue into kept, (n, 3), and return how many pixels there are.

    density: (3, 256) of each channel's grey levels; thresholds: least sum, most of the least, least share of the range.
    """
    n = 0
    for i in range(pixels.shape[0]):
        red, green, blue = density[0, pixels[i, 0]], density[1, pixels[i, 1]], density[2, pixels[i, 2]]
        least = min(red, green, blue)
        most = max(red, green, blue)
        total = red + green + blue
        tissue = (
            (total > thresholds[0]) & (least < thresholds[1]) & (most - least > thresholds[2] * total) & (green > least)
        )
        for channel in range(3):
            kept[n, channel] = pixels[i, channel]
        n += 1 if tissue else 0
    return n


@_compiled
def second_moment(tissue: np.ndarray, density: np.ndarray, limit: float) -> tuple[int, np.ndarray]:
    """Sum the outer products (3, 3) of the densities whose densest channel is below a limit, and count them."""
    limit_ = np.float32(limit)
    n, rr, rg, rb, gg, gb, bb = 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(tissue.shape[0]):
        red, green, blue = density[0, tissue[i, 0]], density[1, tissue[i, 1]], density[2, tissue[i, 2]]
        if max(red, green, blue) < limit_:
            n += 1
            rr += red * red
            rg += red * green
            rb += red * blue
            gg += green * green
            gb += green * blue
            bb += blue * blue
    return n, np.array([[rr, rg, rb], [rg, gg, gb], [rb, gb, bb]])


@_compiled
def directions(tissue: np.ndarray, density: np.ndarray, limit: float, plane: np.ndarray, sums: np.ndarray) -> None:
    """Sort the densities below a limit by their direction in a plane.

    plane: (3, 2), the axis along the cloud and the one across it; sums: (3, bins), to which are added, in the bin of
    each pixel's slope (slope_of), 1, its length in the plane and the square of that.
    """
    bins = sums.shape[1]
    half = np.float32(bins / 2)
    limit_ = np.float32(limit)
    for i in range(tissue.shape[0]):
        red, green, blue = density[0, tissue[i, 0]], density[1, tissue[i, 1]], density[2, tissue[i, 2]]
        if max(red, green, blue) < limit_:
            along = red * plane[0, 0] + green * plane[1, 0] + blue * plane[2, 0]
            across = red * plane[0, 1] + green * plane[1, 1] + blue * plane[2, 1]
            place = across / (abs(along) + abs(across))
            square = along * along + across * across
            k = min(bins - 1, int(half + half * place))
            sums[0, k] += 1.0
            sums[1, k] += np.sqrt(square)
            sums[2, k] += square


@_compiled
def _below(sums: np.ndarray, angle: float, part: np.ndarray) -> None:
    """Read the cumulative sums (5, bins + 1) at an angle into part, (5,); between bins along a line."""
    bins = sums.shape[1] - 1
    slope = np.tan(angle)
    place = (1.0 + slope / (1.0 + abs(slope))) * bins / 2.0
    k = min(max(int(place), 0), bins - 1)
    share = place - k
    for row in range(5):
        part[row] = sums[row, k] + share * (sums[row, k + 1] - sums[row, k])


@_compiled
def _beyond(part: np.ndarray, angle: float, penalty: float) -> float:
    """What the pixels beyond a vector at an angle cost: their error and the penalty on their concentrations."""
    error = (part[2] - part[3] * np.cos(2.0 * angle) - part[4] * np.sin(2.0 * angle)) / 4.0
    return error + penalty * (part[0] * np.cos(angle) + part[1] * np.sin(angle))


@_compiled
def cheapest_pair(
    sums: np.ndarray, penalty: float, low: float, high: float, searched: int, rounds: int
) -> tuple[float, float]:
    """Search two angles between low and high for the least cost of a sparse dictionary, on ever finer grids.

    sums: (5, bins + 1), over all bins before, of r cos t, r sin t, r^2, r^2 cos 2t and r^2 sin 2t, for pixels of
    density r and direction t; penalty: on the sum of concentrations; searched: angles for each vector in a round, which
    goes over the neighbourhood of the best pair of the one before.
    """
    under, over = np.empty((searched, 5)), np.empty((searched, 5))
    under_cost, over_cost = np.empty(searched), np.empty(searched)
    first, second, step = low, low, (high - low) / (searched - 1)
    best_first, best_second = low, high
    for _ in range(rounds):
        for i in range(searched):
            _below(sums, first + i * step, under[i])
            under_cost[i] = _beyond(under[i], first + i * step, penalty)
            _below(sums, second + i * step, over[i])
            for row in range(5):
                over[i, row] = sums[row, -1] - over[i, row]
            over_cost[i] = _beyond(over[i], second + i * step, penalty)
        least = np.finfo(np.float64).max
        for i in range(searched):
            a = first + i * step
            for k in range(searched):
                b = second + k * step
                if b - a > 1e-3:
                    cosines = sums[0, -1] - under[i, 0] - over[k, 0]
                    sines = sums[1, -1] - under[i, 1] - over[k, 1]
                    amount = ((np.sin(b) - np.sin(a)) * cosines + (np.cos(a) - np.cos(b)) * sines) / np.sin(b - a)
                    cost = penalty * amount + under_cost[i] + over_cost[k]
                    if cost < least:
                        least, best_first, best_second = cost, a, b
        reach = 1.5 * step
        first, second, step = best_first - reach, best_second - reach, 2.0 * reach / (searched - 1)
    return best_first, best_second


@_compiled
def amounts(tissue: np.ndarray, tables: np.ndarray, top: float, counts: np.ndarray) -> None:
    """Count least-squares concentrations into bins from 0 to top; what is outside falls into the first or last.

    tables: (2, 3, 256), each channel's part of each stain's concentration; counts: (2, bins), added to.
    """
    bins = counts.shape[1]
    scale = np.float32(bins / top)
    last = np.float32(bins - 1)
    for i in range(tissue.shape[0]):
        for stain in range(2):
            amount = tables[stain, 0, tissue[i, 0]] + tables[stain, 1, tissue[i, 1]] + tables[stain, 2, tissue[i, 2]]
            counts[stain, int(min(max(amount * scale, np.float32(0.0)), last))] += 1


@_compiled
def amounts_nonnegative(tissue: np.ndarray, tables: np.ndarray, cosine: float, top: float, counts: np.ndarray) -> None:
    """Count non-negative least-squares concentrations, as amounts does.

    tables: (2, 3, 256), each channel's part of the product of density and stain vector; cosine: of the two vectors.
    """
    bins = counts.shape[1]
    scale = np.float32(bins / top)
    last = np.float32(bins - 1)
    zero = np.float32(0.0)
    cosine_ = np.float32(cosine)
    sine = np.float32(1.0 / (1.0 - cosine * cosine))
    for i in range(tissue.shape[0]):
        red, green, blue = tissue[i, 0], tissue[i, 1], tissue[i, 2]
        one = tables[0, 0, red] + tables[0, 1, green] + tables[0, 2, blue]
        other = tables[1, 0, red] + tables[1, 1, green] + tables[1, 2, blue]
        first, second = (one - cosine_ * other) * sine, (other - cosine_ * one) * sine
        if first < zero:
            first, second = zero, max(other, zero)
        elif second < zero:
            first, second = max(one, zero), zero
        counts[0, int(min(first * scale, last))] += 1
        counts[1, int(min(second * scale, last))] += 1


@_compiled
def product(pixels: np.ndarray, out: np.ndarray, factors: np.ndarray) -> None:
    """Multiply three looked-up factors for each channel: a matrix on densities, exactly.

    factors: (3, 3, 256) float32, channel in, channel out, grey level in.
    """
    white, half = np.float32(255.0), np.float32(0.5)
    for i in range(pixels.shape[0]):
        # An index of the machine's width spares a conversion for every look-up.
        red, green, blue = np.intp(pixels[i, 0]), np.intp(pixels[i, 1]), np.intp(pixels[i, 2])
        one = factors[0, 0, red] * factors[1, 0, green] * factors[2, 0, blue]
        two = factors[0, 1, red] * factors[1, 1, green] * factors[2, 1, blue]
        three = factors[0, 2, red] * factors[1, 2, green] * factors[2, 2, blue]
        out[i, 0] = np.uint8(np.int32(min(one, white) + half))
        out[i, 1] = np.uint8(np.int32(min(two, white) + half))
        out[i, 2] = np.uint8(np.int32(min(three, white) + half))


@_compiled
def product_nonnegative(
    pixels: np.ndarray, out: np.ndarray, tables: np.ndarray, factors: np.ndarray, white: np.ndarray
) -> None:
    """Exchange two stains whose concentrations are at least 0 (non-negative least squares), exactly.

    Where both are above 0, or one of them is, the result is a matrix on densities: one of three products.
    tables: (2, 3, 256), each channel's part of either stain's unbounded concentration; factors: (3, 3, 3, 256), as
    product takes them: for both stains, the first alone, the second alone; white: (3,), what no stain at all becomes.
    """
    zero, half = np.float32(0.0), np.float32(0.5)
    for i in range(pixels.shape[0]):
        red, green, blue = np.intp(pixels[i, 0]), np.intp(pixels[i, 1]), np.intp(pixels[i, 2])
        first = tables[0, 0, red] + tables[0, 1, green] + tables[0, 2, blue]
        second = tables[1, 0, red] + tables[1, 1, green] + tables[1, 2, blue]
        case = np.intp(2) if first < zero else (np.intp(1) if second < zero else np.intp(0))
        one = factors[case, 0, 0, red] * factors[case, 1, 0, green] * factors[case, 2, 0, blue]
        two = factors[case, 0, 1, red] * factors[case, 1, 1, green] * factors[case, 2, 1, blue]
        three = factors[case, 0, 2, red] * factors[case, 1, 2, green] * factors[case, 2, 2, blue]
        # A concentration below 0 of the stain that is left would be brighter than white.
        out[i, 0] = np.uint8(np.int32(min(one, white[0]) + half))
        out[i, 1] = np.uint8(np.int32(min(two, white[1]) + half))
        out[i, 2] = np.uint8(np.int32(min(three, white[2]) + half))


@_compiled
def _cube_root(light: np.ndarray, root: np.ndarray, bits: np.ndarray, count: int) -> None:
    """Take CIE's f (ISO 11664-4) of (3, BLOCK) tristimulus values over white, in place; bits: root seen as integers.

    A third of the exponent, and one step of Halley's method: to a relative 1e-5.
    """
    two, linear = np.float32(2.0), np.float32((6.0 / 29.0) ** 3)
    slope, offset = np.float32(841.0 / 108.0), np.float32(4.0 / 29.0)
    for k in range(3):
        for i in range(count):
            root[k, i] = light[k, i]
        for i in range(count):
            bits[k, i] = bits[k, i] // np.int32(3) + np.int32(709921077)
        for i in range(count):
            value, guess = light[k, i], root[k, i]
            cube = guess * guess * guess
            better = guess * (cube + two * value) / (two * cube + value)
            light[k, i] = better if value > linear else slope * value + offset


@_compiled
def colour_moments(pixels: np.ndarray, light: np.ndarray, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum CIE's f of X, Y and Z over pixels: (3,), and their outer products, (3, 3).

    light: (256,) linear light of each grey level; xyz: (3, 3), to X, Y and Z over those of white.
    """
    values = np.empty((3, BLOCK), np.float32)
    root = np.empty((3, BLOCK), np.float32)
    bits = root.view(np.int32)
    total, squares = np.zeros(3), np.zeros((3, 3))
    for start in range(0, pixels.shape[0], BLOCK):
        count = min(BLOCK, pixels.shape[0] - start)
        for i in range(count):
            red, green, blue = light[pixels[start + i, 0]], light[pixels[start + i, 1]], light[pixels[start + i, 2]]
            for k in range(3):
                values[k, i] = xyz[k, 0] * red + xyz[k, 1] * green + xyz[k, 2] * blue
        _cube_root(values, root, bits, count)
        for k in range(3):
            part = np.float32(0.0)
            for i in range(count):
                part += values[k, i]
            total[k] += part
            for other in range(k + 1):
                part = np.float32(0.0)
                for i in range(count):
                    part += values[k, i] * values[other, i]
                squares[k, other] += part
    for k in range(3):
        for other in range(k):
            squares[other, k] = squares[k, other]
    return total, squares


@_compiled
def colour_shift(
    pixels: np.ndarray,
    out: np.ndarray,
    light: np.ndarray,
    shares: np.ndarray,
    xyz: np.ndarray,
    matrix: np.ndarray,
    offset: np.ndarray,
    rgb: np.ndarray,
    levels: np.ndarray,
) -> None:
    """Move CIE's f of X, Y and Z by an affine map, which any affine map of L, a and b is; what is not green stays so.

    light, xyz: as colour_moments takes them; shares: (3, 256), each channel's part of how far (0 to 1) a pixel moves;
    matrix, offset: (3, 3) and (3,); rgb: (3, 3), the inverse of xyz; levels: grey level of linear light from 0 to 1.
    """
    zero, one, half = np.float32(0.0), np.float32(1.0), np.float32(0.5)
    low, slope, third = np.float32(6.0 / 29.0), np.float32(108.0 / 841.0), np.float32(4.0 / 29.0)
    last = np.float32(levels.shape[0] - 1)
    seen = np.empty((4, BLOCK), np.float32)
    values = np.empty((3, BLOCK), np.float32)
    root = np.empty((3, BLOCK), np.float32)
    bits = root.view(np.int32)
    places = np.empty((3, BLOCK), np.int32)
    for start in range(0, pixels.shape[0], BLOCK):
        count = min(BLOCK, pixels.shape[0] - start)
        for i in range(count):
            red, green, blue = pixels[start + i, 0], pixels[start + i, 1], pixels[start + i, 2]
            seen[0, i], seen[1, i], seen[2, i] = light[red], light[green], light[blue]
            seen[3, i] = min(max(shares[0, red] + shares[1, green] + shares[2, blue], zero), one)
        for k in range(3):
            for i in range(count):
                values[k, i] = xyz[k, 0] * seen[0, i] + xyz[k, 1] * seen[1, i] + xyz[k, 2] * seen[2, i]
        _cube_root(values, root, bits, count)
        for i in range(count):
            x, y, z, share = values[0, i], values[1, i], values[2, i], seen[3, i]
            green = min(x - y, zero)
            x_moved = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + offset[0]
            y_moved = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + offset[1]
            z_moved = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + offset[2]
            x += share * (x_moved - x)
            y += share * (y_moved - y)
            z += share * (z_moved - z)
            x = max(x, y + green)
            x = x * x * x if x > low else (x - third) * slope
            y = y * y * y if y > low else (y - third) * slope
            z = z * z * z if z > low else (z - third) * slope
            for k in range(3):
                shown = rgb[k, 0] * x + rgb[k, 1] * y + rgb[k, 2] * z
                places[k, i] = np.int32(min(max(shown, zero), one) * last + half)
        for i in range(count):
            for k in range(3):
                out[start + i, k] = levels[places[k, i]]
