"""The loops over pixels, compiled: what NumPy and OpenCV would need many passes over memory for.

Pixels are (n, 3) uint8 RGB in rows, C order. Every loop runs in one thread and lets others run (nogil); transforms are
split over threads that live for one call only. Nothing is kept between calls, so that forked workers, several Python
threads and loaders cannot wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from pipeline.machine_code import compiled

LEAST_PART = 2**17
"""Pixels below which a thread of its own is not worth its start."""
BLOCK = 256
"""Pixels that stay in the first cache while they go through several steps."""


_compiled = partial(compiled, exact=False)


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
def select(pixels: np.ndarray, density: np.ndarray, thresholds: np.ndarray, kept: np.ndarray, inks: np.ndarray) -> int:
    """Copy stained tissue into kept, (n, 3), and return how many pixels there are.

    density: (3, 256) of each channel's grey levels; thresholds: least sum, most of the least, least share of the range,
    then those of blue, red, green and black ink; inks: (2,), to which the pixels of ink are added, and those of them
    that absorb as tissue does.
    """
    flat, flat_kept = pixels.reshape(-1), kept.reshape(-1)
    seen = np.empty((3, BLOCK), np.float32)
    stained, inked = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
    least_sum, opaque, coloured, two = thresholds[0], thresholds[1], thresholds[2], np.float32(2.0)
    blue_0, blue_1, red_0, red_1, red_2 = thresholds[3], thresholds[4], thresholds[5], thresholds[6], thresholds[7]
    green_0, green_1, black_0, black_1, black_2 = (
        thresholds[8], thresholds[9], thresholds[10], thresholds[11], thresholds[12],
    )  # fmt: skip
    n, ink_pixels, alike = 0, 0, 0
    for start in range(0, pixels.shape[0], BLOCK):
        count = min(BLOCK, pixels.shape[0] - start)
        piece = flat[3 * start : 3 * (start + count)]
        for i in range(count):
            seen[0, i] = density[0, piece[3 * i]]
            seen[1, i] = density[1, piece[3 * i + 1]]
            seen[2, i] = density[2, piece[3 * i + 2]]
        # Looked up first and judged after, without a branch: so that many pixels are judged at once.
        for i in range(count):
            red, green, blue = seen[0, i], seen[1, i], seen[2, i]
            least = min(red, green, blue)
            most = max(red, green, blue)
            total = red + green + blue
            spread = most - least
            tissue = (total > least_sum) & (least < opaque) & (spread > coloured * total) & (green > least)
            ink = (
                ((red > blue_0) & (green + two * blue < blue_1 * red))
                | ((green > red_0) & (red < red_1 * green) & (blue > red_2 * green))
                | ((most > green_0) & (green < green_1 * min(red, blue)))
                | ((least > black_0) & ((spread <= black_1 * total) | (least > black_2)))
            )
            stained[i] = np.uint8(tissue)
            inked[i] = np.uint8(ink)
        for i in range(count):
            ink_pixels += inked[i]
            alike += inked[i] & stained[i]
        for i in range(count):
            flat_kept[3 * n] = piece[3 * i]
            flat_kept[3 * n + 1] = piece[3 * i + 1]
            flat_kept[3 * n + 2] = piece[3 * i + 2]
            n += 1 if stained[i] > inked[i] else 0
    inks[0] += ink_pixels
    inks[1] += alike
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

    factors: (3, 256, 4) float32, channel in, grey level in, channel out; the fourth plays no part, and lets the
    compiler work on all at once.
    """
    white, half = np.float32(255.0), np.float32(0.5)
    for i in range(pixels.shape[0]):
        # An index of the machine's width spares a conversion for every look-up.
        red, green, blue = np.intp(pixels[i, 0]), np.intp(pixels[i, 1]), np.intp(pixels[i, 2])
        one = factors[0, red, 0] * factors[1, green, 0] * factors[2, blue, 0]
        two = factors[0, red, 1] * factors[1, green, 1] * factors[2, blue, 1]
        three = factors[0, red, 2] * factors[1, green, 2] * factors[2, blue, 2]
        out[i, 0] = np.uint8(np.int32(min(one, white) + half))
        out[i, 1] = np.uint8(np.int32(min(two, white) + half))
        out[i, 2] = np.uint8(np.int32(min(three, white) + half))


