"""metrics: every share by hand, the study's own rows, and scikit-learn as the peer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as peer

from casting_tune.metrics import METRICS, OF_THE_DEFECT, RANKING, Counts, counts, measure
from casting_tune.planning.sweep_file import OBJECTIVES
from casting_tune.store.schema import TRIALS
from tests.store.test_verify import OLD

ALL = [*METRICS, *RANKING]

Y = np.array([1, 1, 1, 0, 0], dtype=np.uint8)
PERFECT = np.array([0.9, 0.8, 0.5, 0.1, 0.2], dtype=np.float32)
INVERTED = np.array([0.1, 0.2, 0.3, 0.9, 0.8], dtype=np.float32)

# The deck's rows with ok_front positive: of 263 ok found, of 453 defects passed as ok, accuracy %,
# recall %, F1. Each pair of counts is the only one over 716 images that rounds to the three
# figures.
STUDY = {
    "Base Model + Batch size 8": (255, 3, 98.46, 96.96, 0.98),
    "Augmentation + Dense + Dropout + Batch size 8": (263, 8, 98.88, 100, 0.99),
    "Base Model (EffNet)": (254, 2, 98.46, 96.58, 0.98),
    "No Dropout": (262, 5, 99.16, 99.62, 0.99),
    "Default Augmentation": (263, 2, 99.72, 100, 1),
    "Augmentation + Dense + Dropout": (255, 1, 98.74, 96.96, 0.98),
    "Default Augmentation (random_hue & random_contrast only)": (260, 13, 97.77, 98.86, 0.97),
    "Augmentation (No random_hue & No random_contrast only)": (263, 15, 97.91, 100, 0.97),
    "No Zoom": (262, 3, 99.44, 99.62, 0.99),
    "VGG16": (263, 7, 99.02, 100, 0.99),
    "ResNet50": (242, 16, 94.83, 92.02, 0.93),
    "ResNet101V2": (237, 33, 91.76, 90.11, 0.89),
    "InceptionV3": (253, 108, 83.52, 96.2, 0.81),
    "MobileNetV2": (263, 31, 95.67, 100, 0.94),
    "Summary model, training 8, threshold 0.1": (263, 54, 92.46, 100, 0.91),
}


def study_arrays(ok_found: int, defects_passed: int) -> tuple[np.ndarray, np.ndarray]:
    y_true = np.repeat([0, 1], [263, 453]).astype(np.uint8)
    score = np.full(716, 0.9, dtype=np.float32)
    score[:ok_found] = 0.1
    score[263 : 263 + defects_passed] = 0.1
    return y_true, score


@pytest.mark.parametrize("row", STUDY)
def test_the_counts_behind_a_row_of_the_study_give_its_figures_with_ok_as_positive(row):
    ok_found, defects_passed, accuracy, recall, f1 = STUDY[row]
    got = measure(*study_arrays(ok_found, defects_passed), positive="ok")
    assert round(100 * got["accuracy"], 2) == accuracy
    assert round(100 * got["recall"], 2) == recall
    assert round(got["f1"], 2) == f1


@pytest.mark.parametrize("positive", ["defective", "ok"])
def test_recall_100_of_the_study_hides_31_of_453_escapes_in_either_view(positive):
    got = measure(*study_arrays(263, 31), positive=positive)
    assert got["escape_rate"] == 31 / 453  # 6.8 %
    assert got["overkill_rate"] == 0
    assert got["recall"] == (1 if positive == "ok" else 422 / 453)


@pytest.mark.parametrize(
    ("name", "perfect", "inverted"),
    [
        ("accuracy", 1, 0),
        ("recall", 1, 0),
        ("precision", 1, 0),
        ("f1", 1, 0),
        ("specificity", 1, 0),
        ("escape_rate", 0, 1),
        ("overkill_rate", 0, 1),
        # Inverted, the defects stand third to fifth: (1/3 + 2/4 + 3/5) / 3; the two ok's: (1/4 +
        # 2/5) / 2.
        ("average_precision", 1, {"defective": 43 / 90, "ok": 13 / 40}),
        ("auroc", 1, 0),
    ],
)
@pytest.mark.parametrize("positive", ["defective", "ok"])
def test_perfect_and_inverted_scores_give_the_ends_of_the_range(name, perfect, inverted, positive):
    expected = inverted[positive] if isinstance(inverted, dict) else inverted
    assert measure(Y, PERFECT, positive=positive)[name] == perfect
    assert measure(Y, INVERTED, positive=positive)[name] == pytest.approx(expected, abs=1e-12)


def test_every_metric_stands_in_the_tests_above():
    by_hand = [
        "accuracy",
        "recall",
        "precision",
        "f1",
        "specificity",
        "escape_rate",
        "overkill_rate",
    ]
    assert list(measure(Y, PERFECT)) == [*by_hand, "average_precision", "auroc"]
    assert set(METRICS) >= OF_THE_DEFECT


def test_with_ok_castings_only_nothing_is_reported_about_defects():
    got = measure([0, 0, 0, 0], [0.1, 0.9, 0.2, 0.3])
    assert got == {
        "accuracy": 0.75,
        "recall": None,
        "precision": 0.0,
        "f1": None,
        "specificity": 0.75,
        "escape_rate": None,
        "overkill_rate": 0.25,
        "average_precision": None,
        "auroc": None,
    }


def test_with_defects_only_nothing_is_reported_about_ok_castings():
    got = measure([1, 1, 1, 1], [0.1, 0.9, 0.2, 0.3])
    assert got == {
        "accuracy": 0.25,
        "recall": 0.25,
        "precision": 1.0,
        "f1": 0.4,
        "specificity": None,
        "escape_rate": 0.75,
        "overkill_rate": None,
        "average_precision": None,
        "auroc": None,
    }


def test_without_images_every_metric_is_none():
    assert measure([], []) == dict.fromkeys(ALL)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("positive", ["defective", "ok"])
def test_one_score_that_is_not_finite_makes_every_metric_none(bad, positive):
    assert measure(Y, [0.9, bad, 0.5, 0.1, 0.2], positive=positive) == dict.fromkeys(ALL)
    with pytest.raises(ValueError, match="Scores must be finite"):
        counts(Y, [0.9, bad, 0.5, 0.1, 0.2])


def test_constant_scores_rank_nothing_and_reject_all_or_none():
    got = measure(Y, np.full(5, 0.4))
    assert (got["recall"], got["precision"], got["f1"]) == (0, None, 0)
    assert got["auroc"] == 0.5
    assert got["average_precision"] == pytest.approx(3 / 5)  # the share of defects
    assert measure(Y, np.full(5, 0.4), threshold=0.4)["recall"] == 1


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_score_stored_as_the_threshold_meets_it(threshold, dtype):
    stored = np.array([threshold], dtype=np.float32).astype(dtype)
    assert counts([1], stored, threshold=threshold) == Counts(tp=1, fp=0, tn=0, fn=0)
    below = np.nextafter(np.float32(threshold), np.float32(0)).astype(dtype)
    assert counts([1], [below], threshold=threshold) == Counts(tp=0, fp=0, tn=0, fn=1)


def test_thresholds_at_and_beyond_the_ends_reject_all_or_none():
    assert counts(Y, PERFECT, threshold=0) == Counts(tp=3, fp=2, tn=0, fn=0)
    assert counts(Y, PERFECT, threshold=1.01) == Counts(tp=0, fp=0, tn=2, fn=3)


def test_swapped_exchanges_the_classes_and_twice_changes_nothing():
    c = Counts(tp=1, fp=2, tn=3, fn=4)
    assert c.swapped() == Counts(tp=3, fp=4, tn=1, fn=2)
    assert c.swapped().swapped() == c


def some_trials():
    """Seeded labels and scores: smooth, and on a grid of five values so that ties abound."""
    rng = np.random.default_rng(0)
    for k in range(60):
        n = int(rng.integers(2, 80))
        y_true = rng.integers(0, 2, n).astype(np.uint8)
        y_true[:2] = [0, 1]
        score = np.clip(rng.random(n) + 0.2 * y_true, 0, 1)
        yield (
            y_true,
            (np.round(score * 4) / 4 if k % 2 else score).astype(np.float32),
            float(rng.choice([0.25, 0.5, 0.8])),
        )


def test_all_metrics_agree_with_scikit_learn_in_both_views_with_and_without_ties():
    for y_true, score, threshold in some_trials():
        rejected = (score >= np.float32(threshold)).astype(int)
        for positive, y, decided, ranked in (
            ("defective", y_true, rejected, score),
            ("ok", 1 - y_true, 1 - rejected, 1 - score.astype(np.float64)),
        ):
            got = measure(y_true, score, threshold=threshold, positive=positive)
            assert got["accuracy"] == pytest.approx(peer.accuracy_score(y, decided))
            assert got["recall"] == pytest.approx(peer.recall_score(y, decided))
            if decided.any():
                assert got["precision"] == pytest.approx(peer.precision_score(y, decided))
            else:
                assert got["precision"] is None
            assert got["f1"] == pytest.approx(peer.f1_score(y, decided))
            assert got["specificity"] == pytest.approx(peer.recall_score(y, decided, pos_label=0))
            assert got["escape_rate"] == pytest.approx(1 - peer.recall_score(y_true, rejected))
            assert got["overkill_rate"] == pytest.approx(
                1 - peer.recall_score(y_true, rejected, pos_label=0)
            )
            assert got["average_precision"] == pytest.approx(
                peer.average_precision_score(y, ranked)
            )
            assert got["auroc"] == pytest.approx(peer.roc_auc_score(y, ranked))


def test_the_order_of_the_images_changes_nothing():
    rng = np.random.default_rng(1)
    for y_true, score, threshold in some_trials():
        order = rng.permutation(len(score))
        assert measure(y_true[order], score[order], threshold=threshold) == pytest.approx(
            measure(y_true, score, threshold=threshold)
        )


def test_showing_every_image_twice_changes_nothing():
    for y_true, score, threshold in some_trials():
        assert measure(np.tile(y_true, 2), np.tile(score, 2), threshold=threshold) == pytest.approx(
            measure(y_true, score, threshold=threshold)
        )


def test_a_rising_curve_over_the_scores_leaves_the_ranking_as_it_was():
    for y_true, score, _ in some_trials():
        bent = np.exp2(score.astype(np.float64) * 4)
        for name in RANKING:
            assert measure(y_true, bent)[name] == pytest.approx(measure(y_true, score)[name])


def test_auroc_of_the_other_class_is_the_same_and_of_reversed_scores_the_rest():
    for y_true, score, _ in some_trials():
        auroc = measure(y_true, score)["auroc"]
        assert measure(y_true, score, positive="ok")["auroc"] == pytest.approx(auroc)
        assert measure(y_true, -score)["auroc"] == pytest.approx(1 - auroc)


def test_a_higher_threshold_never_lets_fewer_defects_escape():
    for y_true, score, _ in some_trials():
        escapes = [
            measure(y_true, score, threshold=t)["escape_rate"] for t in np.linspace(0, 1.1, 12)
        ]
        assert escapes == sorted(escapes)


@pytest.mark.parametrize(
    ("y_true", "score", "says"),
    [
        ([1, 0], [0.5], "must have the same shape"),
        ([[1, 0]], [[0.5, 0.1]], "must have the same shape"),
        ([1, 2], [0.5, 0.1], "only"),
        ([1, np.nan], [0.5, 0.1], "only"),
    ],
)
def test_arrays_that_cannot_be_predictions_are_refused(y_true, score, says):
    with pytest.raises(ValueError, match=says):
        measure(y_true, score)
    with pytest.raises(ValueError, match=says):
        counts(y_true, score)


def test_a_threshold_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        measure(Y, PERFECT, threshold=float("nan"))


def test_labels_may_be_bool_or_int_and_inputs_are_left_alone():
    y_true, score = Y.astype(bool), PERFECT.copy()
    assert measure(y_true, score, positive="ok") == measure(Y.astype(int), PERFECT, positive="ok")
    assert (score == PERFECT).all()


def test_the_columns_of_a_trial_and_the_objectives_of_a_search_are_those_of_the_metrics():
    assert [name for name in TRIALS.names if name.startswith(("validation_", "test_"))] == [
        "validation_share", "test_images",
        "validation_accuracy", "validation_recall", "validation_precision", "validation_f1",
        "validation_specificity",
        "validation_escape_rate", "validation_overkill_rate", "validation_average_precision",
        "validation_auroc",
        "test_accuracy", "test_recall", "test_precision", "test_f1", "test_specificity",
        "test_escape_rate",
        "test_overkill_rate", "test_average_precision", "test_auroc",
        "validation_tp", "validation_fp", "validation_tn", "validation_fn", "test_tp", "test_fp",
        "test_tn", "test_fn",
        "test_leaked_tp", "test_leaked_fp", "test_leaked_tn", "test_leaked_fn",
        "test_recall_ok", "test_precision_ok", "test_f1_ok",
    ]  # fmt: skip
    validated = [name for name in OBJECTIVES if name.startswith("validation_")]
    assert validated == [f"validation_{name}" for name in ALL]


ANOTHER = """
import json, sys
from pathlib import Path
from casting_tune import metrics

