"""Charts: no name, folder or style of the user can break one, and an axis hides no value."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from casting_tune.errors import UsageError
from casting_tune.report import mpl_charts, mpl_style

HOSTILE = (
    "$\\frac{1}{",
    "a_b^{c}$",
    "\x1b[31mred\n",
    "铸件",
    "\u202eabc",
    "x" * 300,
    "",
    "%s {0} <b>",
    "\U0001d5a0",
)
"""Names from files.

The bundled font has no 铸, and its bold face no U+1D5A0: a glyph that lacks is a warning.
"""


def test_a_folder_that_cannot_be_made_is_named(packed, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="taken"):
        mpl_charts.plot_images(packed, tmp_path / "taken" / "images.png")


def measured(names: tuple[str, ...] | list[str], **more: object) -> pd.DataFrame:
    n = len(names)
    columns = {
        "accuracy": np.linspace(0.8, 1, n),
        "recall": np.linspace(0.9, 1, n),
        "f1": np.linspace(0.85, 1, n),
    }
    return pd.DataFrame({"row": list(names), **columns, "n": [3] * n, **more})


def timed(names: tuple[str, ...] | list[str]) -> pd.DataFrame:
    rows = [
        {
            "backbone": name,
            "batch": batch,
            "epoch_s": 80 / batch,
            "step_s": 0.02 * batch,
            "study_epoch_s": 700 / batch,
        }
        for name in names
        for batch in (2, 4, 8)
    ]
    return pd.DataFrame(rows)


def thresholds() -> pd.DataFrame:
    shares = {name: [0.98, 0.99, 1.0] for name in ("accuracy", "recall", "f1")}
    spreads = {f"{name}_sd": [0.03, 0.01, 0.0] for name in shares}
    return pd.DataFrame({"threshold": [0.1, 0.3, 0.5], **shares, **spreads, "n": 10})


def size(file: Path) -> tuple[int, int]:
    height, width = imread(file).shape[:2]
    return width, height


def test_a_setting_is_drawn_as_it_was_timed_with_the_fewest_trials_at_once(tmp_path):
    alone = timed(["a"]).assign(n_at_once=1)
    both = pd.concat([alone, alone.assign(step_s=9.0, n_at_once=4)])
    one = mpl_charts.plot_times(alone, tmp_path / "x.png").read_bytes()
    assert mpl_charts.plot_times(both, tmp_path / "x.png").read_bytes() == one
    assert (
        mpl_charts.plot_times(alone.assign(n_at_once=4), tmp_path / "x.png").read_bytes() != one
    )  # and says so


def test_any_name_from_a_file_can_be_drawn(tmp_path):
    mpl_charts.plot_metrics(measured(HOSTILE), tmp_path / "metrics.png", title=" ".join(HOSTILE))
    mpl_charts.plot_times(timed(HOSTILE), tmp_path / "times.png")
    assert size(tmp_path / "metrics.png")[0] == 1500
    assert size(tmp_path / "times.png")[0] == 1650


@pytest.mark.parametrize("name", HOSTILE)
def test_class_folders_with_any_name_can_be_drawn(packed, tmp_path, name):
    mpl_charts.plot_images(
        replace(packed, positive=name, negative=f"_{name}"), tmp_path / "images.png"
    )
    assert size(tmp_path / "images.png") == (1050, 630)


def test_a_long_name_is_shortened_in_the_middle_and_a_missing_glyph_is_a_question_mark():
    assert mpl_style.name("a" * 30 + "b" * 30) == "a" * 26 + " … " + "b" * 15
    assert mpl_style.plain("$x$ 铸件\n") == "$x$ ???"


def test_33_rows_have_as_much_space_each_as_11(tmp_path):
    few = mpl_charts.plot_metrics(
        measured([f"row {k}" for k in range(11)]), tmp_path / "few.png", title="few"
    )
    many = mpl_charts.plot_metrics(
        measured([f"row {k}" for k in range(33)]), tmp_path / "many.png", title="many"
    )
    assert size(many)[1] - size(few)[1] == pytest.approx(22 * 0.42 * 150, abs=2)


def test_no_number_of_rows_outgrows_the_canvas():
    for height in (6, 400, 5000):
        figure = mpl_charts._figure(10, height)
        assert figure.dpi * height <= 60_000
        assert figure.dpi == 150 or height > 6


def test_the_study_is_marked_only_for_rows_with_a_published_result(tmp_path):
    def drawn(**more: object) -> bytes:
        return mpl_charts.plot_metrics(
            measured(["a", "b"], **more), tmp_path / "x.png", title="x"
        ).read_bytes()

    assert drawn() == drawn(study_accuracy=[None, None]) == drawn(study_accuracy=[np.nan, np.nan])
    assert drawn() != drawn(study_accuracy=[99.2, None])
    assert drawn() != drawn(accuracy_sd=[0.01, 0.02])


def test_the_steps_of_the_study_are_drawn_as_well_as_its_epochs(tmp_path):
    without = mpl_charts.plot_times(timed(["a"]), tmp_path / "x.png").read_bytes()
    assert (
        mpl_charts.plot_times(
            timed(["a"]).assign(study_step_s=None), tmp_path / "x.png"
        ).read_bytes()
        == without
    )
    assert (
        mpl_charts.plot_times(
            timed(["a"]).assign(study_step_s=0.3), tmp_path / "x.png"
        ).read_bytes()
        != without
    )


@pytest.mark.parametrize(
    ("values", "low"),
    [
        ([98.5, 100], 95),
        ([95], 95),
        ([94.9, 99], 90),
        ([80, np.nan], 80),
        ([79.9], 50),
        ([3], 0),
        ([-2], 0),
        ([], 95),
    ],
)
def test_an_axis_starts_at_a_round_number_that_hides_no_value(values, low):
    assert mpl_charts.axis_range(np.array(values, dtype=float))[0] == low


def test_rows_without_a_figure_draw(tmp_path):
    nothing = {"accuracy": [None, None], "recall": [None, None], "f1": [None, None], "n": [0, 0]}
    mpl_charts.plot_metrics(
        measured(["a", "b"]).assign(**nothing), tmp_path / "metrics.png", title="x"
    )
    mpl_charts.plot_times(
        timed(["a", "b"]).assign(epoch_s=None, step_s=None, study_epoch_s=None),
        tmp_path / "times.png",
    )
    mpl_charts.plot_thresholds(
        thresholds().drop(columns=["f1_sd", "n"]).assign(recall_sd=None), tmp_path
    )


def test_the_thresholds_have_one_chart_per_metric_with_the_same_bytes_in_any_order(tmp_path):
    first = mpl_charts.plot_thresholds(thresholds(), tmp_path / "first")
    again = mpl_charts.plot_thresholds(thresholds().iloc[::-1], tmp_path / "again")
    assert [file.name for file in first] == [
        "threshold_accuracy.png",
        "threshold_recall.png",
        "threshold_f1.png",
    ]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]


def test_the_users_own_style_changes_nothing_and_is_left_as_it_was(packed, tmp_path):
    plain = mpl_charts.plot_images(packed, tmp_path / "plain.png").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "text.usetex": True, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        styled = mpl_charts.plot_images(packed, tmp_path / "styled.png").read_bytes()
        assert dict(matplotlib.rcParams) == before
    assert styled == plain


def test_no_chart_loads_pyplot(tmp_path):
    code = (
        "import sys, pandas as pd\nfrom pathlib import Path\n"
        "from casting_tune.report import mpl_charts\n"
        "frame = pd.DataFrame({name: [0.9] for name in ('accuracy', 'recall', 'f1')})\n"
        "frame = frame.assign(row='a', n=1)\n"
        f"mpl_charts.plot_metrics(frame, Path({str(tmp_path / 'x.png')!r}), title='x')\n"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout == ("False False\n")
