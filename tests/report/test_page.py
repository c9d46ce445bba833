"""The report: its contents, what must never run on it, and that every state of a sweep has one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from casting_tune.analysis import curves, importance, run_results, tables, verdict
from casting_tune.data import pack as packs
from casting_tune.errors import UsageError
from casting_tune.report import page as report
from casting_tune.report import page_data, parallel_axes
from casting_tune.store.store import Store
from tests.analysis.test_tables import ask, finish
from tests.cli.test_main import call
from tests.conftest import HOSTILE

SECTIONS = (
    "rows", "threshold", "kinds", "mistakes", "effects", "ranking", "speed", "training", "charts",
    "images", "failures", "provenance", "words",
)  # fmt: skip
FIGURES = ("thresholds", "calibration", "roc", "precision-recall", "pareto", "training")


REQUEST = report.Request(sweep="tiny", question="Does it run?", command="casting-tune report tiny")


class Page(HTMLParser):
    """The parts of a page: its tags with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, text: str) -> None:
        if self.cdata_elem == "script":
            attributes, script = self.scripts[-1]
            self.scripts[-1] = (attributes, script + text)
        elif self.cdata_elem is None:
            self.words += text

    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.tags if "id" in attributes}

    def drawn(self) -> set[str]:
        return {
            attributes["data-figure"] or ""
            for _, attributes in self.tags
            if "data-figure" in attributes
        }


@pytest.fixture(scope="module")
def text(trained: Store) -> str:
    return report.page(trained, REQUEST)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def hostile_page(hostile: Store) -> Page:
    return Page(report.page(hostile, report.Request(sweep="s", max_escape="10%", command=HOSTILE)))


def test_the_page_of_a_run_has_every_section_and_every_figure_with_its_numbers(
    page: Page, text: str
) -> None:
    assert set(SECTIONS) <= page.ids()
    assert page.drawn() == set(FIGURES)
    assert "<details><summary>One kind of defect: def_front</summary>" in text
    assert text.count('<details class="numbers" open>') == len(FIGURES)


def test_the_page_shows_the_figures_of_the_table(page: Page, trained: Store) -> None:
    frame = tables.comparison(trained, "tiny").frame
    for row in frame.itertuples():
        assert str(row.row) in page.words
        assert f"{100 * row.accuracy:.2f}" in page.words
        assert f"{100 * row.low:.1f} to {100 * row.high:.1f}" in page.words


def test_the_page_shows_dataset_versions_device_and_commands(page: Page, trained: Store) -> None:
    trial = trained.read("trials").to_pylist()[0]
    for value in (
        trial["dataset_id"],
        trial["torch"],
        trial["timm"],
        trial["device"],
        "Does it run?",
    ):
        assert value in page.words
    run = trained.read("cells")["run_id"].to_pylist()[0]
    assert f"casting-tune report tiny --run {run}" in page.words


