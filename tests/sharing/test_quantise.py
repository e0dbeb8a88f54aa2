"""Rounding to 8 and 4 bits: no weight moves by more than half a step, and the bytes are what the format says."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small import complex_normal

from sem_jax.sharing.quantise import Quantisation, decode, encode, from_tensors, is_quantised, stored_forms, to_tensors

HALF_PRECISION = 2.0**-10  # relative distance of two neighbours in float16
SMALLEST = 2.0**-24  # of float16
ROUNDING = 2.0**-24  # relative, of float32


def plain(codes, lows, scales, width, how):
    """The weights in float64, bit by bit and one by one; nothing is shared with the code under test."""
    rows = []
    for row, low, scale in zip(*(each.reshape(-1, each.shape[-1]) for each in (codes, lows, scales)), strict=True):
        bits = "".join(f"{byte:08b}"[::-1] for byte in row)  # lowest bit first
        numbers = [int(bits[i * how.bits : (i + 1) * how.bits][::-1], 2) for i in range(width)]
        rows.append([float(low[i // how.group]) + n * float(scale[i // how.group]) for i, n in enumerate(numbers)])
    return np.array(rows, np.float64).reshape(*codes.shape[:-1], width)


WEIGHTS = st.integers(1, 70).flatmap(
    lambda width: arrays.arrays(
        np.float32,
        (2, width),
        elements=st.one_of(st.just(0.0), st.floats(-3, 3, width=32), st.floats(-6e4, 6e4, width=32)),
    )
)


@settings(max_examples=40)
@given(WEIGHTS, st.sampled_from([8, 4]), st.sampled_from([1, 3, 16, 64]))
def test_no_weight_moves_by_more_than_half_a_step_and_a_step_is_no_longer_than_it_must_be(values, bits, group):
    how = Quantisation(bits, group)
    codes, lows, scales = encode(values, how)
    width = values.shape[-1]
    groups = -(-width // group)
    assert (codes.dtype, codes.shape) == (np.uint8, (2, -(-width * bits // 8)))
    assert (lows.dtype, lows.shape) == (scales.dtype, scales.shape) == (np.float16, (2, groups))
    back = decode(codes, lows, scales, width, how)
    assert back.dtype == np.float32
    # The product has at most 8 + 11 bits and is exact; the sum is rounded once.
    np.testing.assert_allclose(back, plain(codes, lows, scales, width, how), rtol=ROUNDING, atol=0)
    exact = values.astype(np.float64)
    step = np.repeat(scales.astype(np.float64), group, axis=1)[:, :width]
    # Weight less low and the division are rounded before the code, low plus step after it.
    assert (np.abs(back - exact) <= step / 2 + 2**bits * step * 2 * ROUNDING + np.abs(back) * ROUNDING).all()
    for i in range(groups):
        of_group = exact[:, i * group : (i + 1) * group]
        smallest, largest = of_group.min(axis=1), of_group.max(axis=1)
        low, taken = lows[:, i].astype(np.float64), scales[:, i].astype(np.float64)
        assert (low <= smallest).all()
        assert (low >= smallest - np.abs(smallest) * HALF_PRECISION - SMALLEST).all()
        needed = (largest - low) / (2**bits - 1)
        assert (taken >= needed * (1 - 2 * ROUNDING)).all()
        assert (taken <= needed * (1 + HALF_PRECISION + 2 * ROUNDING) + SMALLEST).all()


def test_the_codes_of_four_bits_lie_two_in_a_byte_the_first_in_its_low_half():
    codes, lows, scales = encode(np.array([[12.0, -3.0, 0.0, 3.4, 1.0]], np.float32), Quantisation(4))
    assert (lows, scales) == (-3, 1)
    np.testing.assert_array_equal(codes, [[15 | 0 << 4, 3 | 6 << 4, 4]])


def test_the_codes_of_eight_bits_are_bytes():
    codes, lows, scales = encode(np.array([[127.0, -128.0, 0.0, 3.4]], np.float32), Quantisation(8))
    assert (lows, scales) == (-128, 1)
    np.testing.assert_array_equal(codes, [[255, 0, 128, 131]])


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros_and_one_huge_weight_spoils_its_own_group_alone(bits):
    how = Quantisation(bits, 4)
    values = np.float32([[0, 0, 0, 0, 1, 2, 3, 1e5, 1, 2, 3]])
    back = decode(*encode(values, how), 11, how)
    np.testing.assert_array_equal(back[0, :4], 0)
    np.testing.assert_allclose(back[0, 7], 1e5, rtol=HALF_PRECISION)
    np.testing.assert_allclose(back[0, 8:], [1, 2, 3], atol=2 / (2**bits - 1) / 2 * (1 + HALF_PRECISION))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.333, 1e-9, -3e4])
def test_a_group_of_equal_weights_stays_one(bits, value):
    how = Quantisation(bits)
    back = decode(*encode(np.full((1, 64), value, np.float32), how), 64, how)
    assert len(np.unique(back)) == 1
    # The grid reaches from a neighbour in float16 to the weight.
    half_a_step = (abs(value) * HALF_PRECISION / (2**bits - 1) + SMALLEST) / 2
    np.testing.assert_allclose(back, np.float32(value), rtol=2 * ROUNDING, atol=half_a_step)


def test_a_grid_beyond_float16_is_infinite_and_none_within():
    lows, scales = encode(np.float32([[-65504, 65504]]), Quantisation(4))[1:]
    assert np.isfinite(lows).all()
    assert np.isfinite(scales).all()
    assert np.isinf(encode(np.float32([[-65505, 0]]), Quantisation(4))[1])
    assert np.isinf(encode(np.float32([[0, 65505 * 15]]), Quantisation(4))[2])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [16, 65])
def test_a_complex_leaf_is_two_real_ones(bits, width):
    how = Quantisation(bits)
    leaf = complex_normal(np.random.default_rng(1), 2, 3, width).astype(np.complex64)
    tensors = to_tensors("w", leaf, how)
    kinds = ("codes", "lows", "scales")
    assert list(tensors) == [f"w.{part}.{kind}" for part in ("real", "imag") for kind in kinds]
    back = from_tensors("w", leaf, how, tensors)
    assert back.dtype == np.complex64
    for part in ("real", "imag"):
        alone = to_tensors("x", np.ascontiguousarray(getattr(leaf, part)), how)
        for kind in kinds:
            np.testing.assert_array_equal(tensors[f"w.{part}.{kind}"], alone[f"x.{kind}"])
        expected = plain(*alone.values(), width, how)
        np.testing.assert_allclose(getattr(back, part), expected, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("how", [None, Quantisation(8), Quantisation(4), Quantisation(4, 24)])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_the_forms_told_beforehand_are_those_of_the_tensors(how, dtype):
    leaf = np.zeros((2, 3, 65), dtype)
    forms = stored_forms("w", jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), how)
    tensors = to_tensors("w", leaf, how)
    assert {name: (form.shape, form.dtype) for name, form in forms.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("shape", "decays", "expected"),
    [((4, 16), True, True), ((4, 16), False, False), ((4, 15), True, False), ((64,), True, False), ((), True, False)],
)
def test_what_decays_and_has_long_rows_is_rounded(shape, decays, expected):
    assert is_quantised(np.zeros(shape), decays) is expected