@_compiled
def product_nonnegative(
    pixels: np.ndarray, out: np.ndarray, tables: np.ndarray, factors: np.ndarray, white: np.ndarray
) -> None:
    """Exchange two stains whose concentrations are at least 0 (non-negative least squares), exactly.

    Where both are above 0, or one of them is, the result is a matrix on densities: one of three products.
    tables: (2, 3, 256), each channel's part of either stain's unbounded concentration; factors: (3, 3, 256, 4), as
    product takes them: for both stains, the first alone, the second alone; white: (3,), what no stain at all becomes.
    """
    zero, half = np.float32(0.0), np.float32(0.5)
    for i in range(pixels.shape[0]):
        red, green, blue = np.intp(pixels[i, 0]), np.intp(pixels[i, 1]), np.intp(pixels[i, 2])
        first = tables[0, 0, red] + tables[0, 1, green] + tables[0, 2, blue]
        second = tables[1, 0, red] + tables[1, 1, green] + tables[1, 2, blue]
        case = np.intp(2) if first < zero else (np.intp(1) if second < zero else np.intp(0))
        one = factors[case, 0, red, 0] * factors[case, 1, green, 0] * factors[case, 2, blue, 0]
        two = factors[case, 0, red, 1] * factors[case, 1, green, 1] * factors[case, 2, blue, 1]
        three = factors[case, 0, red, 2] * factors[case, 1, green, 2] * factors[case, 2, blue, 2]
        # A concentration below 0 of the stain that is left would be brighter than white.
        out[i, 0] = np.uint8(np.int32(min(one, white[0]) + half))
        out[i, 1] = np.uint8(np.int32(min(two, white[1]) + half))
        out[i, 2] = np.uint8(np.int32(min(three, white[2]) + half))


@_compiled
def _levels_of(flat: np.ndarray, levels: np.ndarray, start: int, count: int) -> None:
    """Sort a block of pixels, (3 n,) uint8, into channels: (3, BLOCK) float32."""
    # Only of a piece that begins at 0, in one dimension, does the compiler sort many at once.
    piece = flat[3 * start : 3 * (start + count)]
    for i in range(count):
        levels[0, i] = np.float32(piece[3 * i])
        levels[1, i] = np.float32(piece[3 * i + 1])
        levels[2, i] = np.float32(piece[3 * i + 2])


@_compiled
def _cube_root(light: np.ndarray, root: np.ndarray, bits: np.ndarray, count: int) -> None:
    """Take CIE's f (ISO 11664-4) of (3, BLOCK) tristimulus values over white, in place; bits: root seen as integers.

    By the reciprocal of the root, which needs no division: a third of the exponent, and four terms of the series in
    what is left, to a relative 1e-6.
    """
    one, linear, third = np.float32(1.0), np.float32((6.0 / 29.0) ** 3), np.float32(1.0 / 3.0)
    slope, offset = np.float32(841.0 / 108.0), np.float32(4.0 / 29.0)
    start = np.float32(1419967116.0)
    second, third_term, last = np.float32(2.0 / 9.0), np.float32(14.0 / 81.0), np.float32(35.0 / 243.0)
    for k in range(3):
        for i in range(count):
            root[k, i] = max(light[k, i], linear)
        for i in range(count):
            bits[k, i] = np.int32(start - np.float32(bits[k, i]) * third)
        for i in range(count):
            value, guess = light[k, i], root[k, i]
            above = max(value, linear)
            rest = one - above * guess * guess * guess
            better = guess * (one + rest * (third + rest * (second + rest * (third_term + rest * last))))
            light[k, i] = above * better * better if value > linear else slope * value + offset


@_compiled
def _to_xyz(levels: np.ndarray, light: np.ndarray, xyz: np.ndarray, values: np.ndarray, count: int) -> None:
    """Turn grey levels of sRGB (3, BLOCK), which become linear light, into values: X, Y and Z over white."""
    c0, c1, c2, c3, c4, c5, c6 = light[0], light[1], light[2], light[3], light[4], light[5], light[6]
    knee, slope = np.float32(0.04045 * 255.0), np.float32(1.0 / (12.92 * 255.0))
    for k in range(3):
        for i in range(count):
            v = levels[k, i]
            curved = (((((c0 * v + c1) * v + c2) * v + c3) * v + c4) * v + c5) * v + c6
            levels[k, i] = curved if v > knee else slope * v
    for k in range(3):
        for i in range(count):
            values[k, i] = xyz[k, 0] * levels[0, i] + xyz[k, 1] * levels[1, i] + xyz[k, 2] * levels[2, i]