def balanced_accuracy(c):
    return (c.tp / (c.tp + c.fn) + c.tn / (c.tn + c.fp)) / 2

metrics.METRICS["balanced_accuracy"] = balanced_accuracy

from casting_tune import Options, Store, execute, prepare, tables
from casting_tune.planning import sweep_file

file, data, results, old = sys.argv[1:]
quick = {"quick": True, "only": ("seed=0",)}
asked = Options(sweep=file, data=Path(data), results=results, inline=True, baselines=False, **quick)
assert execute(prepare(asked, say=lambda _: None)) == 0
store = Store(results)
(row,), (before,) = (each.read("trials").to_pylist() for each in (store, Store(old)))
predictions = store.read("predictions").to_pandas()
print(json.dumps({
    "row": [row["validation_balanced_accuracy"], row["test_balanced_accuracy"]],
    "before": [before["status"], before["test_accuracy"], before["test_balanced_accuracy"]],
    "table": [tables.comparison(store, "tiny").frame["balanced_accuracy"][0]],
    "objective": "validation_balanced_accuracy" in sweep_file.OBJECTIVES,
    "predicted": [predictions[name].tolist() for name in ("split", "y_true", "score")],
}))
"""


def test_a_metric_that_is_added_is_in_the_rows_of_new_trials_and_null_in_old_ones(
    tiny, drawn, tmp_path
):
    words = [
        sys.executable,
        "-c",
        ANOTHER,
        str(tiny),
        str(drawn),
        str(tmp_path / "results"),
        str(OLD),
    ]
    got = json.loads(
        subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path.cwd()).stdout
    )
    split, y_true, score = map(np.array, got["predicted"])
    sides = [
        peer.balanced_accuracy_score(y_true[split == name], score[split == name] >= 0.5)
        for name in ("validation", "test")
    ]
    assert got["row"] == pytest.approx(sides)
    assert got["table"] == pytest.approx(sides[1:])
    assert got["objective"]
    assert got["before"] == ["completed", 0.5, None]