def test_the_page_loads_nothing_and_allows_only_its_own_scripts(page: Page, text: str) -> None:
    (policy,) = [
        tag["content"] or "" for name, tag in page.tags if name == "meta" and "http-equiv" in tag
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in rules["script-src"]
    running = [
        script
        for attributes, script in page.scripts
        if attributes.get("type") != "application/json"
    ]
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in running
    ]
    assert rules["script-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)
    for name, tag in page.tags:
        assert not [attribute for attribute in tag if attribute.startswith("on")], name
        for address in (tag.get("src"), tag.get("href")):
            assert address is None or address.startswith(("data:image/webp;base64,", "#"))
    assert len(text.encode()) < 8_000_000


def test_the_same_store_gives_the_same_page_but_for_the_time(trained: Store, text: str) -> None:
    again = report.page(trained, REQUEST)
    timeless = [re.sub(r"page created [-0-9: ]+UTC", "", one) for one in (text, again)]
    assert timeless[0] == timeless[1]


def test_no_name_out_of_a_file_becomes_markup(hostile_page: Page) -> None:
    assert hostile_page.drawn() == set(FIGURES)
    for name, tag in hostile_page.tags:
        assert "onerror" not in tag, name
        assert tag.get("src") != "x"
    assert not [script for _, script in hostile_page.scripts if script.strip() == "window.hacked=1"]
    assert HOSTILE in hostile_page.words  # it is shown, as what it is
    assert "<b>" not in hostile_page.words.replace(HOSTILE, "").replace("<b>%{x}", "")


def test_plotly_is_given_names_without_markup(hostile_page: Page) -> None:
    specs = [
        script
        for attributes, script in hostile_page.scripts
        if attributes.get("type") == "application/json"
    ]
    assert len(specs) == len(FIGURES)
    for spec in specs:
        assert "<" not in spec
        assert "\\u003cimg" not in spec


def test_a_run_with_leaked_photographs_a_quick_run_and_failures_says_so_at_the_top(
    hostile_page: Page,
) -> None:
    assert "30 of 100 test images show parts that were also in training" in hostile_page.words
    assert "Quick run" in hostile_page.words
    assert "3 of 12 cells have no result: 3 failed" in hostile_page.words


def test_a_threshold_is_chosen_if_validation_allows_it_and_otherwise_the_reason_is_given(
    hostile_page: Page, page: Page
) -> None:
    assert "escape rate at most 10 % on validation" in hostile_page.words
    assert "A threshold requires at least 20 validation defects" in page.words


def test_a_sweep_that_has_just_started_has_a_page(store: Store) -> None:
    ask(
        store,
        "r1",
        [{"cell_id": "a0", "row": "A", "seed": 0}, {"cell_id": "b0", "row": "B", "seed": 0}],
    )
    begun = Page(report.page(store, report.Request(sweep="s")))
    assert "No completed training yet: 0 of 2 cells have a result" in begun.words
    assert begun.drawn() == set()
    epoch = {
        "cell_id": "a0",
        "attempt": 1,
        "sweep": "s",
        "epoch": 1,
        "train_loss": 0.5,
        "validation_loss": 0.6,
    }
    store.write("epochs", "s", "a0-1-1", [epoch])
    assert Page(report.page(store, report.Request(sweep="s"))).drawn() == {
        "training"
    }  # a training that still runs has its curve
    finish(store, "a0", (30, 2, 28, 0))
    half = Page(report.page(store, report.Request(sweep="s")))
    assert "A classifies 96.67 % of the test images correctly" in half.words
    assert "1 of 2 cells have no result: 1 not run yet" in half.words


def test_missing_values_are_never_shown_as_nan(store: Store) -> None:
    """No path of an image, no command, no fold, no number of epochs, no label of a failed trial."""
    ask(
        store,
        "r1",
        [
            {"cell_id": "a0", "row": "A", "seed": 0, "fold": None},
            {"cell_id": "b0", "row": "B", "seed": 0},
        ],
    )
    finish(store, "a0", (28, 2, 28, 2))
    store.write(
        "trials", "s", "b0-1", [{"cell_id": "b0", "attempt": 1, "sweep": "s", "status": "error"}]
    )
    made = Page(report.page(store, report.Request(sweep="s")))
    shown = " ".join(
        [
            made.words,
            *(script for tags, script in made.scripts if tags.get("type") == "application/json"),
        ]
    )
    assert not re.search(r"\b(nan|NaN|NaT)\b", shown)
    assert "copy in train" not in made.words
    assert "of defects passed by at least one training" in made.words


def test_a_sweep_of_failures_alone_has_a_page_with_their_errors(store: Store) -> None:
    ask(store, "r1", [{"cell_id": "a0", "row": "A", "seed": 0}])
    trial = {
        "cell_id": "a0",
        "attempt": 1,
        "sweep": "s",
        "label": "A",
        "status": "oom",
        "error": "no memory left",
    }
    store.write("trials", "s", "a0-1", [trial | {"started_at": datetime(2026, 1, 1, tzinfo=UTC)}])
    failed = Page(report.page(store, report.Request(sweep="s")))
    assert "No completed training yet: 0 of 1 cells have a result" in failed.words
    assert "no memory left" in failed.words


def test_thumbnails_are_on_the_page_only_if_requested(trained: Store) -> None:
    dataset = trained.read("cells")["dataset_id"].to_pylist()[0]
    packed = packs.open_pack(trained.root / "packs" / dataset)
    wrong = len(curves.mistakes(*_best(trained), threshold=0.5))

    def n_thumbnails(with_images: bool) -> int:
        made = Page(
            report.page(
                trained, report.Request(sweep="tiny"), packed=packed, with_images=with_images
            )
        )
        return sum(
            (tag.get("alt") or "").startswith("Test image")
            for name, tag in made.tags
            if name == "img"
        )

    assert n_thumbnails(False) == 0
    assert 0 < n_thumbnails(True) <= min(wrong, 2 * page_data.MOST_MISTAKES)


def _best(store: Store) -> tuple[run_results.RunResults, pd.DataFrame]:
    found = run_results.load(store, "tiny")
    best = curves.best_row(found)
    assert best is not None
    return found, best[1]


def test_the_curves_meet_the_table_at_threshold_one_half(trained: Store) -> None:
    found, cells = _best(trained)
    over = curves.over_thresholds(found, cells)
    at_half = over[over["threshold"] == 0.5].iloc[0]
    row = tables.comparison(trained, "tiny").frame.query("best").iloc[0]
    assert at_half["escape_rate"] == pytest.approx(row["escape_rate"])
    assert at_half["overkill_rate"] == pytest.approx(row["overkill_rate"])
    assert (over["escape_rate"].diff().dropna() >= 0).all()
    assert (over["overkill_rate"].diff().dropna() <= 0).all()
    assert (
        over.iloc[0][["escape_rate", "overkill_rate"]] == [0, 1]
    ).all()  # at 0 everything is rejected


def test_the_area_under_a_curve_is_that_of_scikit_learn(hostile: Store) -> None:
    found = run_results.load(hostile, "s")
    roc = curves.roc(found, found.rows())
    assert roc.groupby(["row", "training"]).ngroups == 9
    for (row, training), part in roc.groupby(["row", "training"]):
        cells = dict(found.rows())[row]
        cell = cells.loc[cells["seed"] == int(training.split()[1]), "cell_id"].iloc[0]
        tested = found.predictions[found.predictions["cell_id"] == cell]
        area = np.trapezoid(part["recall"], part["overkill_rate"])
        assert area == pytest.approx(roc_auc_score(tested["y_true"], tested["score"]))


def test_calibration_counts_every_image_once_per_training(hostile: Store) -> None:
    found = run_results.load(hostile, "s")
    frame = curves.calibration(found, found.rows()[0][1])
    assert frame["n"].sum() == 300  # three trainings of 100 test images
    assert (frame["defective"] * frame["n"]).sum() == pytest.approx(150)
    assert frame["score"].between(frame["from"], frame["to"]).all()


def test_the_worst_mistakes_come_first_and_both_kinds_are_wrong_at_the_threshold(
    hostile: Store,
) -> None:
    found = run_results.load(hostile, "s")
    wrong = curves.mistakes(found, found.rows()[2][1], threshold=0.5)
    off = (wrong["score"] - wrong["y_true"]).abs()
    assert (off.diff().dropna() <= 1e-6).all()
    assert ((wrong["n_wrong"] >= 1) & (wrong["n"] == 3)).all()
    assert (
        wrong.loc[wrong["n_wrong"] == 3, "score"]
        .lt(0.5)
        .eq(wrong.loc[wrong["n_wrong"] == 3, "y_true"] == 1)
        .all()
    )


def test_the_front_contains_the_rows_that_no_row_beats_in_both(store: Store) -> None:
    rows = {"A": (48, 1, 49, 2), "B": (47, 2, 48, 3), "C": (50, 0, 50, 0), "D": (48, 1, 49, 2)}
    ask(store, "r1", [{"cell_id": f"{row.lower()}0", "row": row, "seed": 0} for row in rows])
    for seconds, (row, counts) in zip((0.01, 0.02, 0.03, 0.01), rows.items(), strict=True):
        finish(store, f"{row.lower()}0", counts, latency_one_s=seconds, backbone=row, image_px=32)
    marks = curves.pareto(
        run_results.load(store, "s"), tables.comparison(store, "s").frame
    ).set_index("row")
    assert marks["front"].to_dict() == {
        "A": True,
        "B": False,
        "C": True,
        "D": True,
    }  # equals do not beat each other


def test_the_decisive_setting_has_the_importance_and_few_trainings_have_none() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"dense": rng.integers(0, 2, 40), "seed": rng.integers(0, 3, 40)})
    frame["validation_accuracy"] = 0.7 + 0.2 * frame["dense"] + rng.normal(0, 0.005, 40)
    found = importance.importance(frame, not_settings=curves.MEASURED)
    assert found.shares[0][0] == "dense"
    assert found.shares[0][1] > 0.9
    assert sum(share for _, share in found.shares) == pytest.approx(1)
    few = importance.importance(frame.head(9), not_settings=curves.MEASURED)
    assert few.shares == ()
    assert "there are 9" in few.reason


