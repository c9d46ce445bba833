"""Joins several groupings of images: what any of them keeps together stays together.

Input: columns of names per image. Output: a group number per image. Knows no pixels and no splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def joined(*columns: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """Return a group number per image, counted in the order of the first image of each group.

    Args:
        columns: [n] names or numbers each; images with the same name are together. An empty name is
            no group.
    """
    parent = list(range(len(columns[0])))

    def top(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for column in columns:
        first: dict[Any, int] = {}
        for i, name in enumerate(np.asarray(column).tolist()):
            if name == "":
                continue
            one, other = top(i), top(first.setdefault(name, i))
            parent[max(one, other)] = min(one, other)
    roots = [top(i) for i in range(len(parent))]
    _, number = np.unique(roots, return_inverse=True)  # a root is the first image of its group
    return number.astype(np.int64)
