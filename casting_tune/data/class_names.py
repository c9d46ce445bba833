"""Which classes of a set of images are good, which are kinds of defects, and how both are named.

Input: class names with their counts, and the names that the user gives. Output: Roles. Reads no
file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from casting_tune.data.decode import one_line
from casting_tune.errors import ImagesError, UsageError

_GOOD = {
    "ok", "okay", "io", "good", "normal", "pass", "passed", "passing", "perfect", "fine", "clean",
    "intact", "undamaged", "flawless", "accepted", "accept", "nodefect", "nondefective", "gut",
}  # fmt: skip
_BAD = {
    "def", "defect", "defects", "defective", "bad", "ng", "nok", "nio", "ko", "notok", "fail",
    "failed", "faulty", "fault", "faults", "anomaly", "anomalous", "abnormal", "damaged", "damage",
    "reject", "rejected", "scrap", "broken", "flaw", "flaws", "crack", "cracks", "scratch",
    "scratches",
}  # fmt: skip
_NOT = {"not", "no", "non", "without", "un"}
_UNCLEAR = {"unsure", "unclear", "uncertain", "unknown", "unlabeled", "unlabelled", "other",
            "misc", "review", "background"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Roles:
    """The classes by role.

    Attributes:
        good: class names of good images.
        defects: class names of defective images, one per kind.
        inferred: whether the names alone decided it.
    """

    good: tuple[str, ...]
    defects: tuple[str, ...]
    inferred: bool

    @property
    def positive(self) -> str:
        """The name of all defects together: the class, or `not GOOD` for several."""
        return self.defects[0] if len(self.defects) == 1 else f"not {', '.join(self.good)}"

    @property
    def negative(self) -> str:
        """The name of all good images together: the names of their classes."""
        return ", ".join(self.good)

    def sentence(self) -> str:
        """Return "good = MT_Free, defective = MT_Blowhole" with many names as their number."""
        return f"good = {_few(self.good)}, defective = {_few(self.defects)}"


def roles(
    counts: Mapping[str, int],
    *,
    positive: str | None = None,
    good: Iterable[str] = (),
    defect: Iterable[str] = (),
) -> Roles:
    """Return which classes are good and which are kinds of defects.

    Args:
        counts: images of each class, by its name.
        positive: the one defect class, or a name that `Roles.positive` gave before.
        good: the good classes; all others are defects.
        defect: the defect classes; all others are good.

    Raises:
        UsageError: two of the options name the same thing.
        ImagesError: a name is unknown, one side is empty, or the names leave a doubt.
    """
    given_good, given_defect = tuple(dict.fromkeys(good)), tuple(dict.fromkeys(defect))
    if positive is not None and (given_good or given_defect):
        raise UsageError(
            "--positive cannot be combined with --good or --defect. Remove --positive."
        )
    if len(counts) < 2:
        raise ImagesError(
            "Two classes are required, a good and a defective one; found "
            f"{counted(counts)}. Put the images of each class into a folder of its own."
        )
    if positive is not None:
        return _of_positive(counts, positive)
    if given_good or given_defect:
        return _given(counts, given_good, given_defect)
    return _inferred(counts)


def view(
    name: str, *, positive: str, negative: str, kinds: Iterable[str] = ()
) -> Literal["defective", "ok"]:
    """Return which side a class name is on: any name of a data set, "defective", "ok" or "good".

    Args:
        name: as the user writes it.
        positive: the name of all defects together.
        negative: the name of all good images together.
        kinds: the names of the kinds of defects.

    Raises:
        UsageError: the name is unknown.
    """
    defects = {positive, "defective", *(kind for kind in kinds if kind)}
    goods = {negative, *negative.split(", "), "ok", "good"}
    defects |= {f"not {negative}"} - goods
    goods |= {f"not {positive}"} - defects
    if name in defects - {negative}:
        return "defective"
    if name in goods:
        return "ok"
    raise UsageError(_unknown("--positive", name, [*defects, *goods]))


def counted(counts: Mapping[str, int]) -> str:
    """Return class names with their numbers of images as text."""
    return ", ".join(f"'{one_line(name)}' ({n})" for name, n in sorted(counts.items())) or "none"


def _of_positive(counts: Mapping[str, int], positive: str) -> Roles:
    """Return the roles for --positive, which names one class, or all defects as `not GOOD`."""
    names = sorted(counts)
    if positive in counts:
        return Roles(tuple(n for n in names if n != positive), (positive,), inferred=False)
    left = positive.removeprefix("not ")
    goods = (left,) if left in counts else tuple(left.split(", "))
    if left != positive and all(name in counts for name in goods):
        return _given(counts, goods, ())
    raise ImagesError(_unknown("--positive", positive, names))


def _given(counts: Mapping[str, int], good: tuple[str, ...], defect: tuple[str, ...]) -> Roles:
    """Return the roles for the names of --good and --defect."""
    for option, names in (("--good", good), ("--defect", defect)):
        for name in names:
            if name not in counts:
                raise ImagesError(_unknown(option, name, sorted(counts)))
    rest = [name for name in sorted(counts) if name not in {*good, *defect}]
    if both := set(good) & set(defect):
        raise UsageError(f"'{min(both)}' is in --good and in --defect. Remove it from one.")
    if good and defect and rest:
        raise ImagesError(
            f"Neither in --good nor in --defect: {counted({n: counts[n] for n in rest})}. Add "
            "each to one of them, or give only one of the options: the other classes are the rest."
        )
    found = Roles(
        good=tuple(sorted(good or rest)), defects=tuple(sorted(defect or rest)), inferred=False
    )
    if not found.good or not found.defects:
        side = "good" if not found.good else "defective"
        raise ImagesError(
            f"No class is {side}: {'--good' if good else '--defect'} names all of "
            f"{counted(counts)}. Remove the {side} ones from it."
        )
    return found


def _inferred(counts: Mapping[str, int]) -> Roles:
    """Return the roles that the names give, if they leave no doubt."""
    names = sorted(counts)
    good = tuple(name for name in names if _role(name) == "good")
    defects = tuple(name for name in names if name not in good)
    if not good and len(names) == 2:
        bad = tuple(name for name in names if _role(name) == "defective")
        good = tuple(name for name in names if name not in bad) if len(bad) == 1 else ()
        defects = bad
    if not good or not defects or any(_role(name) == "unclear" for name in names):
        raise ImagesError(
            f"Which of these {len(names)} classes are good? {counted(counts)}. Name them with "
            "--good NAME[,NAME], or the defective ones with --defect NAME[,NAME]."
        )
    return Roles(good, defects, inferred=True)


def _role(name: str) -> Literal["good", "defective", "unclear", ""]:
    """Return what the words of a class name say, "" if nothing."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word for word in re.split(r"[\W_\d]+", spaced.lower()) if word]
    if set(words) & _UNCLEAR:
        return "unclear"
    good = any(word in _GOOD for word in words)
    bad = any(word in _BAD for word in words)
    if words and words[-1] == "free":  # MT_Free, defect-free
        good, bad = True, False
    elif set(words) & _NOT and good != bad:
        good, bad = bad, good
    if good and bad:
        return "unclear"
    return "good" if good else "defective" if bad else ""


def _unknown(option: str, name: str, known: Iterable[str]) -> str:
    """Return that a class is unknown, with the nearest option or with all names."""
    names = sorted(set(known))
    by_fold = {other.casefold(): other for other in names}
    near = difflib.get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.6)
    if near:
        nearest = one_line(by_fold[near[0]])
        hint = f"Did you mean {option} {nearest if nearest.isidentifier() else repr(nearest)}?"
    else:
        hint = f"The classes are {', '.join(repr(one_line(other)) for other in names)}."
    return f"Unknown class '{one_line(name)}'. {hint}"


def _few(names: tuple[str, ...]) -> str:
    if len(names) > 3:
        return f"{len(names)} classes"
    return ", ".join(one_line(name) for name in names)
