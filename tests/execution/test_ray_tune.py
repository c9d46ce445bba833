from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import psutil
import pyarrow.compute as pc
import pytest

from casting_tune.config import Allowance, TrialConfig, cell_id
from casting_tune.data.pack import Pack
from casting_tune.errors import ResourcesError, StoreError
from casting_tune.execution import nodes, ray_cluster, ray_failures, ray_head, ray_private, ray_tune
from casting_tune.execution.claims import Claimed
from casting_tune.execution.inline import run_inline
from casting_tune.execution.nodes import Resources
from casting_tune.execution.tasks import Asha, Event, Halt, InOrder, Task, Work
from casting_tune.execution.tune_callbacks import LOST_WORKERS, Follower, HaltStopper
from casting_tune.execution.tune_driver import TuneDriver
from casting_tune.models import build
from casting_tune.store import artifacts
from casting_tune.store.store import Store
from casting_tune.training import trial
from casting_tune.training.records import Ending, Place, TrialContext

CONFIG = TrialConfig(
    backbone="timm:test_resnet.r160_in1k",
    image_px=32,
    batch_size=16,
    epochs=1,
    precision="fp32",
    test_images=10,
)
TWO = Resources(cpus=1, gpus=0, n_at_once=2)


def work(store: Store, configs: list[TrialConfig], retries: int = 0) -> Work:
    tasks = tuple(Task(config=config, label=f"cell {i}") for i, config in enumerate(configs))
    return Work(
        tasks=tasks,
        store=store,
        sweep="s",
        place=Place(n_at_once=2),
        allowance=Allowance(retries=retries),
    )


def endings(events: list[Event]) -> dict[int, list[str | None]]:
    found: dict[int, list[str | None]] = {}
    for event in events:
        if event.kind == "ended":
            found.setdefault(event.task, []).append(event.status)
    return found


