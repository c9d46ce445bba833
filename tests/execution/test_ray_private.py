"""One test for each private name of Ray that we use.

Where one fails with a new Ray, its text says what would break.
"""

from __future__ import annotations

import inspect
import os
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from packaging.requirements import Requirement
from packaging.version import Version
from ray import cloudpickle
from ray.exceptions import ActorDiedError, ActorUnavailableError

from casting_tune.errors import ResourcesError
from casting_tune.execution import ray_cluster, ray_private

PYPROJECT = Path(__file__).parent.parent.parent / "pyproject.toml"
RAY = Path(ray.__file__).parent


def test_an_untested_version_of_ray_is_refused_in_one_line_that_names_the_tested_one() -> None:
    ray_private.check_version()
    ray_private.check_version("2.60.9")
    for other in ("2.50.0", "2.61.0", "3.0.0"):
        with pytest.raises(
            ResourcesError, match=rf"^Ray {other} is not supported; tested with Ray 2\.60\. Install"
        ) as e:
            ray_private.check_version(other)
        assert "pip install 'ray[tune]>=2.60,<2.61'" in str(e.value)


def test_the_dependencies_allow_only_the_tested_version_of_ray() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    requested = project["dependencies"] + project["optional-dependencies"]["cluster"]
    bounds = [Requirement(text).specifier for text in requested if Requirement(text).name == "ray"]
    assert len(bounds) == 2
    for bound in bounds:
        assert [v for v in ("2.59.9", "2.60.0", "2.60.1", "2.61.0") if v in bound] == [
            "2.60.0",
            "2.60.1",
        ]
    assert Version(ray.__version__) in bounds[0]


def test_a_ray_that_is_not_supported_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_private, "TESTED", "2.1")
    with (
        ray_cluster.Ahead() as ahead,
        pytest.raises(ResourcesError, match=r"not supported; tested with Ray 2\.1\."),
    ):
        ahead.start(1)
    with (
        pytest.raises(ResourcesError, match="is not supported"),
        ray_cluster.running("127.0.0.1:1", n_slots=1),
    ):
        pass


def test_node_starts_processes_by_these_methods_or_each_start_takes_seconds_longer() -> None:
    from ray._private.node import Node

    started = inspect.getsource(Node.start_head_processes) + inspect.getsource(
        Node.start_ray_processes
    )
    for name in ray_private.NODE_PROCESSES:
        assert f"self.{name}(" in started


def test_node_lists_its_processes_and_ends_them_or_a_failed_start_leaves_them_running() -> None:
    from ray._private.node import Node

    assert "self.all_processes: dict = {}" in inspect.getsource(Node.__init__)
    assert {"check_alive", "wait"} <= set(inspect.signature(Node.kill_all_processes).parameters)
    assert "wait_for_processes" in inspect.signature(ray.shutdown).parameters


def test_node_is_as_before_once_ray_has_started() -> None:
    from ray._private.node import Node

    names = ("__init__", *ray_private.NODE_PROCESSES)
    before = [getattr(Node, name) for name in names]
    with ray_private.lean_start():
        assert not any(getattr(Node, name) is was for name, was in zip(names, before, strict=True))
    assert [getattr(Node, name) for name in names] == before


def test_init_takes_the_address_and_the_folder_or_ray_listens_to_the_network_and_leaves_files() -> (
    None
):
    source = inspect.getsource(ray.init)
    for name in ("_node_ip_address", "_temp_dir"):
        assert f'kwargs.pop("{name}"' in source


def test_tune_gives_actors_variables_under_these_names_or_each_trial_starts_a_process() -> None:
    from ray.tune.execution import class_cache

    before = {name: getattr(class_cache, name) for name in ray_private.ACTOR_VARIABLES}
    assert all(before.values())
    with ray_private.plain_actors():
        assert not any(getattr(class_cache, name) for name in ray_private.ACTOR_VARIABLES)
    assert {name: getattr(class_cache, name) for name in ray_private.ACTOR_VARIABLES} == before


