"""Seeds of the separate random generators of a trial, each from the trial's seed and a name.

    stream               hashed text                 bits
    initial_weights      SEED/PART                   56
    toggle               SEED/EPOCH/TOGGLE           63
    dropout              dropout/EPOCH/SEED          63
    shuffle              shuffle/SEED/EPOCH          64

A seed is the first bits of the SHA-256 of the text. The texts and widths differ for historical
reasons and must not change: stored results depend on them. Torch takes at most 63 bits. The draws
of a split (`casting_tune.data.splits`) and the synthetic images use numpy's SeedSequence instead.
"""

from __future__ import annotations

import hashlib


def initial_weights(seed: int, part: str) -> int:
    """Return the seed of the initial weights of a part of the network ("backbone", "head")."""
    return _first_bits(f"{seed}/{part}", 56)


def toggle(seed: int, epoch: int, name: str) -> int:
    """Return the seed of the parameters of one toggle in one epoch."""
    return _first_bits(f"{seed}/{epoch}/{name}", 63)


def dropout(seed: int, epoch: int) -> int:
    """Return the seed of the dropout masks of one epoch."""
    return _first_bits(f"dropout/{epoch}/{seed}", 63)


def shuffle(seed: int, epoch: int) -> int:
    """Return the seed of the order of the training images in one epoch."""
    return _first_bits(f"shuffle/{seed}/{epoch}", 64)


def _first_bits(text: str, bits: int) -> int:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)