def test_a_plain_loop_runs_every_task_once_and_tells_of_it_in_order(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    run_inline(work(store, [CONFIG, replace(CONFIG, seed=1)]), packed, on_event=events.append)
    assert [(e.task, e.kind) for e in events] == [
        (0, "started"), (0, "epoch"), (0, "ended"), (1, "started"), (1, "epoch"), (1, "ended"),
    ]  # fmt: skip
    assert store.read("trials")["status"].to_pylist() == ["completed", "completed"]


def test_a_failing_trial_is_retried_and_then_given_up_and_the_next_one_runs(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    real = build.model

    def build_model(name: str, **more: object) -> object:
        if more["seed"] == 0:
            raise RuntimeError("broken kernel")
        return real(name, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "model", build_model)
    run_inline(
        work(store, [CONFIG, replace(CONFIG, seed=1)], retries=2), packed, on_event=events.append
    )
    assert endings(events) == {0: ["error"] * 3, 1: ["completed"]}
    assert [e.retried for e in events if e.kind == "ended"] == [True, True, False, False]


def test_ray_runs_tasks_on_two_workers_fails_one_and_keeps_the_rows(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    poison = replace(CONFIG, base_lr=1e30, warmup_share=0.0, lr_schedule="constant", epochs=3)
    broken = replace(CONFIG, weights="local-dir:/nowhere", weights_id="local-dir:0")
    configs = [
        CONFIG,
        replace(CONFIG, seed=1),
        poison,
        broken,
        replace(CONFIG, seed=2),
        replace(CONFIG, seed=3),
    ]
    niceness: set[int] = set()

    def follow(event: Event) -> None:
        events.append(event)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ImplicitFunc" in " ".join(process.cmdline()):
                    niceness.add(process.nice())

    before = set(psutil.Process().children(recursive=True))
    ray_tune.run_ray(work(store, configs, retries=1), packed, resources=TWO, on_event=follow)
    assert niceness == {psutil.Process().nice()}  # else trials starve where another program is busy
    assert endings(events) == {
        0: ["completed"],
        1: ["completed"],
        2: ["diverged"],
        3: ["error", "error"],
        4: ["completed"],
        5: ["completed"],
    }
    trials = store.read("trials").to_pandas()
    assert sorted(trials["status"]) == ["completed"] * 4 + ["diverged", "error", "error"]
    assert {e.task for e in events if e.kind == "epoch"} == {0, 1, 4, 5}
    busy = trials[trials["status"] == "completed"].sort_values("started_at")
    ends = busy["started_at"] + pd.to_timedelta(busy["duration_s"], unit="s")
    assert (
        busy["started_at"].iloc[1:].to_numpy() < ends.iloc[:-1].to_numpy()
    ).any()  # two were at work at once
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [
        process for process in left if "ray" in " ".join(process.cmdline()) and process.is_running()
    ]


@pytest.mark.slow
def test_a_worker_that_is_killed_does_not_cost_its_cell(packed: Pack, store: Store) -> None:
    events: list[Event] = []
    killed = threading.Event()

    def kill_once(event: Event) -> None:
        events.append(event)
        if event.kind == "epoch" and not killed.is_set():
            killed.set()
            workers = [
                p
                for p in psutil.Process().children(recursive=True)
                if "ImplicitFunc" in " ".join(p.cmdline())
            ]
            assert workers
            for worker in workers:
                os.kill(worker.pid, signal.SIGKILL)

    long = replace(CONFIG, epochs=40)
    ray_tune.run_ray(work(store, [long]), packed, resources=TWO, on_event=kill_once)
    assert killed.is_set()
    assert store.read("trials")["status"].to_pylist() == ["completed"]
    assert store.read("trials")["attempt"].to_pylist() == [2]
    assert store.read("trials")["resumed_from"][0].as_py() >= 1
    assert sorted(store.read("epochs")["epoch"].to_pylist()) == list(range(1, 41))


def fatal(config: TrialConfig, packed: Pack, store: Store, **more: object) -> dict[str, object]:
    if config.seed == 1:
        with (store.root / "tries").open("a") as tries:
            tries.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return trial.run_trial(config, packed, store, **more)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_cell_whose_process_always_dies_is_given_up_and_the_others_are_trained(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    job = replace(work(store, [replace(CONFIG, seed=1), CONFIG]), trial=fatal)
    ray_tune.run_ray(job, packed, resources=TWO, on_event=events.append)
    assert endings(events) == {0: ["error"], 1: ["completed"]}
    assert len((store.root / "tries").read_text()) == LOST_WORKERS + 1
    (message,) = [e.error for e in events if e.status == "error"]
    assert message is not None
    assert message.startswith("The trial's process was lost: ActorDiedError")
    (kept,) = store.read("trials").filter(pc.field("status") == "error")["traceback"].to_pylist()
    assert kept.startswith("ray.exceptions.ActorDiedError: The actor died")
    assert "worker process has died" in kept  # Ray's own words, lines below the first


def test_what_ray_reports_of_a_failure_is_kept_whole_and_without_colours() -> None:
    assert ray_failures.report(None) == ""
    try:
        raise RuntimeError(
            "\x1b[36mray::f\x1b[39m\nWorker exit type: SYSTEM_ERROR"
        ) from ValueError("cause")
    except RuntimeError as error:
        lines = ray_failures.report(error).splitlines()
    assert lines[0] == "ValueError: cause"
    assert lines[-2:] == ["RuntimeError: ray::f", "Worker exit type: SYSTEM_ERROR"]


def dies_once_its_row_is_written(
    config: TrialConfig, packed: Pack, store: Store, **more: object
) -> dict[str, object]:
    row = trial.run_trial(config, packed, store, **more)  # type: ignore[arg-type]
    if row["attempt"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return row


@pytest.mark.slow
def test_a_process_that_dies_between_its_row_and_its_last_word_costs_no_second_training(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    job = replace(work(store, [CONFIG]), trial=dies_once_its_row_is_written)
    ray_tune.run_ray(job, packed, resources=TWO, on_event=events.append)
    assert endings(events) == {0: ["completed"]}
    assert store.read("trials")["attempt"].to_pylist() == [1]


class Named:
    """A Tune trial as far as a callback needs it."""

    trial_id = "t"
    config: ClassVar = {"index": 0, "task": Task(config=CONFIG, label="cell 0", gpus=0.5)}


def followed(packed: Pack, store: Store, events: list[Event]) -> Any:
    """Tune's callback on the one task of a run, which is held."""
    job = work(store, [CONFIG], retries=1)
    source = Claimed(InOrder(job.tasks), store, packed.dataset_id, Halt(), events.append)
    assert source.next_task() == 0
    return Follower(TuneDriver(job, packed, source, TWO, events.append))


def reported(event: Event) -> tuple[int, list[object], Named, dict[str, object]]:
    return 0, [], Named(), {"event": asdict(event)}


def test_a_trial_that_asha_stops_at_its_second_try_gets_its_row_too(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    follower, cell = followed(packed, store, events), cell_id(CONFIG, packed.dataset_id)
    follower.on_trial_result(*reported(Event(task=0, kind="ended", status="error", retried=True)))
    epoch = {
        "cell_id": cell,
        "attempt": 1,
        "sweep": "s",
        "epoch": 1,
        "train_s": 1.0,
        "validation_s": 0.5,
    }
    store.write("epochs", "s", f"{cell}-1-1", [epoch])
    follower.on_trial_complete(0, [], Named())
    assert endings(events) == {0: ["error", "stopped"]}
    assert store.read("trials")["status"].to_pylist() == ["stopped"]


def test_a_share_that_was_too_small_grows_once_its_trial_is_over_and_that_is_no_stop(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    follower = followed(packed, store, events)
    again = follower.driver.source.again
    for _ in range(2):  # the process was lost after the first time
        follower.on_trial_result(*reported(Event(task=0, kind="started")))
        follower.on_trial_result(*reported(Event(task=0, kind="ended", status="oom", retried=True)))
        assert again == []
    follower.on_trial_complete(0, [], Named())
    assert again == [0]
    assert endings(events) == {0: ["oom", "oom"]}
    assert store.read("trials").num_rows == 0


def test_a_task_that_tells_its_end_twice_ended_once(packed: Pack, store: Store) -> None:
    events: list[Event] = []
    follower = followed(packed, store, events)
    for _ in range(2):  # the process was lost after the first time
        follower.on_trial_result(*reported(Event(task=0, kind="started")))
        follower.on_trial_result(*reported(Event(task=0, kind="ended", status="completed")))
    follower.on_trial_error(0, [], Named())
    assert [event.kind for event in events] == ["started", "ended"]
    assert store.read("trials").num_rows == 0


def test_a_request_that_no_node_can_meet_is_refused_and_not_waited_for(
    packed: Pack, store: Store
) -> None:
    started = time.monotonic()
    with pytest.raises(ResourcesError, match="A trial requires 9999 CPU"):
        ray_tune.run_ray(
            work(store, [CONFIG]),
            packed,
            resources=Resources(cpus=9999),
            on_event=lambda _: None,
        )
    assert time.monotonic() - started < 60
    assert store.read("trials").num_rows == 0


class Uneven:
    """A cluster of a head that trains nothing, a worker, and a worker that is gone."""

    def __init__(self, driver: str) -> None:
        self.driver = driver

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": "head", "Alive": True, "Resources": {"object_store_memory": 1e6}},
            {
                "NodeID": "worker",
                "Alive": True,
                "Resources": {"object_store_memory": 2e6, "CPU": 4.0},
            },
            {
                "NodeID": "gone",
                "Alive": False,
                "Resources": {"object_store_memory": 1e3, "CPU": 4.0},
            },
        ]

    def get_runtime_context(self) -> Uneven:
        return self

    def get_node_id(self) -> str:
        return self.driver


def images_of(n_bytes: int, packed: Pack) -> Pack:
    return replace(packed, images=np.broadcast_to(np.zeros(1, np.uint8), (1, 1, n_bytes)))


def test_images_go_into_the_store_of_the_drivers_node_and_of_those_that_train(packed: Pack) -> None:
    nodes.check_object_store(Uneven("worker"), images_of(2_000_000, packed))
    nodes.check_object_store(Uneven("head"), images_of(1_000_000, packed))
    for driver, n_bytes in (("worker", 2_000_001), ("head", 1_000_001)):
        with pytest.raises(ResourcesError, match="object store holds"):
            nodes.check_object_store(Uneven(driver), images_of(n_bytes, packed))


@pytest.mark.slow
def test_images_too_large_for_rays_object_store_are_refused_before_the_first_trial(
    packed: Pack, store: Store
) -> None:
    with pytest.raises(
        ResourcesError, match=r"need 1024.00 GiB; Ray's object store holds .*--pack-size"
    ):
        ray_tune.run_ray(
            work(store, [CONFIG]),
            images_of(2**40, packed),
            resources=TWO,
            on_event=lambda _: None,
        )
    assert store.read("trials").num_rows == 0


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
JOIN = """
import sys
from casting_tune.execution import nodes
from casting_tune.errors import ResourcesError
try:
    print("CPUs, GPUs:", *nodes.capacity(sys.argv[1], inline=False))
except ResourcesError as error:
    print("refused:", error)
"""


@pytest.mark.slow
def test_a_cluster_that_asks_for_no_token_is_named_where_one_is_sent(tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    home = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"} | {
        "HOME": str(tmp_path)
    }
    open_cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=home | {"RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with open_cluster:
        assert open_cluster.stdout is not None
        address = open_cluster.stdout.readline().strip()
        for more, message in (
            ({}, "refused: Connected, but the Ray cluster at"),
            ({"RAY_AUTH_MODE": "disabled"}, "CPUs, GPUs: 1 0"),
        ):
            result = subprocess.run(
                [sys.executable, "-c", JOIN, address],
                env=home | more,
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.stdout.startswith(message), result.stdout + result.stderr
            assert ("requires no token" in result.stdout) == (not more)
        open_cluster.communicate("")


def test_what_workers_import_ahead_asks_for_no_gpu_before_a_trial_is_given_one() -> None:
    code = (
        "import importlib, sys, torch\n"
        "def asked(*_): sys.exit('CUDA was asked: what it answers holds for the whole process')\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = asked\n"
        "torch.cuda._raw_device_count_nvml = torch.cuda._device_count_nvml = asked\n"
        f"importlib.import_module({ray_cluster.PRELOADED!r})\n"
        "assert {'timm', 'ray.tune'} <= set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def imports_nothing(config: TrialConfig, packed: Pack, store: Store, **more: Any) -> dict[str, Any]:
    row = {"cell_id": cell_id(config, packed.dataset_id), "attempt": 1, "status": "completed"}
    missing = {ray_cluster.PRELOADED, "timm", "ray.tune"} - set(sys.modules)
    store.write(
        "trials",
        "s",
        "row",
        [row | {"error": f"{missing or 'nothing'} is missing in {os.getpid()}"}],
    )
    return row


@pytest.mark.slow
def test_a_ray_that_is_started_ahead_is_used_its_workers_have_imported_and_it_ends_with_the_run(
    packed: Pack, store: Store
) -> None:
    before = set(psutil.Process().children(recursive=True))
    events: list[Event] = []
    with ray_cluster.Ahead() as ahead:
        ahead.start(1)
        ahead.start(2)
        ray = ahead.ray()
        assert ray.cluster_resources()["CPU"] == 1
        while not (
            idle := [
                p.pid
                for p in psutil.Process().children(recursive=True)
                if p.cmdline()[:1] == ["ray::IDLE"]
            ]
        ):
            time.sleep(0.1)
        job = replace(work(store, [CONFIG]), trial=imports_nothing)
        ray_tune.run_ray(job, packed, resources=TWO, on_event=events.append, ahead=ahead)
        assert not ray.is_initialized()
    assert endings(events) == {0: ["completed"]}
    assert store.read("trials")["error"].to_pylist() == [
        f"nothing is missing in {pid}" for pid in idle
    ]
    _, alive = psutil.wait_procs(
        set(psutil.Process().children(recursive=True)) - before, timeout=30
    )
    assert not alive


@pytest.mark.slow
def test_sigterm_stays_whose_it_was_where_ray_was_imported_before_and_one_ahead_starts_twice() -> (
    None
):
    code = (
        "import ray, signal\n"
        "def mine(*_): pass\n"
        "signal.signal(signal.SIGTERM, mine)\n"
        "from casting_tune.execution import ray_cluster\n"
        "ahead = ray_cluster.Ahead()\n"
        "for n in (1, 2):\n"
        "    with ray_cluster.running(None, n_slots=n, ahead=ahead) as up:\n"
        "        assert up.cluster_resources()['CPU'] == n\n"
        "        assert signal.getsignal(signal.SIGTERM) is mine\n"
        "    assert not up.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


class Failing:
    """A Ray whose first `n_failures` starts fail; notes what was tried."""

    def __init__(self, n_failures: int) -> None:
        self.n_failures = n_failures
        self.tried: list[str] = []

    def init(self, address: str, **_: object) -> None:
        self.tried.append(address)
        if self.tried.count("local") <= self.n_failures:
            raise Exception("The current node timed out during startup.\nMore.")

    def shutdown(self, *, wait_for_processes: bool) -> None:
        self.tried.append("gone" if wait_for_processes else "left")


def test_a_start_that_is_not_wanted_any_more_is_not_tried_again(tmp_path: Path) -> None:
    ray, over = Failing(2), threading.Event()
    over.set()
    with pytest.raises(ResourcesError):
        ray_cluster._start(ray, 2, str(tmp_path), over=over)
    assert ray.tried == ["local", "gone"]


@pytest.mark.parametrize("n_failures", [1, 2])
def test_a_ray_that_does_not_start_is_tried_twice_and_then_reported(
    n_failures: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "casting_tune")
    ray = Failing(n_failures)
    message = pytest.raises(
        ResourcesError, match=r"^Ray does not start .*: .* timed out during startup\. .*--inline\.$"
    )
    with message if n_failures == 2 else contextlib.nullcontext():
        ray_cluster._start(ray, 2, str(tmp_path), over=threading.Event())
    assert ray.tried == ["local", "gone", "local", "gone"][: n_failures + 2]
    failures = [record for record in caplog.records if record.getMessage() == "Ray did not start"]
    assert [record.levelname for record in failures] == ["WARNING"] * n_failures
    assert "timed out during startup" in caplog.text  # the traceback
    assert ("Ray is up after" in caplog.text) == (n_failures == 1)


def test_a_start_that_fails_leaves_no_process_and_no_handle_of_one(tmp_path: Path) -> None:
    code = (
        "import gc, subprocess, sys, threading, warnings\n"
        "import psutil, ray\n"
        "from ray._private.node import Node\n"
        "from casting_tune.execution import ray_cluster\n"
        "from casting_tune.errors import ResourcesError\n"
        "def fail(*_): raise Exception('no raylet')\n"
        "Node.start_raylet = fail\n"  # the process before it, of the GCS, has started by then
        "started = []\n"
        "before = subprocess.Popen.__init__\n"
        "def note(self, *a, **b): before(self, *a, **b); started.append(self.pid)\n"
        "subprocess.Popen.__init__ = note\n"
        "try: ray_cluster._start(ray, 1, sys.argv[1], over=threading.Event())\n"
        "except ResourcesError as error: print(error)\n"
        "gc.collect()\n"
        "print(len(started) >= 2, psutil.Process().children(recursive=True))"
    )
    with tempfile.TemporaryDirectory(prefix="ct-") as scratch:
        words = [sys.executable, "-W", "error", "-c", code, scratch]
        environment = os.environ | ray_cluster.ENVIRONMENT
        ran = subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=200, env=environment
        )
    error, found = ran.stdout.splitlines()
    assert error.startswith(
        "Ray does not start on this machine: no raylet. The cause is unknown. Ray's logs are in"
    )
    shutil.rmtree(error.partition("Ray's logs are in '")[2].partition("'")[0])
    assert found == "True []"
    assert "ResourceWarning" not in ran.stderr


def test_a_ray_of_the_caller_is_refused_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for name in ("init", "shutdown"):
        monkeypatch.setattr(ray, name, lambda *_, **__: pytest.fail("the caller's Ray was changed"))
    for address in (None, "auto"):
        refused = pytest.raises(
            ResourcesError, match=r"already connected to a Ray\. Call ray\.shutdown\(\) first"
        )
        with refused, ray_cluster.running(address, n_slots=1):
            pass


def never_up(ray: Any, n_slots: int, scratch: str, *, over: threading.Event) -> None:
    over.wait(60)
    raise ResourcesError("ended while it started")


def test_a_halt_while_ray_starts_does_not_wait_for_it(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_start", never_up)
    halt, started = Halt(), time.monotonic()
    threading.Timer(0.5, halt.requested.set).start()
    ray_tune.run_ray(
        work(store, [CONFIG]),
        packed,
        resources=TWO,
        on_event=lambda _: None,
        halt=halt,
    )
    assert time.monotonic() - started < 20
    assert store.read("trials").num_rows == 0


def test_the_end_waits_for_a_start_that_hangs_no_longer_than_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(ray_cluster, "END_S", 0.2)
    monkeypatch.setattr(ray_cluster, "_start", lambda *_, over: let_go.wait(60))
    with ray_cluster.Ahead() as ahead:
        ahead.start(1)
        thread = next(thread for thread in threading.enumerate() if thread.name == "ray")
        started = time.monotonic()
    assert time.monotonic() - started < 5
    let_go.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_an_address_of_nobodys_is_answered_at_once(
    packed: Pack, store: Store, address: str
) -> None:
    started = time.monotonic()
    with pytest.raises(
        ResourcesError, match=f"No Ray cluster answers at '{address}' \\(from --address\\)"
    ):
        ray_tune.run_ray(
            work(store, [CONFIG]),
            packed,
            resources=replace(TWO, address=address),
            on_event=lambda _: None,
        )
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("address", "variable", "found", "message"),
    [
        (
            "{silent}",
            None,
            None,
            "No Ray cluster answers at '{silent}' (from --address): timed out.",
        ),
        (
            "auto",
            "{silent}",
            None,
            "No Ray cluster answers at '{silent}' (from RAY_ADDRESS): timed out.",
        ),
        (
            "auto",
            None,
            "{silent}",
            "No Ray cluster answers at '{silent}' (from --address auto, the newest cluster on",
        ),
        (
            "auto",
            "127.0.0.1:1",
            None,
            "No Ray cluster answers at '127.0.0.1:1' (from RAY_ADDRESS): [Errno 111]",
        ),
        (
            "auto",
            "local",
            None,
            "No Ray cluster answers at 'local' (from RAY_ADDRESS): not host:port.",
        ),
        (
            "auto",
            "http://h:8265",
            None,
            "No Ray cluster answers at 'http://h:8265' (from RAY_ADDRESS): not host:port.",
        ),
        (
            "auto",
            "127.0.0.1:99999",
            None,
            "No Ray cluster answers at '127.0.0.1:99999' (from RAY_ADDRESS): ",
        ),
        (
            "auto",
            "ray://10.0.0.1:10001",
            None,
            "Ray Client is not supported: 'ray://10.0.0.1:10001' (from RAY_ADD",
        ),
        (
            "ray://10.0.0.1:10001",
            None,
            None,
            "Ray Client is not supported: 'ray://10.0.0.1:10001' (from --address)",
        ),
    ],
)
def test_an_address_is_checked_within_seconds_wherever_it_comes_from(
    address: str,
    variable: str | None,
    found: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_init(*_: object, **__: object) -> None:
        pytest.fail("Ray would wait for minutes")

    monkeypatch.setattr(ray_head, "ANSWER_S", 0.3)
    monkeypatch.setattr("ray.init", no_init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(
        ("127.0.0.2", 0)
    ) as server:  # accepts, and says nothing; Ray resolves 127.0.0.1
        silent = f"127.0.0.2:{server.getsockname()[1]}"
        if variable is not None:
            monkeypatch.setenv("RAY_ADDRESS", variable.format(silent=silent))
        if found is not None:
            monkeypatch.setattr(ray_private, "resolve", lambda _: silent)
        started = time.monotonic()
        with (
            pytest.raises(ResourcesError) as refused,
            ray_cluster.running(address.format(silent=silent), n_slots=1),
        ):
            pass
    assert str(refused.value).startswith(message.format(silent=silent))
    assert time.monotonic() - started < 5


def test_a_cluster_of_another_ray_or_python_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mismatch(*_: object, **__: object) -> None:
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.12.1"
        )

    monkeypatch.setattr(ray_head, "check_answers", lambda *_: None)
    monkeypatch.setattr(ray_head, "requires_token", lambda *_: True)
    monkeypatch.setattr("ray.init", mismatch)
    with pytest.raises(ResourcesError) as refused, ray_cluster.running("127.0.0.1:1", n_slots=1):
        pass
    assert str(refused.value) == (
        "Cannot join the Ray cluster at '127.0.0.1:1' (from --address): "
        "Version mismatch: The cluster was started with: Ray: 2.9.0 Python: 3.12.1"
    )


class Halted(InOrder):
    """Requests a halt two seconds after its first task was handed out."""

    def __init__(self, job: Work, halt: Halt) -> None:
        super().__init__(job.tasks)
        self.halt, self.requested_at = halt, 0.0
        self.timer = threading.Timer(2, self.request)

    def request(self) -> None:
        self.requested_at = time.monotonic()
        self.halt.requested.set()

    def next_task(self) -> int | None:
        if self.n_given == 0:
            self.timer.start()
        return super().next_task()


def test_a_halt_ends_trials_that_wait_for_a_worker_within_seconds(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    halt, job = Halt(), work(store, [CONFIG, CONFIG])
    source = Halted(job, halt)
    with ray_cluster.Ahead() as ahead:
        ahead.start(1)
        ray = ahead.ray()
        taken = ray.remote(num_cpus=1)(
            threading.Event
        ).remote()  # the only CPU, as if another driver had it
        ray.get(taken.is_set.remote())
        ray_tune.run_ray(
            replace(job, source=source), packed, resources=TWO, on_event=events.append, halt=halt,
            ahead=ahead,
        )  # fmt: skip
    took = time.monotonic() - source.requested_at
    assert events == []
    assert store.read("trials").num_rows == 0
    assert took < 25  # Ray's own end included


def test_a_halt_stops_everything_only_once_no_trial_trains_any_more(
    packed: Pack, store: Store
) -> None:
    halt, events = Halt(), []
    follower = followed(packed, store, events)
    stopper = HaltStopper(halt, follower.training)
    follower.on_trial_result(*reported(Event(task=0, kind="started")))
    assert not stopper.stop_all()
    halt.requested.set()
    assert not stopper.stop_all()  # its epoch is to end
    follower.on_trial_result(*reported(Event(task=0, kind="ended", status="error", retried=True)))
    assert stopper.stop_all()  # its next try waits for a worker
    follower.on_trial_result(*reported(Event(task=0, kind="started")))
    assert not stopper.stop_all()
    follower.on_trial_complete(0, [], Named())
    assert stopper.stop_all()


def full_disk(config: TrialConfig, packed: Pack, store: Store, **more: object) -> dict[str, object]:
    raise StoreError("No space left")


@pytest.mark.slow
def test_a_store_that_fails_under_ray_is_the_stores_error(
    packed: Pack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("No space left")

    monkeypatch.setattr(
        Store, "write", full
    )  # the driver's own writes; the workers' trial is full_disk
    broken = replace(work(store, [CONFIG]), trial=full_disk)
    with pytest.raises(StoreError, match="No space left"):
        ray_tune.run_ray(broken, packed, resources=TWO, on_event=lambda _: None)


@pytest.mark.slow
def test_ray_leaves_the_environment_as_it_was(packed: Pack, store: Store, tmp_path: Path) -> None:
    before = {name: os.environ.get(name) for name in ray_cluster.ENVIRONMENT}
    with pytest.raises(ResourcesError):
        ray_tune.run_ray(
            work(store, [CONFIG]),
            packed,
            resources=Resources(cpus=9999),
            on_event=lambda _: None,
        )
    assert {name: os.environ.get(name) for name in ray_cluster.ENVIRONMENT} == before


@pytest.mark.slow
def test_asha_stops_the_worse_trials_keeps_what_they_did_and_uses_their_worker_again(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    workers: set[int] = set()

    def follow(event: Event) -> None:
        events.append(event)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is none either
                if "ImplicitFunc" in " ".join(child.cmdline()):
                    workers.add(child.pid)

    good = replace(CONFIG, epochs=4, base_lr=1e-3)
    hopeless = replace(good, base_lr=1e-9)
    job = work(store, [good, hopeless, replace(hopeless, seed=1), replace(good, epochs=2)])
    asha = Asha(objective="validation_loss", grace_epochs=2, reduction_factor=2, max_epochs=4)
    job = replace(job, asha=asha)
    one = Resources(cpus=1, gpus=0, n_at_once=1)
    ray_tune.run_ray(job, packed, resources=one, on_event=follow)
    # the last one has two epochs, and so ends before a stop could save anything
    assert endings(events) == {0: ["completed"], 1: ["stopped"], 2: ["stopped"], 3: ["completed"]}
    trials = store.read("trials").to_pandas()
    stopped = trials[trials["status"] == "stopped"]
    assert list(stopped["attempt"]) == [1, 1]
    assert stopped["error"].isna().all()
    assert (stopped["duration_s"] > 0).all()
    epochs = store.read("epochs").to_pandas().groupby("cell_id")["epoch"].max()
    assert [epochs[cell] for cell in stopped["cell_id"]] == [2, 2]
    assert set(store.read("predictions")["cell_id"].to_pylist()).isdisjoint(stopped["cell_id"])
    assert all(artifacts.checkpoint(store, cell).is_file() for cell in stopped["cell_id"])
    assert len(workers) <= 2  # one trains; Ray may hold the next one ready


def test_a_stopped_trial_goes_on_from_its_checkpoint_when_nothing_stops_it_any_more(
    packed: Pack, store: Store
) -> None:
    long = replace(CONFIG, epochs=3)

    class _Stop(BaseException):
        pass

    def stop(event: Event) -> None:
        if event.kind == "epoch":
            raise _Stop

    with pytest.raises(_Stop):
        run_inline(work(store, [long]), packed, on_event=stop)
    row = trial.lost(
        long,
        packed,
        store,
        context=TrialContext(sweep="s", label="l"),
        ending=Ending(status="stopped"),
    )
    assert (row["status"], row["attempt"], row["resumed_from"]) == ("stopped", 1, 0)
    run_inline(work(store, [long]), packed, on_event=lambda _: None)
    assert store.read("trials").sort_by("attempt")["status"].to_pylist() == ["stopped", "completed"]
    assert store.read("trials").sort_by("attempt")["resumed_from"].to_pylist() == [0, 1]
    assert sorted(store.read("epochs")["epoch"].to_pylist()) == [1, 2, 3]


class Headed:
    """A Ray cluster just after `ray up`: the head, on which no trial runs, and nothing else."""

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"memory": 1e9}}]


def test_nodes_that_the_cluster_would_start_count_as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ResourcesError, match="requires 1 CPU; the largest node has 0"):
        nodes.check_resources(Headed(), Resources(cpus=1, address="auto"))
    kinds = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "worker": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 8},
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(
        json.dumps({"available_node_types": kinds})
    )  # JSON is YAML
    nodes.check_resources(Headed(), Resources(cpus=1, gpus=1, address="auto"))
    with pytest.raises(ResourcesError, match="requires 2 GPU; the largest node has 1"):
        nodes.check_resources(Headed(), Resources(cpus=1, gpus=2, address="auto"))
    assert sum(node["GPU"] for node in nodes.each(Headed(), wait=True)) == 8


def test_a_cluster_whose_workers_are_on_their_way_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "time.sleep", lambda _: joined.append({"Alive": True, "Resources": {"CPU": 2.0}})
    )
    joined: list[dict[str, Any]] = Headed().nodes()

    class Joining:
        def nodes(self) -> list[dict[str, Any]]:
            return joined

    assert {"CPU": 2.0} in nodes.each(Joining(), wait=True)


def hang(config: TrialConfig, packed: Pack, store: Store, **more: object) -> dict[str, object]:
    if config.seed == 1:
        time.sleep(600)
    return trial.run_trial(config, packed, store, **more)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_hanging_trial_ends_as_a_timeout_and_the_others_are_trained(
    packed: Pack, store: Store
) -> None:
    events: list[Event] = []
    job = work(store, [replace(CONFIG, seed=seed) for seed in (0, 1, 2)])
    job = replace(job, trial=hang, allowance=Allowance(max_seconds=20.0), hang_s=1.0)
    started = time.monotonic()
    ray_tune.run_ray(job, packed, resources=TWO, on_event=events.append)
    assert time.monotonic() - started < 200
    assert endings(events) == {0: ["completed"], 1: ["timeout"], 2: ["completed"]}
    (message,) = [e.error for e in events if e.status == "timeout"]
    assert message == "The trial hung: time limit 20 s, no reaction for 1 s."
    (stack,) = [e.traceback for e in events if e.status == "timeout"]
    assert stack is not None
    assert "in hang" in stack
    assert store.read("trials")["status"].to_pylist().count("timeout") == 1


@pytest.mark.slow
def test_a_halt_lets_running_epochs_end_keeps_their_checkpoints_and_the_same_run_goes_on(
    packed: Pack, store: Store
) -> None:
    halt, events = Halt(), list[Event]()

    def wish(event: Event) -> None:
        events.append(event)
        if event.kind == "epoch":
            halt.requested.set()

    long = [replace(CONFIG, seed=seed, epochs=30) for seed in range(3)]
    ray_tune.run_ray(work(store, long), packed, resources=TWO, on_event=wish, halt=halt)
    assert not [e for e in events if e.kind == "ended"]
    assert store.read("trials").num_rows == 0
    n_epochs = store.read("epochs").num_rows
    assert 1 <= n_epochs < 60
    assert not list(store.root.glob(".running-*"))
    ray_tune.run_ray(work(store, long), packed, resources=TWO, on_event=lambda _: None)
    trials = store.read("trials").to_pandas()
    assert list(trials["status"]) == ["completed"] * 3
    assert trials["resumed_from"].max() >= 1
    assert store.read("epochs").num_rows == 90
