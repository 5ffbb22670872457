"""Values as text inside a page: strict JSON, and columns of numbers, packed.

A block stands in a ``<script>`` element of a type that no browser runs. Nothing in it
can end that element: ``<`` is escaped in JSON, and Base64 has none.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np
import numpy.typing as npt

STEPS_PER_NAT = 2000
"""Log-probabilities are kept as whole multiples of 1 / 2000 nats: an error of at most
0.00025, the same at every size, down to −32.767 nats."""
LOWEST, MISSING = 65_534, 65_535
"""Stored for everything that is below, and for what is not known."""


def as_json(value: Any) -> str:
    """Strict JSON in ASCII that ends no element and begins no comment.

    Raises:
        ValueError: a NaN or an infinity is in the value.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def packed(content: bytes) -> str:
    """Gzip in Base64, the same for the same content."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")


def packed_json(value: Any) -> str:
    """JSON, packed.

    Raises:
        ValueError: a NaN or an infinity is in the value.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return packed(text.encode("ascii"))


def sixteen_bits(logprobs: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Log-probabilities in nats as multiples of −1 / ``STEPS_PER_NAT``.

    Args:
        logprobs: at most 0; NaN where not known.

    Returns:
        The same shape; ``LOWEST`` for −32.767 and below, ``MISSING`` for NaN.
    """
    found = np.asarray(logprobs, np.float64) * -STEPS_PER_NAT
    known = np.isfinite(found) | (found == np.inf)
    scaled = np.rint(np.clip(np.where(known, found, 0.0), 0.0, LOWEST))
    return np.where(known, scaled, MISSING).astype("<u2")
