"""A seal on a record: a checksum beside its values, so that a flipped bit is an error and not another run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"


def sealed(values: Mapping[Any, Any]) -> dict[str, Any]:
    """The values of a JSON record, with their seal in front.

    >>> unsealed(sealed({"tokens": 3}))
    {'tokens': 3}
    """
    return {SEAL: _digest(values), **values}


def unsealed(record: Any) -> dict[str, Any]:
    """The values of a record, if they are what was sealed. Records of earlier versions, without a seal, pass.

    So do records whose seal a user has deleted to change a value. Whoever reads a record refuses names that he does
    not know, and with them a seal whose own name is damaged.

    Raises:
      ValueError: the values have changed.
      TypeError: the record is no mapping.
    """
    if not isinstance(record, Mapping):
        raise TypeError(f"it is a {type(record).__name__}, not a record")
    values = dict(record)
    seal = values.pop(SEAL, None)
    if seal is not None and seal != _digest(values):
        raise ValueError(f"it has changed since it was written: its {SEAL} does not fit")
    return values


def _digest(values: Mapping[Any, Any]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
