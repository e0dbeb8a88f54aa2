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

HALF_PRECISION = 2.0**-11  # relative, of float16
SMALLEST = 2.0**-24  # of float16
ULP = 2.0**-22  # a few roundings of float32, relative


def plain(codes, scales, width, how):
    """The weights in float64, bit by bit and one by one; nothing is shared with the code under test."""
    rows = []
    for row, row_scales in zip(codes.reshape(-1, codes.shape[-1]), scales.reshape(-1, scales.shape[-1]), strict=True):
        bits = "".join(f"{byte:08b}"[::-1] for byte in row)  # lowest bit first
        numbers = [int(bits[i * how.bits : (i + 1) * how.bits][::-1], 2) for i in range(width)]
        rows.append([(n - 2 ** (how.bits - 1)) * float(row_scales[i // how.group]) for i, n in enumerate(numbers)])
    return np.array(rows, np.float64).reshape(*codes.shape[:-1], width)


WEIGHTS = st.integers(1, 70).flatmap(
    lambda width: arrays.arrays(
        np.float32,
        (2, width),
        elements=st.one_of(st.just(0.0), st.floats(-3, 3, width=32), st.floats(-4e5, 4e5, width=32)),
    )
)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.sampled_from([8, 4]), st.sampled_from([1, 3, 16, 64]))
def test_no_weight_moves_by_more_than_half_a_step_and_a_step_is_no_longer_than_it_must_be(values, bits, group):
    how = Quantisation(bits, group)
    codes, scales = encode(values, how)
    width = values.shape[-1]
    groups = -(-width // group)
    assert (codes.dtype, codes.shape) == (np.uint8, (2, -(-width * bits // 8)))
    assert (scales.dtype, scales.shape) == (np.float16, (2, groups))
    back = decode(codes, scales, width, how)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, plain(codes, scales, width, how))  # the product is exact in float32
    step = np.repeat(scales.astype(np.float64), group, axis=1)[:, :width]
    assert (np.abs(back - values.astype(np.float64)) <= step / 2 * (1 + ULP)).all()
    for i in range(groups):
        largest = np.abs(values[:, i * group : (i + 1) * group]).max(axis=1).astype(np.float64)
        needed = largest / (2 ** (bits - 1) - 1)
        taken = scales[:, i].astype(np.float64)
        assert (taken >= needed * (1 - ULP)).all()
        assert (taken <= needed * (1 + 2 * HALF_PRECISION + ULP) + SMALLEST).all()


def test_the_codes_of_four_bits_lie_two_in_a_byte_the_first_in_its_low_half():
    codes, scales = encode(np.array([[7.0, -7.0, 0.0, 3.4, 1.0]], np.float32), Quantisation(4))
    np.testing.assert_array_equal(scales, [[1]])
    np.testing.assert_array_equal(codes, [[15 | 1 << 4, 8 | 11 << 4, 9 | 8 << 4]])


def test_the_codes_of_eight_bits_are_bytes_around_128():
    codes, scales = encode(np.array([[127.0, -127.0, 0.0, 3.4]], np.float32), Quantisation(8))
    np.testing.assert_array_equal(scales, [[1]])
    np.testing.assert_array_equal(codes, [[255, 1, 128, 131]])


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros_and_one_huge_weight_spoils_its_own_group_alone(bits):
    how = Quantisation(bits, 4)
    values = np.float32([[0, 0, 0, 0, 1, 2, 3, 1e5, 1, 2, 3]])
    back = decode(*encode(values, how), 11, how)
    np.testing.assert_array_equal(back[0, :4], 0)
    np.testing.assert_allclose(back[0, 7], 1e5, rtol=2 * HALF_PRECISION)
    np.testing.assert_allclose(back[0, 8:], [1, 2, 3], atol=3 / (2 ** (bits - 1) - 1) / 2 * (1 + 2 * HALF_PRECISION))


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_again_changes_nothing(bits):
    how = Quantisation(bits, 32)
    values = np.random.default_rng(0).normal(size=(5, 80)).astype(np.float32)
    codes, scales = encode(values, how)
    again = encode(decode(codes, scales, 80, how), how)
    np.testing.assert_array_equal(again[0], codes)
    np.testing.assert_array_equal(again[1], scales)


def test_a_scale_that_float16_cannot_hold_is_infinite_and_none_smaller_is():
    largest = np.float32(65504 * 7)
    assert encode(np.full((1, 2), largest), Quantisation(4))[1] == 65504
    assert np.isinf(encode(np.full((1, 2), np.nextafter(largest, np.float32(np.inf)) * 1.01), Quantisation(4))[1])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [16, 65])
def test_a_complex_leaf_is_two_real_ones(bits, width):
    how = Quantisation(bits)
    leaf = complex_normal(np.random.default_rng(1), 2, 3, width).astype(np.complex64)
    tensors = to_tensors("w", leaf, how)
    assert list(tensors) == ["w.real.codes", "w.real.scales", "w.imag.codes", "w.imag.scales"]
    back = from_tensors("w", leaf, how, tensors)
    assert back.dtype == np.complex64
    for part in ("real", "imag"):
        alone = to_tensors("x", np.ascontiguousarray(getattr(leaf, part)), how)
        np.testing.assert_array_equal(tensors[f"w.{part}.codes"], alone["x.codes"])
        expected = plain(tensors[f"w.{part}.codes"], tensors[f"w.{part}.scales"], width, how)
        np.testing.assert_array_equal(getattr(back, part), expected)


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
