"""The names of the classes of a run, and the view of its results that a name selects.

Input: the results of a run and a name. Output: the results, perhaps of one kind of defect only, and
the positive class of their metrics.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from casting_tune.analysis import decisions
from casting_tune.data import pack as packs
from casting_tune.errors import UsageError, unknown
from casting_tune.metrics import Counts

if TYPE_CHECKING:
    from casting_tune.analysis.result_table import Positive
    from casting_tune.analysis.run_results import RunResults

DEFECTIVE, OK = "defective", "ok"
"""Names of the two sides that every dataset has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """The class names of a run.

    Attributes:
        good: of the good images.
        defects: of all defective images together.
        kinds: kinds of defects among the test images.
    """

    good: frozenset[str]
    defects: frozenset[str]
    kinds: tuple[str, ...]


def of_run(run: RunResults) -> ClassNames:
    """Return the class names of a run, from its trials, its pack, or the paths of its images."""
    kinds = tuple(sorted({str(kind) for kind in run.predictions["kind"].dropna().unique()} - {""}))
    good, defects = (set(run.trials[name].dropna()) for name in ("negative", "positive"))
    folder = run.store.root / "packs" / run.dataset_id
    if not good and folder.is_dir():
        pack = packs.open_pack(folder)
        good, defects = {pack.negative}, {pack.positive}
    elif not good:
        good = _good_folders(run)
    if any(run.cells["figures"]):  # a sweep of the study: the names of its classes
        good, defects = good | {"ok_front"}, defects | {"def_front"}
    return ClassNames(good=frozenset(good), defects=frozenset(defects), kinds=kinds)


def good_name(run: RunResults) -> str:
    """Return the name of the good class of a run for a reader; "ok" if it is unknown."""
    return ", ".join(sorted(of_run(run).good)) or OK


def view(run: RunResults, name: str) -> tuple[RunResults, Positive]:
    """Return the results of a run as a class name selects them, and the positive class.

    A name of all defects: the results as they are. A name of good images: the same decisions with
    the good class as positive. A kind of defect, if there are several: that kind against the good
    images; other defects do not count.

    Args:
        run: all results of the run.
        name: "defective", "ok", or the name of a class or kind of the dataset.

    Raises:
        UsageError: the dataset has no class of this name.
    """
    if name in (DEFECTIVE, OK):
        return run, "ok" if name == OK else "defective"
    names = of_run(run)
    if name in names.kinds and len(names.kinds) > 1:
        return _only(run, name), "defective"
    if name in names.defects or name in names.kinds:
        return run, "defective"
    if name in names.good:
        return run, "ok"
    known = {DEFECTIVE, OK, *names.good, *names.defects, *names.kinds}
    raise UsageError(unknown("positive class", name, known))


def _only(run: RunResults, kind: str) -> RunResults:
    """Return the results on the good test images and on the defects of one kind."""
    part = replace(run, kind=kind)
    (counted,) = decisions.count(part, [0.5])
    trials = run.trials.copy()
    for prefix, side in (("test", 0), ("test_leaked", 1)):
        for place, count in enumerate(fields(Counts)):
            trials[f"{prefix}_{count.name}"] = [
                counted[cell][side][place] if cell in counted else np.nan for cell in trials.index
            ]
    n = part.predictions["cell_id"].value_counts()
    trials["n_test"] = [int(n.get(cell, 0)) for cell in trials.index]
    return replace(part, trials=trials)


def _good_folders(run: RunResults) -> set[str]:
    """Return the folders of the good test images: stores of 0.1 do not name the good class."""
    columns = ["path", "y_true"]
    rows = run.store.read("predictions", columns=columns, cell_ids=run.trials.index[:1]).to_pandas()
    paths = rows.loc[rows["y_true"] == 0, "path"].dropna()
    return {path.split("/")[-2] for path in paths if path.count("/")}
