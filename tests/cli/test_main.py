from __future__ import annotations

import inspect
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer

from casting_tune.cli import cluster, main, signals, store, sweep_run
from casting_tune.execution import ray_cluster
from tests.conftest import TINY


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run `casting-tune WORDS` in this process; return exit code, stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["casting-tune", *map(str, words)])
        patch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as ended:
            main.main()
    out, err = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), out, err


@pytest.fixture(scope="module")
def swept(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A results folder in which the tiny sweep has run, and what that printed.

    Read it, never write to it.
    """
    folder = tmp_path_factory.mktemp("swept")
    (folder / "tiny.toml").write_text(TINY)
    words = [
        "sweep",
        folder / "tiny.toml",
        "--data",
        drawn,
        "--results",
        folder / "results",
        "--inline",
    ]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["casting-tune", *map(str, words), "--no-baselines"])
        patch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as ended:
            main.main()
    assert (ended.value.code, err.getvalue()) == (0, "")
    return folder / "results", out.getvalue()


def test_a_sweep_prints_progress_the_table_and_the_command_that_prints_it_again(
    swept: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = swept
    assert "4 cells: 0 done, 4 to do" in out
    assert "4/4  timm:test_resnet.r160_in1k" not in out  # rows are named by what varies
    assert "  4/4  only flip, seed 1: test accuracy" in out
    command = out.split("Show this table again: casting-tune ")[1].split()
    code, again, _ = call(capsys, *command)
    assert code == 0
    assert again.strip() in out


def test_the_plan_lists_every_cell_with_its_state_and_starts_nothing(
    swept: tuple[Path, str], tiny: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, _ = swept
    n_rows = len(list(results.rglob("*.parquet")))
    code, out, _ = call(
        capsys,
        "sweep",
        tiny,
        "--data",
        drawn,
        "--results",
        results,
        "--no-baselines",
        "--plan",
        "--only",
        "seed=1",
    )
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[-2:]] == ["done", "done"]
    code, out, _ = call(
        capsys,
        "sweep",
        tiny,
        "--data",
        drawn,
        "--results",
        results,
        "--no-baselines",
        "--plan",
        "--set",
        "epochs=3",
    )
    assert "4 cells: 0 done, 4 to do" in out
    assert len(list(results.rglob("*.parquet"))) == n_rows


def test_the_table_has_the_view_of_the_study_and_json(
    swept: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    results, _ = swept
    words = ("table", "tiny", "--results", results, "--format", "json")
    defect = json.loads(call(capsys, *words)[1])
    ok = json.loads(call(capsys, *words, "--positive", "ok_front")[1])
    assert [row["accuracy"] for row in ok] == pytest.approx([row["accuracy"] for row in defect])
    assert [row["recall"] for row in ok] == pytest.approx(
        [1 - row["overkill_rate"] for row in defect]
    )
    code, _, err = call(capsys, *words, "--positive", "okfront")
    assert code == 2
    assert "Did you mean --positive ok_front?" in err


def test_a_sweep_with_a_failed_cell_prints_its_table_and_exits_1(
    tiny: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_text(
        tiny.read_text().replace(
            "epochs = 2\n\n[axes]",
            "epochs = 2\nlr_schedule = 'constant'\n\n[axes]\nbase_lr = [1e-3, 1e30]",
        )
    )
    words = (
        "sweep",
        tiny,
        "--data",
        drawn,
        "--results",
        tiny.parent / "r",
        "--inline",
        "--only",
        "seed=0",
        "--only",
        "augmentation=default",
    )
    code, out, err = call(capsys, *words)
    assert (code, err) == (1, "")
    assert "diverged: Diverged: The training loss" in out
    assert "1 of 6 cells have no result: 1 diverged." in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ("sweep", "backbone_gird"),
            2,
            "Unknown sweep 'backbone_gird'. Did you mean 'backbone_grid'?",
        ),
        (("table", "backbone_grid", "--results", "/nowhere"), 2, "No runs in '/nowhere'."),
        (("table", "x", "--kind", "comparisn"), 2, "Did you mean 'comparison'?"),
        (("swep", "backbone_grid"), 2, "Did you mean 'sweep'"),
        (
            ("sweep", "backbone_grid", "--qick"),
            2,
            "Unknown option '--qick'. Did you mean '--quick'?",
        ),
        (("sweeps", "--jsn"), 2, "Unknown option '--jsn'. Did you mean '--json'?"),
        (("summary", "resnet5"), 2, "Unknown backbone 'resnet5'. Did you mean 'resnet50'?"),
        (("summary",), 2, "Missing argument 'backbone'. See 'casting-tune summary --help'."),
        (("summary", "resnet50", "--px", "big"), 2, "--px"),
        (("pack", "/nowhere"), 4, "/nowhere"),
        (("synthetic", "/proc/x"), 4, "/proc/x"),
    ],
)
def test_an_error_is_one_line_on_stderr_with_its_exit_code(
    words: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, out, err = call(capsys, *words)
    assert (ended, out) == (code, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def every_command(
    command: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a command and all below it, each with the words that call it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from every_command(below, (*path, name))


def test_every_help_text_is_printed_whole_with_its_brackets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def squeezed(text: str) -> str:
        return re.sub(r"[\s│]+", "", text)

    brackets = 0
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)  # no line is broken
    for path, command in every_command(typer.main.get_command(main.app)):
        code, out, _ = call(capsys, *path, "--help")
        assert code == 0
        for part in (command, *command.params):
            text = (part.help or "").strip()
            assert squeezed(text) in squeezed(out), (path, text)
            brackets += len(re.findall(r"\[[a-z]+\]", text))
    assert (
        brackets >= 2
    )  # `[quick]` of sweep and of study: without one of them this test would show nothing


def test_without_a_command_a_short_page_names_commands_that_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= 10
    named = re.findall(r"casting-tune ([a-z]+) ", out)
    assert named
    assert {*named} <= {*typer.main.get_command(main.app).commands}  # type: ignore[attr-defined]


def test_the_backbones_are_listed_with_the_studys_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = call(capsys, "backbones")
    assert code == 0
    for count in ("17,548,616", "4,232,978", "20,806,952"):
        assert count in out


def test_the_sweeps_are_listed_with_their_cells(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "sweeps")
    (line,) = [line for line in out.splitlines() if line.startswith("backbone_grid")]
    assert line.split()[1] == "60"


def document(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """Run a command with --json; return the document in its stdout, which holds nothing else."""
    code, out, err = call(capsys, *words, "--json")
    assert code == 0, err
    assert "error:" not in err
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_every_command_takes_json() -> None:
    below = [
        command.callback for app in (cluster.app, store.app) for command in app.registered_commands
    ]
    assert None not in below
    for command in (*main.COMMANDS, *(command for command in below if command is not None)):
        assert "as_json" in inspect.signature(command).parameters, command.__name__


def test_a_sweep_as_json_is_its_table_and_run_and_its_progress_goes_to_stderr(
    tiny: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "sweep",
        tiny,
        "--data",
        drawn,
        "--results",
        tmp_path / "r",
        "--inline",
        "--quick",
        "--only",
        "seed=0",
    )
    plan = document(capsys, *words, "--plan")
    assert {cell["state"] for cell in plan["cells"]} == {"to do"}
    code, out, err = call(capsys, *words, "--json")
    assert (code, "test accuracy" in err) == (0, True)
    found = json.loads(out)
    assert (found["sweep"], found["n_cells"], found["n_missing"]) == ("tiny", 5, 0)
    again = document(capsys, *found["again"].split()[1:])
    assert again == found["table"]
    assert (
        again["rows"][0]["accuracy_sd"] is None
    )  # one training has no spread, and NaN is not JSON


def test_lists_castings_packs_audits_and_files_are_available_as_json(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (grid,) = [row for row in document(capsys, "sweeps") if row["sweep"] == "backbone_grid"]
    assert grid["cells"] == 60
    assert {row["name"] for row in document(capsys, "backbones")} >= {"resnet50", "vgg16"}
    layers = document(capsys, "summary", "resnet50", "--px", "64")
    assert (
        sum(layer["n_parameters"] for layer in layers["layers"])
        == layers["n_trainable"] + layers["n_statistics"]
    )
    assert (
        document(capsys, "synthetic", tmp_path / "c", "--images", "40", "--size", "32")["images"]
        == 40
    )
    packed = document(capsys, "pack", tmp_path / "c", "--results", tmp_path / "r")
    assert sum(row["images"] for row in packed["counts"]) == packed["images"] == 40
    audit = document(capsys, "audit", "--data", tmp_path / "c", "--results", tmp_path / "r")
    assert (audit["dataset_id"], audit["n_test_copies_in_train"]) == (packed["dataset_id"], 0)
    words = (
        "preview",
        "--data",
        tmp_path / "c",
        "--results",
        tmp_path / "r",
        "--out",
        tmp_path / "preview",
    )
    assert all(Path(file).is_file() for file in document(capsys, *words)["files"])


def test_castings_are_generated_and_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "synthetic", tmp_path / "c", "--images", "40", "--size", "48")
    assert (code, "40 castings of 48 px" in out) == (0, True)
    code, out, _ = call(capsys, "pack", tmp_path / "c", "--results", tmp_path / "r")
    assert code == 0
    assert "40 images, gray, 48 x 48 px" in out


def test_hostile_text_in_an_error_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, _, err = call(capsys, "sweep", "\x1b[31m[/foo]")
    assert "\x1b" not in err
    assert "[/foo]" in err


def python(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | more
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_python_m_casting_tune_sweep_is_the_same_command(tiny: Path, drawn: Path) -> None:
    words = (
        "-m",
        "casting_tune.sweep",
        tiny,
        "--results",
        tiny.parent / "r",
        "--inline",
        "--quick",
        "--verbose",
    )
    ended = python(*words, CASTING_TUNE_DATA=str(drawn), COLUMNS="80")
    assert ended.returncode == 0, ended.stderr
    assert "No dataset given" not in ended.stdout  # the environment named one
    assert "Quick run" in ended.stdout
    assert " INFO casting_tune.execution.tasks: default, seed 1: completed after " in ended.stderr


@pytest.mark.parametrize(
    "words", [("--verbose", "sweep"), ("sweep", "--verbose"), ("--verbose", "sweep", "--verbose")]
)
def test_verbose_shows_the_steps_and_a_failures_traceback_on_stderr_and_nothing_does_without_it(
    words: tuple[str, ...],
    tiny: Path,
    drawn: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken_build(*_: object, **__: object) -> None:
        raise RuntimeError("kernel broke")

    monkeypatch.setattr("casting_tune.models.build.model", broken_build)
    more = (
        "--data",
        drawn,
        "--inline",
        "--no-baselines",
        "--quick",
        "--only",
        "seed=0",
        "--retries",
        "0",
    )
    code, out, err = call(capsys, *words, tiny, *more, "--results", tmp_path / "a")
    assert code == 1
    assert err.count("INFO casting_tune.data.pack: pack ") == 1
    assert (
        "INFO casting_tune.execution.preparation: sweep tiny: 1 cells, 1 of them to train\n" in err
    )
    assert "INFO casting_tune.execution.tasks: default, seed 0: started\n" in err
    assert (
        "WARNING casting_tune.execution.tasks: default, seed 0: error: RuntimeError: kernel broke\n"
        "Traceback (most recent" in err
    )
    assert ", in broken_build\n" in err
    assert "Traceback" not in out
    assert call(capsys, "sweep", tiny, *more, "--results", tmp_path / "b")[2] == ""
    assert [type(handler) for handler in logging.getLogger("casting_tune").handlers] == [
        logging.NullHandler
    ]


@pytest.mark.parametrize("wanted", [None, pytest.param("7", marks=pytest.mark.slow)])
def test_a_waiting_thread_of_torch_sleeps_soon_unless_the_environment_says_otherwise(
    wanted: str | None,
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"OMP_DISPLAY_ENV": "verbose"} | ({"GOMP_SPINCOUNT": wanted} if wanted else {})
    words = [
        sys.executable,
        "-c",
        "from casting_tune.cli.main import main; main()",
        "summary",
        "mobilenetv2",
    ]
    output = subprocess.run(
        words, check=True, capture_output=True, text=True, env=environment
    ).stderr
    assert "GOMP_SPINCOUNT" in output, (
        "torch came without GNU OpenMP: what `startup.SPINS` says no longer holds"
    )
    assert f"GOMP_SPINCOUNT = '{wanted or ray_cluster.SPINS}'" in output


@pytest.mark.parametrize(("wanted", "n_threads"), [(None, "1"), ("2", "2")])
def test_a_command_has_one_thread_of_blas_unless_the_environment_says_otherwise(
    wanted: str | None, n_threads: str
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"
    }
    environment |= {"OPENBLAS_NUM_THREADS": wanted} if wanted else {}
    code = (
        "import sys; from casting_tune.cli import main\n"
        "assert 'numpy' not in sys.modules; sys.argv[1:] = ['--version']\n"
        "try:\n    main.main()\nexcept SystemExit: pass\n"
        "import numpy, threadpoolctl\n"
        "print(*(pool['num_threads'] for pool in threadpoolctl.threadpool_info()))"
    )
    words = [sys.executable, "-c", code]
    output = subprocess.run(
        words, check=True, capture_output=True, text=True, env=environment
    ).stdout
    assert output.splitlines()[-1] == n_threads
    assert ray_cluster.ENVIRONMENT["OPENBLAS_NUM_THREADS"] == "1"  # of Ray's workers


def test_a_closed_pipe_ends_quietly(swept: tuple[Path, str]) -> None:
    code = f"{sys.executable} -m casting_tune.cli.main table tiny --results {swept[0]} | head -1"
    ended = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr


@pytest.mark.slow
def test_a_plain_locale_and_no_color_are_honoured(swept: tuple[Path, str]) -> None:
    ended = python(
        "-m",
        "casting_tune.cli.main",
        "table",
        "tiny",
        "--results",
        swept[0],
        LC_ALL="C",
        NO_COLOR="1",
    )
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["/x/sweep.py", "tiny", "--results", "sweep"],
            "python -m casting_tune.sweep tiny --results sweep",
        ),
        (["/x/casting-tune", "sweep", "tiny"], "casting-tune sweep tiny"),
        (
            ["/x/casting-tune", "study", "--data", "my castings"],
            "casting-tune study --data 'my castings'",
        ),
    ],
)
def test_a_stopped_run_continues_with_the_command_that_started_it(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    assert sweep_run.command_again() == expected


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_stops_a_sweep_keeps_what_has_ended_and_leaves_nothing_running(
    tiny: Path, drawn: Path, number: int, code: int
) -> None:
    tiny.write_text(tiny.read_text().replace("epochs = 2\n\n[axes]", "epochs = 2000\n\n[axes]"))
    results = tiny.parent / "r"
    words = [
        "-m",
        "casting_tune.sweep",
        tiny,
        "--data",
        drawn,
        "--results",
        results,
        "--no-baselines",
    ]
    driver = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert driver.stdout is not None
        for line in driver.stdout:
            if "epoch 3/2000" in line:
                break
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(number)
        out, err = driver.communicate(timeout=90)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == code, err
    assert "Stopped. Finished results are saved. Continue with: python -m casting_tune.sweep" in out
    assert f"--data {drawn} --results {results}" in out
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert len(list(results.glob("epochs/*/*.parquet"))) >= 3


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: the paths of Ray's sockets in it have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="s") as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("number", "code", "after_s"),
    [
        (signal.SIGTERM, 143, 0.0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (signal.SIGTERM, 143, 1.0),
                (signal.SIGTERM, 143, 3.0),
                (signal.SIGINT, 130, 0.0),
                (signal.SIGINT, 130, 1.0),
                (signal.SIGINT, 130, 3.0),
            )
        ),
    ],
)
def test_a_signal_while_ray_starts_ends_it_and_leaves_nothing(
    tiny: Path, drawn: Path, number: int, code: int, after_s: float, short: Path
) -> None:
    words = [
        "-m",
        "casting_tune.sweep",
        tiny,
        "--data",
        drawn,
        "--results",
        tiny.parent / "r",
        "--no-baselines",
    ]
    driver = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(short)},
    )
    try:
        while not any(short.glob("ct-*")):  # Ray's own folder
            assert driver.poll() is None
            time.sleep(0.01)
        time.sleep(after_s)
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(number)
        _, err = driver.communicate(timeout=90)
    finally:
        driver.kill()
        driver.communicate()  # a handle that is left open fails a later test
    assert driver.returncode == code, err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not list(short.glob("ct-*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_pythons_import_machinery_ends_the_command_a_moment_later(
    number: int, code: int
) -> None:
    # raised there, the lock of all imports can stay taken: Ray's import in its thread, and our end,
    # waited for ever
    written = (
        "def load(module):\n    module()\n    return 'loaded'\n"
        "def _call_with_frames_removed(f): f()"
    )
    bootstrap: dict[str, Any] = {}
    exec(compile(written, "<frozen importlib._bootstrap>", "exec"), bootstrap)
    done: list[str] = []

    def inside() -> None:
        done.append(bootstrap["load"](lambda: signal.raise_signal(number)))
        time.sleep(20)
        done.append("slept")

    def in_a_module() -> None:  # whose own code, imported there, is ended at once
        bootstrap["load"](
            lambda: bootstrap["_call_with_frames_removed"](lambda: signal.raise_signal(number))
        )
        done.append("loaded twice")

    before = signal.getsignal(number)
    for act in (inside, in_a_module):
        with pytest.raises(SystemExit) as ended, signals.ray_ahead():
            act()
        assert (ended.value.code, done) == (code, ["loaded"])
        assert signal.getsignal(number) is before


def test_a_signal_in_a_call_of_ray_ends_the_command_with_its_own_code_too() -> None:
    with pytest.raises(SystemExit) as ended, signals.ray_ahead():
        raise SystemError("returned a result with an exception set") from SystemExit(
            143
        )  # as Cython wraps it
    assert ended.value.code == 143
    with pytest.raises(SystemError), signals.ray_ahead():
        raise SystemError("a fault of an extension")


@pytest.fixture(scope="module")
def leaky(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn castings with one training image among the test images too."""
    folder = tmp_path_factory.mktemp("leaky") / "castings"
    shutil.copytree(drawn, folder)
    source = next((folder / "train" / "ok_front").iterdir())
    shutil.copy(source, folder / "test" / "ok_front" / f"copy{source.suffix}")
    return folder


def test_the_audit_skips_bad_files_on_request(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawn, tmp_path / "castings")
    (tmp_path / "castings" / "train" / "ok_front" / "odd.png").write_bytes(b"no image")
    words = ("audit", "--data", tmp_path / "castings", "--results", tmp_path / "r")
    code, _, err = call(capsys, *words)
    assert (code, "or skip them with --skip-bad" in err) == (4, True)
    assert call(capsys, *words, "--skip-bad")[0] == 0


def test_the_audit_exits_3_if_test_images_are_in_train_unless_accepted(
    leaky: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("audit", "--data", leaky, "--results", tmp_path)
    code, out, _ = call(capsys, *words)
    assert code == 3
    assert "1 byte for byte" in out
    assert call(capsys, *words, "--accept-leakage")[0] == 0
    assert call(capsys, "audit", "--data", drawn, "--results", tmp_path)[0] == 0


@pytest.fixture(scope="module")
def mislabelled(
    drawn: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[str, str]]]:
    """Castings with seven good training images also among the defective ones, and these pairs."""
    folder = tmp_path_factory.mktemp("mislabelled") / "castings"
    shutil.copytree(drawn, folder)
    sources = sorted((folder / "train" / "ok_front").iterdir())[:7]
    for i, source in enumerate(sources):
        shutil.copy(source, folder / "train" / "def_front" / f"again{i}{source.suffix}")
    return folder, [
        (f"train/def_front/again{i}{source.suffix}", f"train/ok_front/{source.name}")
        for i, source in enumerate(sources)
    ]


def test_the_audit_lists_every_file_in_both_classes_and_exits_3(
    mislabelled: tuple[Path, list[tuple[str, str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, pairs = mislabelled
    words = ("audit", "--data", folder, "--results", tmp_path)
    code, out, _ = call(capsys, *words)
    assert code == 3
    for bad, good in pairs:
        assert f"'{bad}' = '{good}'" in " ".join(out.split())
    assert "Some files are in both classes: exit code 3" in " ".join(out.split())
    code, out, _ = call(capsys, *words, "--json", "--accept-leakage")
    assert code == 0
    assert json.loads(out)["label_conflicts"] == [list(pair) for pair in pairs]


def test_pack_and_a_sweep_name_five_files_in_both_classes_before_the_first_trial(
    mislabelled: tuple[Path, list[tuple[str, str]]],
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, pairs = mislabelled
    for words in (("pack", folder), ("sweep", tiny, "--data", folder, "--plan", "--inline")):
        code, out, _ = call(capsys, *words, "--results", tmp_path / "r")
        assert code == 0
        text = " ".join(out.split())
        assert (
            "14 files have the same bytes in both classes, so one of their labels is wrong: "
            in text
        )
        assert [f"'{bad}' = '{good}'" in text for bad, good in pairs] == [True] * 5 + [False] * 2
        assert "; and 2 more (casting-tune audit)" in text


@pytest.mark.slow
def test_the_pictures_of_images_and_sweeps_are_written(
    swept: tuple[Path, str], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, _ = swept
    code, out, _ = call(
        capsys, "preview", "--data", drawn, "--results", results, "--out", tmp_path / "preview"
    )
    assert code == 0
    code, charts, _ = call(
        capsys, "plot", "tiny", "--results", results, "--out", tmp_path / "plots"
    )
    assert code == 0
    files = [
        Path(line) for line in (out + charts).replace("\n/", "\0/").replace("\n", "").split("\0")
    ]
    assert (
        len(files) == 5 + 6
    )  # 4 previews and the counts; metrics, counts, times, three over the thresholds
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_a_threshold_is_chosen_for_a_cell_or_refused_with_the_reason(
    swept: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    results, _ = swept
    cell = next((results / "trials").rglob("*.parquet")).name.split("-")[0]
    code, _, err = call(capsys, "threshold", cell, "--results", results, "--max-escape", "5%")
    assert code == 2
    assert "20" in err  # the tiny sweep validates on fewer defects than that
    assert call(capsys, "threshold", cell, "--results", results)[0] == 2


def test_the_layer_table_is_printed_with_its_totals(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "summary", "efficientnetb4", "--head", "dense1024,dropout")
    assert code == 0
    assert "trainable 19,385,673" in out


@pytest.mark.slow
def test_the_whole_study_is_one_command_and_leaves_every_table(
    tiny: Path,
    drawn: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "part.toml").write_text('study_part = "1"\n' + tiny.read_text())
    (tmp_path / "sweeps" / "other.toml").write_text(tiny.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("casting_tune.planning.sweep_file.names", lambda: ["other", "part"])
    code, out, err = call(
        capsys, "study", "--data", drawn, "--quick", "--results", "r", "--out", "tables"
    )
    assert (code, err) == (0, "")
    assert "of the 16 test images" in out  # the audit came first
    kinds = ("comparison", "pairs", "effects", "timing", "thresholds", "trainings")
    expected = {f"part-{kind}{view}.md" for kind in kinds for view in ("", "-ok_front")}
    assert {file.name for file in (tmp_path / "tables").iterdir()} == expected
