"""Every command of README runs as it stands there, in its order, in a folder with small sweeps under the same names."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from casting_tune import cli, predict, sweepfile, synthetic
from casting_tune.store import Store
from tests.test_readme import COMMANDS

pytestmark = pytest.mark.slow

SMALL = """
question = "Do README's commands run?"
type = "grid"
{part}
[fixed]
backbone = "timm:test_resnet.r160_in1k"
weights = "none"
image_px = 32
batch_size = 16
epochs = 1
validation_share = 0.4

{varies}

[quick]
set = {{ train_images = 40 }}
"""
VARIES = {
    "backbone_grid": '[axes]\nbackbone = ["vgg16", "resnet50"]',
    "full_factorial": '[axes]\naugmentation = ["default", "additional"]',
    "summary_model": "[axes]\nseed = [0, 1]",
    "cpu_baseline": "[axes]\nseed = [0, 1]",
    "augmentation_search": (
        "[search]\nn_trials = 2\nobjective = { validation_escape_rate = 'min', latency_one_s = 'min' }\n"
        "[search.space]\nbase_lr = { low = 1e-3, high = 1e-2 }"
    ),
}
ENDS = {  # exit codes other than 0 that README promises
    "audit --data DIR": 3,  # drawn castings of test/ are made to stand in train/ too
    "cluster check cluster.yaml": 2,  # the places to fill in are empty
    "fetch --check DIR": 4,  # drawn castings are not the published ones
    "predict line incoming --watch --out today.csv": 130,  # Ctrl-C
    "predict line casting.jpeg --fail-on-defect": 20,
}
ELSEWHERE = {  # words of the commands that other tests run
    "--address auto": "tests/test_namespaces.py, on a cluster",
    "fetch --accept-licence": "tests/test_fetch.py, with no network",
    "--gpus-per-trial auto": "tests/test_sharing.py, on GPUs that are made up",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a reader of README stands: castings, the sweep files, nothing run yet."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "sweeps").mkdir()
    for name in sweepfile.names():
        part = 'study_part = "small"' if name in ("backbone_grid", "summary_model") else ""
        text = SMALL.format(part=part, varies=VARIES.get(name, "[axes]\nseed = [0]"))
        if "[search]" in text:  # it chooses its cells itself
            text = text.replace('type = "grid"', "")
        if "\nbackbone = [" in text:
            text = text.replace('backbone = "timm:test_resnet.r160_in1k"', "")
        (folder / "sweeps" / f"{name}.toml").write_text(text)
    synthetic.draw(folder / "castings", n_images=160, size_px=64, seed=1)
    source = Path(__file__).parent.parent
    shutil.copy(source / "cluster.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
        patch.setenv("CASTING_TUNE_DATA", str(folder / "castings"))
        for name in VARIES:
            assert run(f"python -m casting_tune.sweep {name} --inline") == 0
        yield folder
        signal.signal(signal.SIGINT, before)


def run(command: str) -> int:
    """Run a command of README in this process and return its exit code."""
    words = shlex.split(command)
    alone = words[0] == "python"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["casting-tune", *words[3 if alone else 1 :]])
        with pytest.raises(SystemExit) as ended:
            cli.sweep_alone() if alone else cli.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


def filled(command: str, folder: Path) -> str:
    """Return a command with README's placeholders filled in as a reader would."""
    rows = Store(folder / "results").read("trials").to_pylist()
    cells = itertools.cycle(row["cell_id"] for row in rows if row["status"] == "completed" and row["epochs"])
    command = re.sub(r"\bCELL\b", lambda _: next(cells), command)
    return re.sub(r"(?<![:\w])DIR\b", "castings", command).replace("mlflow:DIR", "mlflow:flow")


def prepare(command: str, folder: Path) -> None:
    """Do what README's words around a command take for granted."""
    images = predict.find([folder / "castings" / "test"])
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


@pytest.mark.parametrize("command", dict.fromkeys(command.strip() for command in COMMANDS))
def test_a_command_of_readme_runs(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, where in ELSEWHERE.items():
        if words in command:
            pytest.skip(f"needs what is not here; run by {where}")
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
