"""Every command of a block in README and docs runs as written, on small sweeps.

The small sweeps are made of the real files: names and rows are those that a reader sees.
tests/system/test_readme.py lists the commands that do not run here, and why. The tutorial runs
whole, with its own sweep file and its own numbers of images.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casting_tune.cli import main
from casting_tune.data import synthetic
from casting_tune.deploy import image_files
from casting_tune.planning import sweep_file
from casting_tune.store.store import Store
from tests.system.test_readme import PAGES, RUN_AS_WRITTEN, TUTORIAL

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parent.parent.parent
FIXED = {
    "weights": "none", "image_px": 32, "batch_size": 8, "epochs": 1, "validation_share": 0.4,
    "backbone": "timm:test_resnet.r160_in1k",
}  # fmt: skip
KEPT = {
    "backbone": ["vgg16", "resnet50"],
    "augmentation": ["default", "additional"],
    "batch_size": [8, 4],
}
"""Values kept of an axis: those in the commands of the pages and in the --quick of the sweeps."""
TRAINED = {"vgg16": "timm:test_resnet.r160_in1k", "resnet50": "timm:test_efficientnet.r160_in1k"}
"""What is trained in place of a backbone; the rows keep their labels."""
NAMED = ("backbone_grid", "full_factorial", "summary_model", "cpu_baseline", "augmentation_search")
"""The sweeps that the commands name; `study` runs two of them here."""


def toml(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def small(name: str) -> str:
    """Return a sweep file that asks the same question with fewer values and small images."""
    real = tomllib.loads((SOURCE / "sweeps" / f"{name}.toml").read_text(encoding="utf-8"))
    axes = {axis: KEPT.get(axis, values[:2]) for axis, values in real.get("axes", {}).items()}
    fixed = {key: value for key, value in FIXED.items() if key not in axes}
    only = {
        axis: values
        for axis, values in real["quick"].get("only", {}).items()
        if set(values) <= set(axes[axis])
    }
    parts: dict[str, dict[str, Any]] = {
        "fixed": fixed,
        "quick": {"only": only, "set": {"train_images": 40}},
    }
    if "search" in real:
        parts["search"] = real["search"] | {"n_trials": 2}
        del parts["quick"]["only"]
    else:
        parts["axes"] = axes
    head: dict[str, Any] = {"question": real["question"], "type": real.get("type", "grid")}
    if name in ("backbone_grid", "summary_model"):
        head["study_part"] = real["study_part"]
    lines = [f"{key} = {toml(value)}" for key, value in head.items()]
    for part, settings in parts.items():
        lines += [f"[{part}]", *(f"{key} = {toml(value)}" for key, value in settings.items())]
    for backbone in axes.get("backbone", []):
        lines += [
            "[[when]]",
            f'match = {{ backbone = "{backbone}" }}',
            f'set = {{ backbone = "{TRAINED[backbone]}" }}',
        ]
    return "\n".join(lines) + "\n"


ENDS = {  # exit codes other than 0 that the pages promise
    "audit --data DIR": 3,  # drawn castings of test/ are made to stand in train/ too
    "cluster check cluster.yaml": 2,  # the places to fill in are empty
    "fetch --check DIR": 4,  # drawn castings are not the published ones
    "predict line incoming --watch --out today.csv": 130,  # Ctrl-C
    "predict line casting.jpeg --fail-on-defect": 20,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a reader stands: castings, the sweep files, nothing run yet."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "sweeps").mkdir()
    fixed = "".join(f"{key} = {toml(value)}\n" for key, value in FIXED.items())
    one_cell = f'question = "?"\n[fixed]\n{fixed}'
    for name in sweep_file.names():
        (folder / "sweeps" / f"{name}.toml").write_text(
            small(name) if name in NAMED else one_cell + "[quick]\n"
        )
    synthetic.draw(folder / "castings", n_images=160, size_px=64, seed=1)
    shutil.copy(SOURCE / "cluster.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a job in the background has it ignored
        patch.setenv("CASTING_TUNE_DATA", str(folder / "castings"))
        for name in NAMED:
            assert run(f"python -m casting_tune.sweep {name} --inline") == 0
        yield folder
        signal.signal(signal.SIGINT, before)


def run(command: str) -> int:
    """Run a command in this process and return its exit code."""
    words = shlex.split(command)
    alone = words[0] == "python"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["casting-tune", *words[3 if alone else 1 :]])
        with pytest.raises(SystemExit) as ended:
            main.sweep_alone() if alone else main.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


def filled(command: str, folder: Path) -> str:
    """Return a command with its placeholders replaced; no cell is one of a quick run."""
    rows = Store(folder / "results").read("trials").to_pylist()
    cells = itertools.cycle(
        row["cell_id"]
        for row in rows
        if row["status"] == "completed" and row["epochs"] and not row["train_images"]
    )
    command = re.sub(r"\bCELL\b", lambda _: next(cells), command)
    return re.sub(r"(?<![:\w])DIR\b", "castings", command).replace("mlflow:DIR", "mlflow:flow")


def prepare(command: str, folder: Path) -> None:
    """Do what README's words around a command take for granted."""
    images = image_files.find([folder / "castings" / "test"])
    copy = folder / "castings" / "train" / images[0].parent.name / "copy.png"
    if command.startswith("casting-tune audit"):
        shutil.copy(images[0], copy)
    else:
        copy.unlink(missing_ok=True)
    if "incoming" in command:
        (folder / "incoming").mkdir()
        shutil.copy(images[0], folder / "incoming")
    if "casting.jpeg" in command:
        (defective,) = [image for image in images if "def_front" in image.parts][:1]
        shutil.copy(defective, folder / "casting.jpeg")


@pytest.mark.parametrize("command", RUN_AS_WRITTEN)
def test_a_command_of_the_pages_runs(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(command, folder)
    ctrl_c = threading.Timer(8, os.kill, (os.getpid(), signal.SIGINT))
    if "--watch" in command:
        ctrl_c.start()
    code = run(filled(command, folder))
    ctrl_c.cancel()
    out, err = capsys.readouterr()
    assert code == ENDS.get(command.removeprefix("casting-tune "), 0), out + err
    assert (out + err).strip()
    assert "Traceback" not in out + err


@pytest.mark.timeout(1200)
def test_the_tutorial_runs_as_written_and_ends_with_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CASTING_TUNE_DATA", raising=False)
    (sweep,) = re.findall(r"```toml\n(.*?)```", PAGES["docs/tutorial.md"], re.DOTALL)
    (tmp_path / "first_sweep.toml").write_text(sweep, encoding="utf-8")
    for command in TUTORIAL:
        code = run(command)
        out, err = capsys.readouterr()
        assert code == 0, f"{command}\n{out}{err}"
        assert "Traceback" not in out + err
    assert len((tmp_path / "decisions.csv").read_text().splitlines()) == 321
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
