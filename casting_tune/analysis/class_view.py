"""The view of a run's results that the name of a class selects.

Input: the results of a run and a name. Output: the results, perhaps of one kind of defect only, and
the positive class of their metrics.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from casting_tune.analysis import decisions
from casting_tune.data import class_names
from casting_tune.data import pack as packs
from casting_tune.metrics import Counts

if TYPE_CHECKING:
    from casting_tune.analysis.result_table import Positive
    from casting_tune.analysis.run_results import RunResults

STUDY: dict[str, Positive] = {"def_front": "defective", "ok_front": "ok"}
"""The classes of the study: known for a sweep with its figures, whatever the images are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """The class names of a run.

    Attributes:
        positive: of all defects together, "defective" if unknown.
        negative: of all good images together, "ok" if unknown.
        kinds: kinds of defects among the test images.
    """

    positive: str
    negative: str
    kinds: tuple[str, ...]


def of_run(run: RunResults) -> ClassNames:
    """Return the class names of a run, from its trials, its pack, or the paths of its images."""
    kinds = {str(kind) for kind in run.predictions["kind"].dropna().unique()} - {""}
    known = [
        str(run.trials[name].dropna().iloc[0]) if run.trials[name].notna().any() else ""
        for name in ("positive", "negative")
    ]
    folder = run.store.root / "packs" / run.dataset_id
    if not known[1] and folder.is_dir():
        pack = packs.open_pack(folder)
        known = [pack.positive, pack.negative]
    return ClassNames(
        positive=known[0] or "defective",
        negative=known[1] or ", ".join(_good_folders(run)) or "ok",
        kinds=tuple(sorted(kinds)),
    )


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
    if name in ("defective", "ok"):
        return run, "ok" if name == "ok" else "defective"
    names = of_run(run)
    if name in names.kinds and len(names.kinds) > 1:
        return _only(run, name), "defective"
    own = {names.positive, *names.negative.split(", "), *names.kinds}
    if name in STUDY and name not in own and any(run.cells["figures"]):
        return run, STUDY[name]
    return run, class_names.view(
        name, positive=names.positive, negative=names.negative, kinds=names.kinds
    )


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


def _good_folders(run: RunResults) -> list[str]:
    """Return the folders of the good test images: stores of 0.1 do not name the good class."""
    columns = ["path", "y_true"]
    rows = run.store.read("predictions", columns=columns, cell_ids=run.trials.index[:1]).to_pandas()
    paths = rows.loc[rows["y_true"] == 0, "path"].dropna()
    return sorted({path.split("/")[-2] for path in paths if path.count("/")})
