"""Sets with several kinds of defects, from drawn images to a report whose numbers are by hand.

By hand: from the folder in the path of each stored prediction, its score, and scipy's beta.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import beta

from tests.cli.test_main import call
from tests.system.test_layouts import SIX, STEEL, TINY, _masks_beside, draw

pytestmark = pytest.mark.slow


def by_hand(results: Path, good: str, *, level: int) -> pd.DataFrame:
    """Return n, escapes and bound of each kind on the test images of seed 0, worst kind first.

    Args:
        results: the store.
        good: the folder of the good images.
        level: the part of a path that names its class.
    """
    files = sorted((results / "predictions").rglob("*.parquet"))
    rows = pd.concat([pd.read_parquet(file) for file in files])
    rows = rows[rows["split"] == "test"].assign(folder=rows["path"].str.split("/").str[level])
    defects = rows[rows["folder"] != good]
    assert (rows["y_true"] == (rows["folder"] != good)).all()
    counted = defects.groupby("folder")["score"].agg(n="size", escapes=lambda s: (s < 0.5).sum())
    bounds = [
        1.0 if k == n else beta.ppf(0.95, k + 1, n - k)
        for k, n in zip(counted["escapes"], counted["n"], strict=True)
    ]
    counted = counted.assign(rate=counted["escapes"] / counted["n"], upper=bounds)
    return counted.sort_values(["rate", "upper"], ascending=False, kind="stable")


def run_and_compare(
    folder: Path, good: str, level: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train a tiny sweep; compare table, verdict, report and model card with `by_hand`."""
    (folder / "tiny.toml").write_text(TINY)
    results = ("--results", folder / "r")
    words = ("sweep", folder / "tiny.toml", "--data", folder / "D", "--good", good, "--inline")
    code, out, err = call(capsys, *words, *results, "--no-baselines")
    assert (code, err) == (0, "")
    hand = by_hand(folder / "r", good, level=level)
    assert len(hand) == 5
    worst = hand.iloc[0]
    sentence = f"Worst kind: {hand.index[0]}, {worst['escapes']:.0f} of {worst['n']:.0f} escaped"
    assert sentence in " ".join(out.split())
    code, out, _ = call(capsys, "table", "tiny", "--kind", "kinds", *results, "--json")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [row["kind"] for row in rows] == hand.index.tolist()
    assert [(row["n_images"], row["escapes"]) for row in rows] == [
        (one.n, one.escapes) for one in hand.itertuples()
    ]
    assert [row["escape_upper"] for row in rows] == pytest.approx(hand["upper"].tolist())
    page = folder / "report.html"
    assert call(capsys, "report", "tiny", "--out", page, *results)[0] == 0
    section = page.read_text().split('<section id="kinds">')[1].split("</section>")[0]
    for one in hand.itertuples():
        cells = f'<th scope="row">{one.Index}</th><td>{one.escapes}</td><td>{one.n}</td>'
        assert cells in section
    assert sentence in page.read_text()
    export = ("export", "best", "--sweep", "tiny", "--out", folder / "line", *results)
    assert call(capsys, *export)[0] == 0
    card = (folder / "line" / "README.md").read_text().replace("\\", "")
    for one in hand.itertuples():
        assert f"| {one.Index} | {one.escapes} | {one.n} | " in card
    # every name of the dataset is understood
    for name in (good, f"not {good}", *hand.index):
        assert call(capsys, "table", "tiny", "--positive", name, *results)[0] == 0, name


@pytest.fixture(autouse=True)
def no_folder_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CASTING_TUNE_DATA", raising=False)


@pytest.mark.timeout(900)
def test_magnetic_tiles_with_masks_give_the_kinds_counted_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "D", {f"{name}/Imgs": 30 for name in SIX}, "jpg")
    _masks_beside(tmp_path / "D")
    run_and_compare(tmp_path, "MT_Free", 0, capsys)


@pytest.mark.timeout(900)
def test_steel_without_a_good_class_asks_and_then_takes_the_class_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "D", {f"{s}/{c}": n for s, n in (("train", 12), ("test", 6)) for c in STEEL})
    (tmp_path / "tiny.toml").write_text(TINY)
    words = ("sweep", tmp_path / "tiny.toml", "--data", tmp_path / "D", "--inline")
    code, _, err = call(capsys, *words, "--results", tmp_path / "r")
    assert code == 4
    assert "Which of these 6 classes are good?" in " ".join(err.split())
    run_and_compare(tmp_path, "patches", 1, capsys)
