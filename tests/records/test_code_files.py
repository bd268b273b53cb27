"""Codes as files: what goes in comes out, near enough, and broken bytes are told apart."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.records.codes import DIGEST_BYTES, StoredCode, from_bytes, quantise, to_bytes

WEIGHTS = bytes(range(DIGEST_BYTES))
CODES = arrays(
    np.float32,
    array_shapes(min_dims=3, max_dims=3, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


def stored(values: np.ndarray, bits: int = 8) -> StoredCode:
    levels, lowest, step = quantise(values, bits)
    return StoredCode(levels, lowest, step, bits, 33, 20, WEIGHTS)


@settings(max_examples=60, deadline=None)
@given(CODES, st.integers(1, 16))
def test_a_code_comes_back_within_half_a_step(values: np.ndarray, bits: int) -> None:
    code = stored(values, bits)
    back = from_bytes(to_bytes(code))
    np.testing.assert_array_equal(back.levels, code.levels)
    np.testing.assert_array_equal(back.values, code.values)
    assert (back.bits, back.height, back.width, back.weights) == (bits, 33, 20, WEIGHTS)
    # Beside half a step, what float32 rounds in the sum of a large lowest value and many steps.
    rounding = 4 * np.spacing(np.abs(values).max())
    assert np.abs(code.values - values).max() <= code.step / 2 + rounding
    assert code.levels.max() < 2**bits


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_code_or_a_clear_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        from_bytes(content)
    with pytest.raises(ValueError, match="expected"):
        from_bytes(b"SSCO" + content)


def test_levels_by_hand() -> None:
    values = np.array([[[0.0, 1.0, 3.0]], [[10.0, 10.0, 10.4]], [[5.0, 5.0, 5.0]]], np.float32)
    levels, lowest, step = quantise(values, 2)
    np.testing.assert_array_equal(levels, [[[0, 1, 3]], [[0, 0, 0]], [[0, 0, 0]]])
    np.testing.assert_array_equal(lowest, [0, 10, 5])
    assert step == 1.0


def test_a_channel_that_hardly_varies_costs_nothing() -> None:
    generator = np.random.default_rng(3)
    lively = generator.normal(size=(4, 32, 32)).astype(np.float32)
    quiet = 1e-4 * generator.normal(size=(60, 32, 32)).astype(np.float32)
    alone, both = (len(to_bytes(stored(code))) for code in (lively, np.concatenate([lively, quiet])))
    assert both < alone + 60 * 4 + 200


def test_constant_codes_are_exact() -> None:
    values = np.full((3, 2, 2), np.pi, np.float32)
    np.testing.assert_array_equal(from_bytes(to_bytes(stored(values))).values, values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        quantise(np.array([[[0.0, value]]], np.float32), 8)
    with pytest.raises(ValueError, match="1 to 16"):
        quantise(np.zeros((1, 1, 1), np.float32), 17)


def test_every_flipped_byte_is_noticed() -> None:
    content = to_bytes(stored(np.random.default_rng(1).normal(size=(2, 3, 3)).astype(np.float32)))
    for at in range(len(content)):
        broken = bytearray(content)
        broken[at] ^= 0x10
        with pytest.raises(ValueError, match="expected"):
            from_bytes(bytes(broken))
    with pytest.raises(ValueError, match="CRC"):
        from_bytes(content[:-3])


def test_a_header_that_lies_is_refused_before_memory_is_taken() -> None:
    content = bytearray(to_bytes(stored(np.zeros((2, 3, 3), np.float32))))
    for rows, message in ((2**31, "none has"), (200, "bytes once unpacked")):
        content[16:20] = struct.pack("<I", rows)
        content[44:48] = bytes(4)
        content[44:48] = struct.pack("<I", zlib.crc32(bytes(content[48:]), zlib.crc32(bytes(content[:48]))))
        with pytest.raises(ValueError, match=message):
            from_bytes(bytes(content))


def test_another_version_is_named() -> None:
    content = bytearray(to_bytes(stored(np.zeros((1, 1, 1), np.float32))))
    content[4] = 9
    with pytest.raises(ValueError, match="version 1 of the format, found 9"):
        from_bytes(bytes(content))


def test_more_bits_come_nearer() -> None:
    values = np.random.default_rng(5).normal(size=(8, 9, 7)).astype(np.float32)
    errors = [np.abs(stored(values, bits).values - values).max() for bits in (2, 4, 8, 12, 16)]
    assert all(later < earlier / 2 for earlier, later in pairwise(errors))
