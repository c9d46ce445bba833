from __future__ import annotations

import pytest

from casting_tune.data.class_names import Roles, roles, view
from casting_tune.errors import ImagesError, UsageError

TILES = ("MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Free", "MT_Uneven")
STEEL = ("crazing", "inclusion", "patches", "scratches")


def _of(*names: str, **given: object) -> Roles:
    return roles(dict.fromkeys(names, 10), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "good"),
    [
        (("def_front", "ok_front"), "ok_front"),
        (("OK", "NG"), "OK"),
        (("good", "not good"), "good"),
        (("not_ok", "ok"), "ok"),
        (("Defective", "NonDefective"), "NonDefective"),
        (("no_defect", "defect"), "no_defect"),
        (("defect-free", "dent"), "defect-free"),
        (("Normal", "Anomalous"), "Normal"),
        (("bad", "castings"), "castings"),
        (TILES, "MT_Free"),
        (("good", "crack", "hole", "bent_wire"), "good"),
    ],
)
def test_names_that_leave_no_doubt_are_understood(names: tuple[str, ...], good: str) -> None:
    found = _of(*names)
    assert found.good == (good,)
    assert sorted(found.defects) == sorted(set(names) - {good})
    assert found.inferred


@pytest.mark.parametrize(
    "names", [STEEL, ("Class1", "Class2"), ("ok", "unsure", "bad"), ("cat", "dog"), ("ok", "pass")]
)
def test_doubtful_names_are_asked_for_with_classes_and_counts(names: tuple[str, ...]) -> None:
    with pytest.raises(ImagesError, match=rf"Which of these {len(names)} .* '{names[0]}' \(10\)"):
        _of(*names)


def test_given_names_leave_the_rest_to_the_other_side() -> None:
    assert _of(*STEEL, good=("patches",)).defects == ("crazing", "inclusion", "scratches")
    assert _of(*STEEL, defect=("crazing",)).good == ("inclusion", "patches", "scratches")


def test_classes_between_good_and_defect_are_named() -> None:
    with pytest.raises(ImagesError, match=r"Neither in --good nor in --defect: 'patches' \(10\)"):
        _of(*STEEL, good=("inclusion",), defect=("crazing", "scratches"))


def test_one_class_on_both_sides_is_refused() -> None:
    with pytest.raises(UsageError, match="'crazing' is in --good and in --defect"):
        _of(*STEEL, good=("crazing",), defect=("crazing", "patches"))


def test_a_side_without_classes_is_refused() -> None:
    with pytest.raises(ImagesError, match="No class is defective: --good names all of"):
        _of("a", "b", good=("a", "b"))


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"positive": "def_front"}, "Did you mean --positive Def_Front"),
        ({"good": ("ok_frnt",)}, "Did you mean --good ok_front"),
        ({"defect": ("x",)}, "The classes are 'Def_Front', 'ok_front'"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(given: dict[str, object], hint: str) -> None:
    with pytest.raises(ImagesError, match=hint):
        _of("Def_Front", "ok_front", **given)


def test_the_names_of_both_sides_lead_back_to_the_same_roles() -> None:
    for found in (_of(*TILES), _of(*STEEL, good=("patches", "inclusion")), _of("a", "bad")):
        again = _of(*found.good, *found.defects, positive=found.positive)
        assert {*again.good} == {*found.good}
        assert {*again.defects} == {*found.defects}


def test_every_name_of_a_set_is_understood_later() -> None:
    def side(name: str) -> str:
        return view(name, positive="not good", negative="good", kinds=["", "crack", "hole"])

    for name in ("not good", "defective", "crack", "hole"):
        assert side(name) == "defective"
    for name in ("good", "ok"):
        assert side(name) == "ok"
    with pytest.raises(UsageError, match="Did you mean --positive crack"):
        side("crak")


def test_a_class_called_ok_front_may_be_the_defect() -> None:
    assert view("ok_front", positive="ok_front", negative="def_front") == "defective"
    assert view("def_front", positive="ok_front", negative="def_front") == "ok"