def test_a_scale_of_numbers_has_no_importance_for_being_different_in_every_training() -> None:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {"base_lr": rng.uniform(1e-4, 1e-2, 60), "backbone": rng.choice(["a", "b"], 60)}
    )
    frame["validation_accuracy"] = 0.7 + 0.2 * (frame["backbone"] == "a") + rng.normal(0, 0.005, 60)
    assert importance.importance(frame, not_settings=curves.MEASURED).shares[0][0] == "backbone"


def verdict_of(store: Store) -> verdict.Verdict:
    return verdict.verdict(run_results.load(store, "s"), tables.comparison(store, "s").frame)


def test_the_verdict_names_a_winner_only_if_the_letters_do(store: Store) -> None:
    for row, counts in (("A", (300, 0, 300, 0)), ("B", (200, 100, 200, 100))):
        ask(
            store,
            f"r{row}",
            [{"cell_id": "a0", "row": "A", "seed": 0}, {"cell_id": "b0", "row": "B", "seed": 0}],
        )
        finish(store, f"{row.lower()}0", counts, validation_accuracy=0.9 if row == "A" else 0.6)
    clear = verdict_of(store)
    assert clear.sentence == (
        "A is the best of 2 rows on validation and classifies 100.00 % of the test images "
        "correctly "
        "(95 % interval 99.4 to 100.0), significantly more than every other row on the same images."
    )
    ask(
        store,
        "r3",
        [{"cell_id": "a0", "row": "A", "seed": 0}, {"cell_id": "c0", "row": "C", "seed": 0}],
        hour=13,
    )
    finish(store, "c0", (300, 1, 299, 0), validation_accuracy=0.8)
    assert "but it does not differ significantly from 1 other row." in verdict_of(store).sentence


