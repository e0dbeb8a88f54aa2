"""Records that know whether they have changed."""

import json

import pytest

from sem_jax.data.seal import SEAL, sealed, unsealed

VALUES = {"train": {"tokens": 12, "checksum": "ab"}, "validation": {"tokens": 3.5, "checksum": None}}


def test_a_sealed_record_comes_back_through_json():
    assert unsealed(json.loads(json.dumps(sealed(VALUES)))) == VALUES
    assert unsealed(VALUES) == VALUES  # of an earlier version, or of a user who has changed it


def test_no_flipped_bit_passes_for_the_record():
    content = json.dumps(sealed(VALUES)).encode()
    passed = []
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        try:
            values = unsealed(json.loads(damaged))
        except (ValueError, TypeError):
            continue
        if values.keys() == VALUES.keys():  # other names are refused by whoever reads them
            passed.append((position, values))
    assert [values for _, values in passed if values != VALUES] == []


@pytest.mark.parametrize("record", [None, 3, [], "text"])
def test_what_is_no_record_is_refused(record):
    with pytest.raises(TypeError, match="not a record"):
        unsealed(record)


def test_a_changed_value_is_told_from_a_missing_seal():
    with pytest.raises(ValueError, match="its seal does not fit"):
        unsealed(sealed(VALUES) | {"train": 3})
    with pytest.raises(ValueError, match="does not fit"):
        unsealed({**VALUES, SEAL: ""})
