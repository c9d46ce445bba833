"""The cluster files name their placeholders, filled ones pass, and every mistake is found."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from casting_tune.errors import ResourcesError, UsageError
from casting_tune.execution import cluster_check, cluster_file
from tests.cli.test_main import call

REPOSITORY = Path(__file__).parent.parent.parent
AWS, LOCAL = REPOSITORY / "cluster.yaml", REPOSITORY / "clusters" / "local.yaml"
VALUES = {
    "FILL_IN_REGION": "eu-central-1",
    "FILL_IN_ZONES": "eu-central-1a,eu-central-1b",
    "FILL_IN_SECURITY_GROUP": "sg-0123456789abcdef0",
    "FILL_IN_BUCKET": "casting-tune-123456789012-eu-central-1",
    "FILL_IN_HEAD_IP": "10.0.0.1",
    "FILL_IN_WORKER_IPS": "10.0.0.2, 10.0.0.3",
    "FILL_IN_USER": "caster",
    "FILL_IN_KEY": "~/.ssh/id_ed25519",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a private token and a key; paths are those of the checkout."""
    monkeypatch.chdir(REPOSITORY)
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        file = tmp_path / "home" / name
        file.parent.mkdir(parents=True)
        file.touch(mode=0o600)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def filled(source: Path) -> str:
    text = source.read_text()
    for name, value in VALUES.items():
        text = text.replace(name, value)
    return text


def findings(text: str, tmp_path: Path, **more: float) -> list[str]:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    return [finding.text for finding in cluster_check.check(file, **more)]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (AWS, ["FILL_IN_REGION", "FILL_IN_ZONES", "FILL_IN_SECURITY_GROUP", "FILL_IN_BUCKET"]),
        (LOCAL, ["FILL_IN_HEAD_IP", "FILL_IN_WORKER_IPS", "FILL_IN_USER", "FILL_IN_KEY"]),
    ],
)
def test_a_file_as_it_comes_lacks_exactly_its_placeholders_and_says_where(
    file: Path, expected: list[str]
) -> None:
    found = cluster_check.check(file)
    assert [finding.text.split()[0] for finding in found] == expected
    lines = file.read_text().splitlines()
    assert all(
        name in lines[finding.line - 1] for name, finding in zip(expected, found, strict=True)
    )


@pytest.mark.parametrize("file", [AWS, LOCAL])
def test_a_filled_file_has_no_findings(file: Path, tmp_path: Path) -> None:
    assert findings(filled(file), tmp_path) == []


