"""Files with the same bytes and different labels, and a warning about them.

Input: a Pack. Output: pairs of paths, a sentence. Reads no pixels.
"""

from __future__ import annotations

from casting_tune.data.decode import one_line
from casting_tune.data.pack import Pack

_SHOWN_PAIRS = 5


def conflicts(pack: Pack) -> list[tuple[str, str]]:
    """Return (defective, good) paths of files with the same bytes and different labels.

    Each such file is in at least one pair.
    """
    pairs = []
    both = set(pack.sha256[pack.labels == 1]) & set(pack.sha256[pack.labels == 0])
    for content in sorted(both):
        same = pack.sha256 == content
        bad, good = (pack.paths[same & (pack.labels == label)].tolist() for label in (1, 0))
        pairs += [(bad[i % len(bad)], good[i % len(good)]) for i in range(max(len(bad), len(good)))]
    return sorted(pairs)


def conflict_note(pack: Pack) -> str:
    """Return a warning about files with the same bytes and different labels; "" without any."""
    pairs = conflicts(pack)
    if not pairs:
        return ""
    shown = "; ".join(
        f"'{one_line(bad)}' = '{one_line(good)}'" for bad, good in pairs[:_SHOWN_PAIRS]
    )
    n_more = len(pairs) - _SHOWN_PAIRS
    more = f"; and {n_more} more (casting-tune audit)" if n_more > 0 else ""
    n = len({path for pair in pairs for path in pair})
    return (
        f"{n} files have the same bytes in both classes, so one of their labels is wrong: "
        f"{shown}{more}. Correct the labels or remove these files."
    )