def test_the_verdict_distinguishes_stopped_and_failed_trials(store: Store) -> None:
    ask(store, "r1", [{"cell_id": f"{name}0", "row": name, "seed": 0} for name in "ABCD"])
    finish(store, "A0", (30, 0, 30, 0))
    for cell, status in (("B0", "stopped"), ("C0", "error")):
        store.write(
            "trials",
            "s",
            f"{cell}-1",
            [{"cell_id": cell, "attempt": 1, "sweep": "s", "status": status}],
        )
    assert (
        "3 of 4 cells have no result: 1 stopped early, 1 failed, 1 not run yet."
        in verdict_of(store).cautions
    )


def test_the_verdict_says_when_a_baseline_does_as_well(store: Store) -> None:
    ask(
        store,
        "r1",
        [
            {"cell_id": "a0", "row": "A", "seed": 0},
            {"cell_id": "b0", "row": "B", "seed": 0, "kind": "baseline"},
        ],
    )
    finish(store, "a0", (30, 0, 30, 0))
    finish(store, "b0", (30, 1, 29, 0))
    assert (
        "but it does not differ significantly from 1 simple baseline." in verdict_of(store).sentence
    )
    assert verdict_of(store).tone == "open"


def with_baselines(store: Store, rows: dict[str, tuple[int, int, int, int]]) -> None:
    """Write rows and baselines with their counts (tp, fp, tn, fn); baselines are in lower case."""
    requested = [
        {"cell_id": f"{name[0]}0", "row": name, "seed": 0}
        | ({"kind": "baseline", "backbone": f"baseline:{name}"} if name.islower() else {})
        for name in rows
    ]
    ask(store, "r1", requested)
    for name, counts in rows.items():
        finish(store, f"{name[0]}0", counts, validation_accuracy=0.9 if name == "A" else 0.5)


MAJORITY_COUNTS = (300, 300, 0, 0)  # it rejects every casting: 50 % of the images


def test_a_better_baseline_is_reported(
    store: Store,
) -> None:
    nearest = {"nearest": (298, 0, 300, 2), "probe": (280, 0, 300, 20)}
    with_baselines(store, {"A": (200, 20, 280, 100), "majority": MAJORITY_COUNTS, **nearest})
    assert verdict_of(store).sentence.endswith(
        ", but 2 simple baselines are significantly better, the best of them: nearest, 99.67 %."
    )
    assert verdict_of(store).tone == "open"