NODE = ("available_node_types", "worker", "node_config")
HEAD = ("available_node_types", "head", "node_config")


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets one value of a file, or takes it out where the value is None."""

    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        if value is None:
            del config[path[-1]]
        else:
            config[path[-1]] = value

    return change


def swap(kind: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    """Return what replaces a text in every command of a kind."""

    def change(config: dict[str, Any]) -> None:
        assert any(old in command for command in config[kind])
        config[kind] = [command.replace(old, new) for command in config[kind]]

    return change


WORLD = [{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
WORLD6 = [{"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}]
START = "head_start_ray_commands"

AWS_MISTAKES = [
    (put("provider", "region", value=None), "provider.region is missing: add one"),
    (
        put("provider", "availability_zone", value="us-east-1a,eu-central-1b"),
        "zones us-east-1a are not in eu-central-1",
    ),
    (
        put(*NODE, "InstanceTyp", value="g6.xlarge"),
        "reject the node_config of 'worker': Unknown parameter in input",
    ),
    (
        put(*NODE, "BlockDeviceMappings", value="150"),
        "Invalid type for parameter BlockDeviceMappings",
    ),
    (
        put(*HEAD, "ImageId", value=None),
        "'head' has no ImageId: Ray would use an Ubuntu 18.04 of 2021",
    ),
    (
        put(*HEAD, "SecurityGroupIds", value=None),
        "'head' has no SecurityGroupIds: Ray would open SSH to 0.0.0.0/0",
    ),
    (put(*NODE, "SecurityGroupIds", value=None), "'worker' has no SecurityGroupIds"),
    (
        put("provider", "security_group", value={"IpPermissions": WORLD}),
        "everybody (tcp 22-22 from 0.0.0.0/0)",
    ),
    (
        put("provider", "security_group", value={"IpPermissions": WORLD6}),
        "everybody (-1 all ports from ::/0)",
    ),
    (
        swap(START, "host=127.0.0.1", "host=0.0.0.0"),
        "dashboard listens on 0.0.0.0; anyone who reaches it can run code",
    ),
    (put(START, value=None), "dashboard listens on 0.0.0.0"),  # Ray's default
    (
        put(*HEAD, "IamInstanceProfile", value=None),
        "'head' has no IamInstanceProfile: Ray would give it full access to EC2",
    ),
    (
        put(*NODE, "IamInstanceProfile", value=None),
        "'worker' has no IamInstanceProfile: it could not write results",
    ),
    (put(*NODE, "MetadataOptions", value=None), "'worker' answers IMDSv1"),
    (put(*HEAD, "MetadataOptions", value={"HttpTokens": "optional"}), "'head' answers IMDSv1"),
    (
        swap("setup_commands", "ray[default]==2.60.0", "ray[default]==2.1.0"),
        "The nodes get Ray 2.1.0; this machine has",
    ),
    (
        swap("setup_commands", "==2.60.0", ""),
        "No command pins Ray, and Ray's default would install a nightly Ray",
    ),
    (put("setup_commands", value=None), "would install a nightly Ray"),
    (put("file_mounts", "~/.ray/auth_token", value=None), "The nodes get no token"),
    (
        put("file_mounts", "~/.ray/auth_token", value="~/lost"),
        "The token ~/lost does not exist: ray get-auth-token",
    ),
    (
        put("file_mounts", "~/sweeps", value="sweps"),
        "sweps does not exist, but is sent to the nodes",
    ),
    (swap("setup_commands", "RAY_AUTH_MODE=token", ""), "Ray starts without a token on the worker"),
    (
        swap("setup_commands", "s3://casting", "/home/ubuntu/"),
        "The worker keeps results on its own disk, in /home/ubu",
    ),
    (
        swap("setup_commands", "CASTING_TUNE_RESULTS", "RESULTS"),
        "The head has no place for results",
    ),
    (
        put("available_node_types", "worker", "resources", value={"CPU": 4, "GPU": -1}),
        "Ray rejects the file: available_n",
    ),
    (
        put(*NODE, "InstanceType", value="m7i.xlarge"),
        "'worker' has resources of 1 GPU; m7i.xlarge has none",
    ),
    (put("head_node_type", value="haed"), "Ray rejects the file: `head_node_type` must be one of"),
    (
        put("max_worker", value=3),
        "Ray rejects the file: top level: Additional properties are not allowed ('max_worker'",
    ),
]

LOCAL_MISTAKES = [
    (
        swap(START, "RAY_enable_autoscaler_v2=0", ""),
        "Autoscaler v2 starts only one of several workers",
    ),
    (
        swap("setup_commands", "mountpoint -q /mnt/castings", "true"),
        "The head keeps results on its own disk, in /mnt/c",
    ),
    (swap(START, "host=127.0.0.1", "host 10.0.0.1"), "dashboard listens on 10.0.0.1"),
    (put("setup_commands", value=None), "No command pins Ray, and Ray's default installs no Ray"),
    (put("auth", "ssh_private_key", value="~/lost"), "The key ~/lost does not exist"),
    (
        put("provider", "worker_ips", value=None),
        "Ray rejects the file: Please supply a `head_ip` and list of `worker_ips`",
    ),
]


@pytest.mark.parametrize(
    ("file", "mistake", "expected"),
    [
        *((AWS, *mistake) for mistake in AWS_MISTAKES),
        *((LOCAL, *mistake) for mistake in LOCAL_MISTAKES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_found(
    file: Path, mistake: Callable[[dict[str, Any]], None], expected: str, tmp_path: Path
) -> None:
    config = yaml.safe_load(filled(file))
    mistake(config)
    found = findings(yaml.safe_dump(config), tmp_path)
    assert any(expected in text for text in found), found
    assert all("\n" not in text for text in found)


def test_a_token_that_others_may_read_is_found(home: Path, tmp_path: Path) -> None:
    (home / ".ray" / "auth_token").chmod(0o644)
    assert findings(filled(AWS), tmp_path) == [
        "Others can read the token ~/.ray/auth_token (mode 644): chmod 600 ~/.ray/auth_token."
    ]


def test_a_key_that_stands_twice_is_found(tmp_path: Path) -> None:
    (found,) = findings(filled(AWS) + "max_workers: 80\n", tmp_path)
    assert found.startswith("'max_workers' is defined twice")


def test_gpus_that_no_worker_has_are_found(tmp_path: Path) -> None:
    assert findings(filled(AWS), tmp_path, gpus_per_trial=1) == []
    (found,) = findings(filled(AWS), tmp_path, gpus_per_trial=2)
    assert "A trial requires 2 GPU; no worker has more than 1" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("provider: {type: gcp}", "provider.type must be aws or local; got 'gcp'"),
        ("- a list", "got None"),
        ("a: [", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_what_is_no_cluster_file_is_refused_in_one_line(
    text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message.replace("(", r"\(")) as refused:
        cluster_check.check(file)
    assert "\n" not in str(refused.value)


def test_without_the_extra_the_command_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ResourcesError, match=r"pip install 'casting-tune\[cluster\]'"):
        cluster_check.check(AWS)


def test_the_command_names_line_and_way_out_and_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "cluster", "check", AWS)
    assert (code, err) == (2, "")
    assert f"{AWS}:11: FILL_IN_REGION must be replaced (for example eu-central-1).\n" in out
    file = tmp_path / "mine.yaml"
    file.write_text(filled(AWS))
    assert call(capsys, "cluster", "check", file) == (0, f"{file}: no findings.\n", "")
    assert json.loads(call(capsys, "cluster", "check", file, "--json")[1]) == []
    first = json.loads(call(capsys, "cluster", "check", AWS, "--json")[1])[0]
    assert (first["line"], first["text"].split()[0]) == (11, "FILL_IN_REGION")


def cpu_s(*words: object) -> tuple[float, subprocess.CompletedProcess[bytes]]:
    """Return the CPU seconds of a command, which other work on the machine does not change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([str(word) for word in words], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ended


def test_the_check_takes_no_network_and_no_longer_than_four_imports_of_ray() -> None:
    words = (
        ["unshare", "-rn"]
        if subprocess.run(["unshare", "-rn", "true"], check=False).returncode == 0
        else []
    )
    took, ended = cpu_s(
        *words, sys.executable, "-m", "casting_tune.cli.main", "cluster", "check", AWS
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr == b""
    imports, _ = cpu_s(sys.executable, "-c", "import ray")
    assert took < 4 * imports, (took, imports)


@pytest.mark.parametrize("purpose", cluster_file.FILES)
def test_a_new_file_is_the_one_that_comes_along_and_overwrites_nothing(
    purpose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new.yaml"
    assert call(capsys, "cluster", "new", purpose, file)[0] == 0
    assert file.read_text() == cluster_file.source(purpose)
    code, _, err = call(capsys, "cluster", "new", purpose, file)
    assert code == 2
    assert "File exists" in err


def test_the_shipped_file_replaces_rays_defaults() -> None:
    config = yaml.safe_load(AWS.read_text())
    head, worker = (config["available_node_types"][name] for name in ("head", "worker"))
    assert head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config[START][-1]
    assert (worker["min_workers"], worker["max_workers"], config["max_workers"]) == (0, 8, 8)
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert config["provider"]["cache_stopped_nodes"] is False
    assert config["idle_timeout_minutes"] <= 10
    assert any("RAY_USAGE_STATS_ENABLED=0" in command for command in config["setup_commands"])
    assert any("RAY_memory_monitor_refresh_ms=0" in command for command in config["setup_commands"])


def test_the_rayjob_has_kuberays_fields_the_command_and_the_projects_ray() -> None:
    job = yaml.safe_load((REPOSITORY / "clusters" / "rayjob.yaml").read_text())
    ray = importlib.metadata.version("ray")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    known = {
        "entrypoint",
        "submissionMode",
        "backoffLimit",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "rayClusterSpec",
    }
    assert set(spec) <= known
    assert spec["entrypoint"].startswith(
        "python -m casting_tune.sweep backbone_grid --address auto"
    )
    assert spec["shutdownAfterJobFinishes"] is True
    made = spec["rayClusterSpec"]
    assert made["rayVersion"] == ray
    assert made["authOptions"] == {"mode": "token"}
    assert made["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (workers,) = made["workerGroupSpecs"]
    assert {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "rayStartParams",
        "template",
    } == set(workers)
    for group in (made["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].endswith(f":ray-{ray}")
        assert {"name": "RAY_memory_monitor_refresh_ms", "value": "0"} in container["env"]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert (
            mounts
            == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
            >= {"castings"}
        )
        assert container["resources"]["requests"] == container["resources"]["limits"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
