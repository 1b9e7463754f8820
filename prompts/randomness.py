"""Random numbers that depend only on a key, not on earlier draws."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

Key = Sequence[int | str]
"""The key of a draw, e.g. (seed, epoch, sample, round). Append a name to separate draws with an otherwise equal key."""


def _words(part: int | str) -> tuple[int, int]:
    if isinstance(part, str):
        number = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
    else:
        number = int(part) % (1 << 64)
    return number & 0xFFFFFFFF, number >> 32


def uniforms(key: Key, n: int) -> np.ndarray:
    """`n` float64 numbers, uniform on [0, 1), that depend only on `key`.

    The same key gives the same numbers on every machine and in every process; a longer draw starts with the
    numbers of a shorter one. Uses counter-based Philox seeded through `SeedSequence`.
    """
    if isinstance(key, str) or len(key) == 0:
        raise ValueError(f"a key must be a non-empty sequence of integers and names, got {key!r}")
    # SeedSequence ignores trailing zeros; the length and two words per part distinguish (1,) from (1, 0).
    entropy = [len(key)] + [word for part in key for word in _words(part)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).random(n)