@pytest.mark.parametrize("right", [160, 150, 140])  # of 300 defects, and of 300 good castings
def test_the_verdict_reports_that_no_row_beats_the_majority_class(store: Store, right: int) -> None:
    counts = (right, 300 - right, right, 300 - right)
    with_baselines(store, {"A": counts, "B": (130, 170, 130, 170), "majority": MAJORITY_COUNTS})
    assert verdict_of(store).sentence.endswith(
        ", but no row is significantly better than the majority class (50.00 %)."
    )
    assert verdict_of(store).tone == "open"


def test_rows_that_tested_other_images_are_not_compared(store: Store) -> None:
    """D classifies its 100 images correctly, but A and B have other images."""
    rows = {
        "A": (160, 20, 280, 140),
        "B": (150, 20, 280, 150),
        "c": (50, 50, 0, 0),
        "D": (50, 0, 50, 0),
    }
    with_baselines(store, rows)
    assert verdict_of(store).sentence.endswith(
        ", significantly more than every other row on the same images."
    )


def test_the_verdict_reports_the_majority_class_and_a_better_baseline(
    store: Store,
) -> None:
    with_baselines(
        store, {"A": (160, 140, 160, 140), "majority": MAJORITY_COUNTS, "nearest": (298, 0, 300, 2)}
    )
    assert verdict_of(store).sentence.endswith(
        ", but no row is significantly better than the majority class (50.00 %), "
        "and 1 simple baseline is significantly better: nearest, 99.67 %."
    )


def test_the_verdict_reports_a_row_that_is_better_on_the_test_images(
    store: Store,
) -> None:
    with_baselines(
        store, {"A": (200, 20, 280, 100), "B": (298, 0, 300, 2), "majority": MAJORITY_COUNTS}
    )
    assert verdict_of(store).sentence.endswith(
        ", but 1 other row is significantly better on the test images."
    )


def test_the_verdict_is_below_the_table_too(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with_baselines(
        store, {"A": (298, 0, 300, 2), "B": (200, 20, 280, 100), "majority": MAJORITY_COUNTS}
    )
    assert verdict_of(store).sentence.endswith(
        ", significantly more than every other row on the same images."
    )
    for form in ("text", "markdown"):
        out = call(capsys, "table", "s", "--results", store.root, "--format", form)[1]
        assert " ".join(out.split()).endswith(verdict_of(store).sentence)
    assert json.loads(call(capsys, "table", "s", "--results", store.root, "--json")[1])[
        "verdict"
    ] == (verdict_of(store).sentence)


def test_parallel_axes_place_the_best_at_the_top_and_words_apart() -> None:
    frame = pd.DataFrame({"backbone": ["a", "b"], "validation_accuracy": [0.5, 0.9]})
    found = parallel_axes.parallel(frame, measured=["validation_accuracy"])
    assert [axis.x for axis in found.axes] == [0, 1]
    assert found.lines == (((0.75, 1.0), 0.0), ((0.25, 0.0), 1.0))
    assert [word for _, word in found.axes[1].ticks] == ["90.0 %", "50.0 %"]


def test_the_command_writes_the_page_and_says_where_it_is(
    trained: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out" / "tiny.html"
    words = ("report", "tiny", "--results", trained.root, "--out", file)
    code, out, err = call(capsys, *words, "--with-images", "--positive", "ok_front")
    assert (code, err) == (0, "")
    assert out.split() == [str(file)]
    assert "Positive class: ok_front" in file.read_text()
    code, _, err = call(capsys, *words, "--out", tmp_path)
    assert code == UsageError.exit_code
    assert "Use another file with --out" in err


def test_missing_pictures_give_an_error_about_their_folder(
    hostile: Store,
    drawn: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CASTING_TUNE_DATA", raising=False)
    words = (
        "report",
        "s",
        "--results",
        hostile.root,
        "--out",
        tmp_path / "x.html",
        "--with-images",
    )
    code, _, err = call(capsys, *words)
    assert code == UsageError.exit_code
    assert "Give its image folder with --data" in err
    code, _, err = call(capsys, *words, "--data", drawn)
    assert code == UsageError.exit_code
    assert "; the run used d" in err
