"""The examples in the docstrings of the public API run, in a folder with castings and results."""

from __future__ import annotations

import doctest
import inspect
import shutil
from pathlib import Path

import pytest

import casting_tune
from casting_tune.store.store import Store

PUBLIC = ("Options", "prepare", "execute", "Store", "runs", "predictions", "compare", "open_pack")
MODULES = {"query": "run", "tables": "comparison"}


@pytest.fixture
def notebook(trained: Store, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a copy of the folder of the trained sweep."""
    shutil.copytree(trained.root.parent, tmp_path, dirs_exist_ok=True)
    shutil.copytree(drawn, tmp_path / "castings")
    monkeypatch.chdir(tmp_path)


def examples(name: str) -> list[doctest.Example]:
    found = getattr(casting_tune, name)
    found = getattr(found, MODULES[name]) if name in MODULES else found
    text = inspect.getdoc(found)
    assert text is not None
    return doctest.DocTestParser().get_examples(text, name)


@pytest.mark.usefixtures("notebook")
@pytest.mark.parametrize("name", [*PUBLIC, *MODULES, "CastingTuneError"])
def test_the_example_of_a_public_name_gives_what_it_shows(name: str) -> None:
    shown = examples(name)
    assert shown, "it has none"
    test = doctest.DocTest(shown, {"Path": Path}, name, None, None, None)
    failures: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    doctest.DocTestRunner(optionflags=flags).run(test, out=failures.append)
    assert "".join(failures) == ""


def test_every_public_function_and_class_has_an_example() -> None:
    errors = {name for name in casting_tune.__all__ if name.endswith(("Error", "Diverged", "Up"))}
    assert {*PUBLIC, *MODULES} == {*casting_tune.__all__} - errors - {"__version__"}
