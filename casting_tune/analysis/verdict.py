"""What a run has shown, in one sentence, and what keeps it from having shown more.

Comes in: the answers of a run and its comparison. Goes out: sentences. Computes no metric and tests
nothing: letters and intervals are those of the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from casting_tune.analysis.run_results import Answers

MAJORITY = "baseline:majority"
"""The backbone of the baseline that always says the larger class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A sentence for the top of a page, and the cautions that belong to it.

    Attributes:
        sentence: what the run has shown.
        tone: "settled": the best row is significantly better than every other; "open": it is not, or the images or the
            run cannot tell; "empty": nothing has been measured.
        cautions: one sentence each, the gravest first.
    """

    sentence: str
    tone: Literal["settled", "open", "empty"]
    cautions: tuple[str, ...]


def verdict(found: Answers, frame: pd.DataFrame) -> Verdict:
    """Say which row is best on validation, what it does on the test images, and which rows it differs from there.

    Args:
        found: the run.
        frame: of `tables.comparison` of the same run.
    """
    said, tone = _said(found, frame)
    cautions = _cautions(found, frame)
    return Verdict(
        sentence=said, tone="open" if tone == "settled" and cautions else tone, cautions=cautions
    )


def sentence(found: Answers, frame: pd.DataFrame) -> str:
    """Return the sentence of `verdict` alone, for the comparison table."""
    return _said(found, frame)[0]


def _said(found: Answers, frame: pd.DataFrame) -> tuple[str, Literal["settled", "open", "empty"]]:
    cells = frame[frame["kind"] == "cell"]
    if not frame["best"].any():
        missing = "No training has ended yet" if not found.store.failed().keys() & set(found.asked["cell_id"]) else (
            "No training has completed"
        )  # fmt: skip
        n_cells = int((found.asked["kind"] == "cell").sum())
        done = int(cells["n"].sum())
        return (
            f"{missing}: {done} of {n_cells} cells have a result, so there is nothing to compare.",
            "empty",
        )
    best, n_rows = frame[frame["best"]].iloc[0], int((cells["n"] > 0).sum())
    interval = (
        ""
        if pd.isna(best["low"])
        else f" (95 % interval {100 * best['low']:.1f} to {100 * best['high']:.1f})"
    )
    leads = f" is the best of {n_rows} rows on validation and" if n_rows > 1 else ""
    said = (
        f"{best['row']}{leads} classifies {_per_cent(best)} of the test images correctly{interval}"
    )
    others = _on_the_images_of(best, frame[~frame["best"]])
    if others.empty:
        return f"{said}.", "open"
    alike = (
        others["letters"].map(lambda letters: _share(str(letters), best["letters"])).astype(bool)
    )
    ahead = others[~alike & (others["accuracy"] > best["accuracy"])]
    idle = ahead[ahead["kind"] == "baseline"].sort_values(
        "accuracy", ascending=False, kind="stable"
    )
    but = [_no_better_than_majority(found, frame, others)]
    if len(idle):
        but.append(
            f"{_rows(idle)} {'is' if len(idle) == 1 else 'are'} significantly better"
            f"{':' if len(idle) == 1 else ', the best of them:'} {idle['row'].iloc[0]}, {_per_cent(idle.iloc[0])}"
        )
    rows_ahead = ahead[ahead["kind"] == "cell"]
    if len(rows_ahead):
        but.append(
            f"{_rows(rows_ahead)} {'is' if len(rows_ahead) == 1 else 'are'} significantly better on the test images"
        )
    if not any(but) and alike.any():
        but.append(f"it does not differ significantly from {_rows(others[alike])}")
    if any(but):
        return f"{said}, but {', and '.join(filter(None, but))}.", "open"
    return f"{said}, significantly more than every other row on the same images.", "settled"


def _no_better_than_majority(found: Answers, frame: pd.DataFrame, others: pd.DataFrame) -> str:
    """Return that no row is significantly better than the majority class, "" where one is or it was not compared."""
    asked = found.asked
    majority = others[
        others["row"].isin(asked.loc[asked["backbone"] == MAJORITY, "row"])
        & (others["kind"] != "cell")
    ]
    for _, baseline in majority.head(1).iterrows():
        rows = frame[(frame["kind"] == "cell") & (frame["accuracy"] > baseline["accuracy"])]
        same = _on_the_images_of(baseline, rows)["letters"]
        if all(_share(str(letters), baseline["letters"]) for letters in same):
            return f"no row is significantly better than the majority class ({_per_cent(baseline)})"
    return ""


def _rows(frame: pd.DataFrame) -> str:
    """Return how many other rows and baselines a frame holds."""
    idle = int((frame["kind"] == "baseline").sum())
    rest = len(frame) - idle
    parts = [f"{rest} other row{'s' * (rest != 1)}"] if rest else []
    parts += (
        [f"{idle} baseline{'s' * (idle != 1)} that learn{'s' * (idle == 1)} nothing"]
        if idle
        else []
    )
    return " and ".join(parts)


def _per_cent(row: pd.Series) -> str:
    return f"{100 * row['accuracy']:.2f} %"


def _on_the_images_of(row: pd.Series, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that tested the same images as `row`: letters of a second set of images are capital."""
    letters = str(row["letters"])
    return frame.loc[
        [bool(one and letters) and one.islower() == letters.islower() for one in frame["letters"]]
    ]


def _share(one: str, other: str) -> bool:
    """Say whether two rows have a letter in common; after z and Z come letters such as a2."""
    letters = re.compile(r"[A-Za-z]\d*")
    return bool(set(letters.findall(one)) & set(letters.findall(other)))


def _cautions(found: Answers, frame: pd.DataFrame) -> tuple[str, ...]:
    cautions = []
    asked = found.asked
    trials = found.completed(asked[asked["kind"] == "cell"])
    n_leaked = int(frame["n_leaked"].max()) if len(frame) else 0
    tested = set(found.predictions["image"])
    twins = found.twins & tested if len(trials) and (trials["split"] == "official").all() else set()
    if twins:
        cautions.append(
            f"{len(twins)} of {len(tested)} test images show a photograph that stands in train too: these figures "
            'measure memory. What to expect of new castings comes from a sweep with split = "grouped".'
        )
    elif n_leaked:
        cautions.append(
            f"{n_leaked} test images are byte-identical to images that were trained on: they flatter."
        )
    if bool(asked["quick"].iloc[0]):
        cautions.append(
            "This was a quick run (small images, few epochs): it shows that all works, not which row is best."
        )
    if len(trials) and frame.loc[frame["kind"] == "cell", "n"].max() == 1:
        cautions.append(
            "One training a row: what another seed would give is unknown, and often moves a row by a point."
        )
    left = int((~asked["cell_id"].isin(found.trials.index)).sum())
    if left:
        failed = found.store.failed()
        ended = [failed[cell] for cell in asked["cell_id"] if cell in failed]
        n_stopped = ended.count("stopped")
        counts = {
            "stopped early": n_stopped,
            "failed": len(ended) - n_stopped,
            "not run yet": left - len(ended),
        }
        parts = ", ".join(f"{n} {words}" for words, n in counts.items() if n)
        cautions.append(f"{left} of {len(asked)} cells have no result: {parts}.")
    if len(trials) and found.photographs is None:
        cautions.append(
            "The images have not been audited: copies of one photograph may stand on both sides."
        )
    return tuple(cautions)
