"""The result of a run in one sentence, and the cautions that belong to it.

Input: the results of a run and its comparison table. Output: sentences. Computes no metric: letters
and intervals are those of the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from casting_tune.analysis import kinds
from casting_tune.analysis.result_table import QUICK
from casting_tune.analysis.run_results import RunResults
from casting_tune.config import BASELINE

MAJORITY = f"{BASELINE}majority"
"""The backbone of the baseline that always predicts the larger class."""

ONE_SEED = "One training per row: results may change by about 1 point with another seed."

Tone = Literal["settled", "open", "empty"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A sentence for the top of a page, and its cautions.

    Attributes:
        sentence: the result of the run.
        tone: "settled": the best row is significantly better than every other; "open": it is not,
            or there are cautions; "empty": there is no result.
        cautions: one sentence each, the most important first.
    """

    sentence: str
    tone: Tone
    cautions: tuple[str, ...]


def verdict(run: RunResults, frame: pd.DataFrame) -> Verdict:
    """Return the best row on validation, its test result, and the rows from which it differs.

    Args:
        run: the run.
        frame: of `tables.comparison` of the same run.
    """
    text, tone = _sentence(run, frame)
    cautions = _cautions(run, frame)
    return Verdict(
        sentence=_with_worst_kind(run, text),
        tone="open" if tone == "settled" and cautions else tone,
        cautions=cautions,
    )


def sentence(run: RunResults, frame: pd.DataFrame) -> str:
    """Return only the sentence of `verdict`, for the comparison table."""
    return _with_worst_kind(run, _sentence(run, frame)[0])


def _with_worst_kind(run: RunResults, text: str) -> str:
    """Return a sentence, and the worst kind of defect of the best row if there are several."""
    return f"{text} {kinds.worst_sentence(run)}".rstrip()


def _sentence(run: RunResults, frame: pd.DataFrame) -> tuple[str, Tone]:
    cells = frame[frame["kind"] == "cell"]
    if not frame["best"].any():
        n_cells = int((run.cells["kind"] == "cell").sum())
        n_done = int(cells["n"].sum())
        return f"No completed training yet: {n_done} of {n_cells} cells have a result.", "empty"
    best, n_rows = frame[frame["best"]].iloc[0], int((cells["n"] > 0).sum())
    interval = (
        ""
        if pd.isna(best["low"])
        else f" (95 % interval {100 * best['low']:.1f} to {100 * best['high']:.1f})"
    )
    leads = f" is the best of {n_rows} rows on validation and" if n_rows > 1 else ""
    images = f"test images of {run.kind} and good castings" if run.kind else "test images"
    text = f"{best['row']}{leads} classifies {_per_cent(best)} of the {images} correctly{interval}"
    others = _same_images(best, frame[~frame["best"]])
    if others.empty:
        return f"{text}.", "open"
    objections = _objections(run, frame, best, others)
    if objections:
        return f"{text}, but {', and '.join(objections)}.", "open"
    return f"{text}, significantly more than every other row on the same images.", "settled"


def _objections(
    run: RunResults, frame: pd.DataFrame, best: pd.Series, others: pd.DataFrame
) -> list[str]:
    """Return what prevents the best row from being significantly better than all others."""
    is_equal = others["letters"].map(lambda one: _share(str(one), best["letters"])).astype(bool)
    better = others[~is_equal & (others["accuracy"] > best["accuracy"])]
    objections = []
    majority = _no_better_than_majority(run, frame, others)
    if majority:
        objections.append(majority)
    baselines = better[better["kind"] == "baseline"].sort_values(
        "accuracy", ascending=False, kind="stable"
    )
    if len(baselines):
        first = baselines.iloc[0]
        which = ":" if len(baselines) == 1 else ", the best of them:"
        objections.append(f"{_are_better(baselines)}{which} {first['row']}, {_per_cent(first)}")
    rows = better[better["kind"] == "cell"]
    if len(rows):
        objections.append(f"{_are_better(rows)} on the test images")
    if not objections and is_equal.any():
        objections.append(f"it does not differ significantly from {_rows(others[is_equal])}")
    return objections