def test_ray_resolves_addresses_by_this_function_or_a_dead_one_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private import services

    assert "services.canonicalize_bootstrap_address(address, _temp_dir)" in inspect.getsource(
        ray.init
    )
    assert "resolve_ip_for_localhost" in inspect.getsource(services.canonicalize_bootstrap_address)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:6379")
    assert ray_private.resolve("auto") == "192.0.2.9:6379"
    assert ray_private.resolve("192.0.2.7:1") == "192.0.2.7:1"
    with pytest.raises(ValueError, match="nonsense"):
        ray_private.resolve("nonsense")


def test_a_trials_last_failure_lies_where_tune_writes_it_or_lost_trials_have_no_cause(
    tmp_path: Path,
) -> None:
    from ray.tune.experiment import Trial

    assert isinstance(inspect.getattr_static(Trial, "pickled_error_file"), property)
    assert "pickled_error_filename" in inspect.getsource(Trial)
    (tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(ValueError("lost")))
    metadata = SimpleNamespace(pickled_error_filename="error.pkl")
    trial = SimpleNamespace(run_metadata=metadata, pickled_error_file=str(tmp_path / "error.pkl"))
    assert repr(ray_private.last_failure(trial)) == "ValueError('lost')"
    metadata.pickled_error_filename = None
    assert ray_private.last_failure(trial) is None


def test_tune_reads_max_failures_at_each_failure_or_a_cell_that_always_dies_never_ends() -> None:
    from ray.tune.experiment import Trial

    assert "self.max_failures" in inspect.getsource(Trial.should_recover)


def test_a_process_that_its_node_outlives_is_distinguished_from_one_that_died_with_it() -> None:
    # the words of ray 2.60, as printed when a node was removed and when a worker was killed
    gone = ActorUnavailableError(
        "The actor is temporarily unavailable: RpcError: Socket closed rpc_code: 14", None
    )
    assert ray_private.died_with_node(gone)
    died = ActorDiedError()
    died.error_msg = (
        "The actor died unexpectedly.\nThe actor died because its node has died. Node Id: 70"
    )
    assert ray_private.died_with_node(died)
    died.error_msg = (
        "The actor died unexpectedly.\nThe actor is dead because its worker process has died."
    )
    assert not ray_private.died_with_node(died)
    assert not ray_private.died_with_node(RuntimeError("node has died"))
    assert not ray_private.died_with_node(None)


def test_ray_up_prepares_and_validates_by_these_functions_or_cluster_check_finds_nothing() -> None:
    pytest.importorskip("jsonschema")
    from ray.autoscaler._private import commands

    source = inspect.getsource(commands)
    assert "prepare_config(" in source
    assert "validate_config(" in source


@pytest.mark.parametrize(
    "name", sorted(ray_cluster.JOINING.keys() - {"GLIBC_TUNABLES", *ray_cluster.SPARING})
)
def test_ray_reads_each_variable_that_it_is_given_or_it_does_what_startup_says_it_must_not(
    name: str,
) -> None:
    name = (
        name.removeprefix("RAY_") if name[4:5].islower() else name
    )  # a setting of the C++ core: RAY_ and its name
    files = (
        RAY / "_raylet.so",
        *(RAY / "_private").rglob("*.py"),
        *(RAY / "tune").rglob("*.py"),
        *more_files(),
    )
    assert any(name.encode() in file.read_bytes() for file in files)


def more_files() -> list[Path]:
    return [
        *(RAY / "_common").rglob("*.py"),
        *(RAY / "air").rglob("*.py"),
        *(RAY / "train").rglob("*.py"),
    ]


def test_tune_reads_how_many_trials_may_wait_or_a_cluster_starts_one_worker_at_a_time() -> None:
    assert os.fsencode(ray_cluster.WAITING) in b"".join(
        file.read_bytes() for file in (RAY / "tune").rglob("*.py")
    )
