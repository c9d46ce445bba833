"""What a run has shown, in one sentence, and what keeps it from having shown more.

Comes in: the answers of a run and its comparison. Goes out: sentences. Computes no metric and tests nothing: letters
and intervals are those of the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from casting_tune.answers import Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A sentence for the top of a page, and the cautions that belong to it.

    Attributes:
        sentence: what the run has shown.
        tone: "settled": one row is ahead of every other; "open": it is not, or the images or the run cannot tell;
            "empty": nothing has been measured.
        cautions: one sentence each, the gravest first.
    """

    sentence: str
    tone: Literal["settled", "open", "empty"]
    cautions: tuple[str, ...]


def verdict(found: Answers, frame: pd.DataFrame) -> Verdict:
    """Say which row is best on validation, what it does on the test images, and from which rows it can be told.

    Args:
        found: the run.
        frame: of `tables.comparison` of the same run.
    """
    cautions = _cautions(found, frame)
    n_cells = int((found.asked["kind"] == "cell").sum())
    if not frame["best"].any():
        done = int(frame.loc[frame["kind"] == "cell", "n"].sum())
        missing = "No training has ended yet" if not found.store.failed().keys() & set(found.asked["cell_id"]) else (
            "No training has completed"
        )  # fmt: skip
        sentence = f"{missing}: {done} of {n_cells} cells have a result, so there is nothing to compare."
        return Verdict(sentence=sentence, tone="empty", cautions=cautions)
    best = frame[frame["best"]].iloc[0]
    alike = [row for row in frame.itertuples() if row.row != best["row"] and _share(str(row.letters), best["letters"])]
    interval = "" if pd.isna(best["low"]) else f" (95 % interval {100 * best['low']:.1f} to {100 * best['high']:.1f})"
    said = (
        f"{best['row']} is the best of {_rows(frame)} on validation and decides {100 * best['accuracy']:.2f} % of the "
        f"test images rightly{interval}"
        if _n_rows(frame) > 1
        else f"{best['row']} decides {100 * best['accuracy']:.2f} % of the test images rightly{interval}"
    )
    if alike:
        idle = sum(row.kind == "baseline" for row in alike)
        rest = len(alike) - idle
        others = [f"{rest} other row{'s' * (rest != 1)}"] if rest else []
        others += [f"{idle} baseline{'s' * (idle != 1)} that learn{'s' * (idle == 1)} nothing"] if idle else []
        return Verdict(
            sentence=f"{said}, but it cannot be told apart from {' and '.join(others)}.", tone="open", cautions=cautions
        )
    compared = bool(best["letters"])
    told = ", and is told apart from every other row on the same images" if compared else ""
    settled = compared and not cautions
    return Verdict(sentence=f"{said}{told}.", tone="settled" if settled else "open", cautions=cautions)


def _n_rows(frame: pd.DataFrame) -> int:
    return int(((frame["kind"] == "cell") & (frame["n"] > 0)).sum())


def _rows(frame: pd.DataFrame) -> str:
    return f"{_n_rows(frame)} rows"


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
        cautions.append(f"{n_leaked} test images are byte-identical to images that were trained on: they flatter.")
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
        counts = {"stopped early": n_stopped, "failed": len(ended) - n_stopped, "not run yet": left - len(ended)}
        parts = ", ".join(f"{n} {words}" for words, n in counts.items() if n)
        cautions.append(f"{left} of {len(asked)} cells have no result: {parts}.")
    if len(trials) and found.photographs is None:
        cautions.append("The images have not been audited: copies of one photograph may stand on both sides.")
    return tuple(cautions)