def _are_better(frame: pd.DataFrame) -> str:
    return f"{_rows(frame)} {'is' if len(frame) == 1 else 'are'} significantly better"


def _no_better_than_majority(run: RunResults, frame: pd.DataFrame, others: pd.DataFrame) -> str:
    """Return a clause if no row is significantly better than the majority class, else ""."""
    labels = run.cells.loc[run.cells["backbone"] == MAJORITY, "row"]
    majority = others[others["row"].isin(labels) & (others["kind"] != "cell")]
    for _, baseline in majority.head(1).iterrows():
        rows = frame[(frame["kind"] == "cell") & (frame["accuracy"] > baseline["accuracy"])]
        same = _same_images(baseline, rows)["letters"]
        if all(_share(str(letters), baseline["letters"]) for letters in same):
            return f"no row is significantly better than the majority class ({_per_cent(baseline)})"
    return ""


def _rows(frame: pd.DataFrame) -> str:
    """Return the numbers of other rows and of baselines in a frame."""
    n_baselines = int((frame["kind"] == "baseline").sum())
    n_rows = len(frame) - n_baselines
    parts = [f"{n_rows} other row{'s' * (n_rows != 1)}"] if n_rows else []
    if n_baselines:
        parts.append(f"{n_baselines} simple baseline{'s' * (n_baselines != 1)}")
    return " and ".join(parts)


def _per_cent(row: pd.Series) -> str:
    return f"{100 * row['accuracy']:.2f} %"


def _same_images(row: pd.Series, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the same test images: letters of a second set of images are capitals."""
    letters = str(row["letters"])
    return frame.loc[
        [bool(one and letters) and one.islower() == letters.islower() for one in frame["letters"]]
    ]


def _share(one: str, other: str) -> bool:
    """Return whether two rows have a letter in common; after z and Z come letters such as a2."""
    letters = re.compile(r"[A-Za-z]\d*")
    return bool(set(letters.findall(one)) & set(letters.findall(other)))


def _cautions(run: RunResults, frame: pd.DataFrame) -> tuple[str, ...]:
    trials = run.completed(run.cells[run.cells["kind"] == "cell"])
    cautions = _leaks(run, frame, trials)
    if bool(run.cells["quick"].iloc[0]):
        cautions.append(QUICK)
    if len(trials) and frame.loc[frame["kind"] == "cell", "n"].max() == 1:
        cautions.append(ONE_SEED)
    missing = run.cells.loc[~run.cells["cell_id"].isin(run.trials.index), "cell_id"]
    if len(missing):
        failed = run.store.failed()
        ended = [failed[cell] for cell in run.cells["cell_id"] if cell in failed]
        n_stopped = ended.count("stopped")
        counts = {
            "stopped early": n_stopped,
            "failed": len(ended) - n_stopped,
            "not run yet": len(missing) - len(ended),
        }
        parts = ", ".join(f"{n} {words}" for words, n in counts.items() if n)
        cautions.append(f"{len(missing)} of {len(run.cells)} cells have no result: {parts}.")
    if len(trials) and run.photo_groups is None:
        cautions.append(
            "Images not checked for duplicates between train and test: run `casting-tune audit`."
        )
    return tuple(cautions)


def _leaks(run: RunResults, frame: pd.DataFrame, trials: pd.DataFrame) -> list[str]:
    """Return a caution if test images show parts that the trainings saw."""
    tested = set(run.predictions["image"])
    is_official = len(trials) > 0 and (trials["split"] == "official").all()
    twins = run.twins & tested if is_official else frozenset()
    if twins:
        return [
            f"{len(twins)} of {len(tested)} test images show parts that were also in training, so "
            'the score is too high. Use split = "grouped" to estimate the result on new castings.'
        ]
    n_leaked = int(frame["n_leaked"].max()) if len(frame) else 0
    if n_leaked:
        return [
            f"{n_leaked} test images are byte-identical to training images, so the score is too "
            "high."
        ]
    return []
