"""A choice among texts that depends on a name alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def draw(texts: Sequence[str], seed: int, name: str) -> str:
    """One of `texts`: a pure function of seed and name, the same in every process and place."""
    seen = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8)
    return texts[int.from_bytes(seen.digest()) % len(texts)]