@_compiled
def colour_moments(pixels: np.ndarray, light: np.ndarray, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum CIE's f of X, Y and Z over pixels: (3,), and their outer products, (3, 3).

    light: (7,) coefficients, from the highest, of the polynomial from grey levels to linear light above the linear
    part; xyz: (3, 3), from that to X, Y and Z over those of white.
    """
    flat = pixels.reshape(-1)
    levels, values = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
    root = np.empty((3, BLOCK), np.float32)
    bits = root.view(np.int32)
    total, squares = np.zeros(3), np.zeros((3, 3))
    for start in range(0, pixels.shape[0], BLOCK):
        count = min(BLOCK, pixels.shape[0] - start)
        _levels_of(flat, levels, start, count)
        _to_xyz(levels, light, xyz, values, count)
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
def _shares(
    levels: np.ndarray, root: np.ndarray, bits: np.ndarray, density: np.ndarray, moved: np.ndarray, count: int
) -> None:
    """Say how far (0 to 1) each of a block of pixels moves: (BLOCK,), a line in the sum of its densities.

    density: share at the density 0, factor on the binary logarithm of the product of the levels, grey level that stands
    for 0, then coefficients, from the highest, of what that logarithm exceeds its chord by between powers of 2.
    """
    zero, one, unit, bias = np.float32(0.0), np.float32(1.0), np.float32(2.0**-23), np.float32(127.0)
    at_white, factor, darkest = density[0], density[1], density[2]
    d0, d1, d2, d3, d4, d5 = density[3], density[4], density[5], density[6], density[7], density[8]
    for i in range(count):
        root[0, i] = max(levels[0, i], darkest) * max(levels[1, i], darkest) * max(levels[2, i], darkest)
    for i in range(count):
        seen = bits[0, i]
        rest = np.float32(seen & np.int32(0x7FFFFF)) * unit
        above = ((((d0 * rest + d1) * rest + d2) * rest + d3) * rest + d4) * rest + d5
        moved[i] = min(max(at_white + factor * (np.float32(seen) * unit - bias + above), zero), one)


@_compiled
def colour_shift(
    pixels: np.ndarray,
    out: np.ndarray,
    light: np.ndarray,
    density: np.ndarray,
    xyz: np.ndarray,
    matrix: np.ndarray,
    offset: np.ndarray,
    rgb: np.ndarray,
    grey: np.ndarray,
) -> None:
    """Move CIE's f of X, Y and Z by an affine map, which any affine map of L, a and b is; what is not green stays so.

    Nearly every step is arithmetic on a block, which the processor does for many pixels at once, as it does no look-up.
    light, xyz: as colour_moments takes them; density: as _shares; matrix, offset: (3, 3) and (3,); rgb: (3, 3), the
    inverse of xyz; grey: at most 2^16 grey levels, of linear light from 0 to 1.
    """
    zero, one, half = np.float32(0.0), np.float32(1.0), np.float32(0.5)
    last = np.float32(grey.shape[0] - 1)
    low, slope, third = np.float32(6.0 / 29.0), np.float32(108.0 / 841.0), np.float32(4.0 / 29.0)
    flat, flat_out = pixels.reshape(-1), out.reshape(-1)
    levels, values = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
    root, moved = np.empty((3, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    bits = root.view(np.int32)
    # Without a sign, since a place that may be negative is looked at once more.
    places = np.empty((3, BLOCK), np.uint16)
    for start in range(0, pixels.shape[0], BLOCK):
        count = min(BLOCK, pixels.shape[0] - start)
        _levels_of(flat, levels, start, count)
        _shares(levels, root, bits, density, moved, count)
        _to_xyz(levels, light, xyz, values, count)
        _cube_root(values, root, bits, count)
        for i in range(count):
            x, y, z, share = values[0, i], values[1, i], values[2, i], moved[i]
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
                places[k, i] = np.uint16(np.int32(min(max(shown, zero), one) * last + half))
        piece = flat_out[3 * start : 3 * (start + count)]
        for i in range(count):
            piece[3 * i] = grey[places[0, i]]
            piece[3 * i + 1] = grey[places[1, i]]
            piece[3 * i + 2] = grey[places[2, i]]
