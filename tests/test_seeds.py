"""Seeds of random streams: stored results depend on every bit of them.

The expected numbers are the first 56, 63 or 64 bits of `sha256sum` of the text.
"""

from __future__ import annotations

from casting_tune import seeds


def test_each_stream_has_the_seed_that_stored_results_were_trained_with() -> None:
    assert seeds.initial_weights(3, "backbone") == 22945291464039688
    assert seeds.toggle(3, 2, "flip") == 5086270970737232627
    assert seeds.dropout(3, 2) == 1044096410103540417
    assert seeds.shuffle(3, 2) == 6471628258136260216
