"""Warnings about images that contradict or leak: the same bytes twice, a group in train and test.

Input: a Pack. Output: pairs of paths, sentences. Reads no pixels.
"""

from __future__ import annotations

import numpy as np

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


def group_note(pack: Pack) -> str:
    """Return a warning about test images whose given group is also in train; "" without any."""
    if pack.groups is None:
        return ""
    test = pack.splits == "test"
    learned = set(pack.groups[~test].tolist()) - {""}
    leaked = np.isin(pack.groups[test], sorted(learned))
    if not leaked.any():
        return ""
    example = one_line(str(pack.groups[test][leaked][0]))
    return (
        f"{int(leaked.sum())} of {int(test.sum())} test images are of a group that is also in "
        f"training (such as '{example}'): scores look too good. Use split = \"grouped\"."
    )
