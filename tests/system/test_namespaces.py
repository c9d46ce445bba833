"""A real cluster on this machine, and a sweep on it.

`ray up clusters/local.yaml` works over SSH into network namespaces.

A launcher, a head and two workers, each with its own process, mount, host name and network
namespace, its own home and sshd, and no route out. All of it hangs on four processes and is gone
with them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent.parent
NET = "10.77.31"
NODES = {"launcher": f"{NET}.1", "head": f"{NET}.2", "worker-a": f"{NET}.3", "worker-b": f"{NET}.4"}
NODE = """
set -e
hostname ct-{name}
ip link set lo up
mkdir -p /tmp/ray /run/sshd
for folder in /mnt /tmp/ray /dev/shm; do mount -t tmpfs tmpfs $folder; done
mkdir /mnt/root && mount --rbind /root /mnt/root && mount -t tmpfs tmpfs /root
for folder in {kept}; do mkdir -p $folder && mount --bind /mnt$folder $folder; done
mkdir /mnt/castings && mount --bind {shared} /mnt/castings
mkdir -m 700 /root/.ssh /root/.ray && cp {folder}/key /root/.ssh/id_ed25519
ln -s {venv} /root/venv
if [ {name} != launcher ]; then /usr/sbin/sshd -f {folder}/sshd_config -E {folder}/{name}.log; fi
touch {folder}/{name}.ready
sleep infinity &
wait
"""
SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
"""


def _lacking() -> str | None:
    """Say what keeps this machine from making the namespaces, or None."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    needed = ("ip", "unshare", "nsenter", "ssh", "ssh-keygen", "rsync")
    lacking = [name for name in needed if shutil.which(name) is None]
    lacking += [] if Path("/usr/sbin/sshd").exists() else ["sshd"]
    if lacking:
        return (
            f"not installed: {', '.join(lacking)} (apt-get install openssh-server rsync iproute2)"
        )
    made = subprocess.run(
        ["unshare", "-n", "-m", "-p", "-u", "--fork", "true"], capture_output=True, check=False
    )
    return f"no namespaces here: {made.stderr.decode().strip()}" if made.returncode else None


REASON = _lacking()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.namespaces,
    pytest.mark.timeout(600),
    pytest.mark.skipif(REASON is not None, reason=f"no cluster of namespaces: {REASON}"),
]


@dataclass
class Lab:
    """Four machines in namespaces, and the folder that they share."""

    pids: dict[str, int]
    shared: Path

    def inside(self, name: str, command: str) -> list[str]:
        """Return the words that run a shell command in a node."""
        pid = str(self.pids[name])
        path = f"PATH=/root/venv/bin:{os.defpath}"
        environment = [
            "env",
            "-i",
            "HOME=/root",
            "TERM=dumb",
            "RAY_AUTH_MODE=token",
            f"PYTHONPATH={REPOSITORY}",
            path,
        ]
        return [
            "nsenter",
            "-t",
            pid,
            "-m",
            "-u",
            "-n",
            "-p",
            f"--wd={REPOSITORY}",
            *environment,
            "bash",
            "-c",
            command,
        ]

    def run(self, command: str, *, name: str = "launcher", timeout: float = 240) -> str:
        """Run a shell command in a node and return all that it printed."""
        ended = subprocess.run(
            self.inside(name, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-6000:]}"
        return ended.stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    shared = folder / "shared"
    shared.mkdir()
    for key in ("key", "host_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True
        )
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    with contextlib.ExitStack() as stack:
        pids = {}
        needed = {
            sys.prefix,
            sys.base_prefix,
            str(REPOSITORY),
        }  # a node's new home hides those that lie in the old one
        kept = " ".join(place for place in sorted(needed) if Path(place).is_relative_to("/root"))
        for name in NODES:
            script = NODE.format(
                name=name, shared=shared, folder=folder, venv=sys.prefix, kept=kept
            )
            words = [
                "unshare",
                "-n",
                "-m",
                "-u",
                "-p",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "bash",
                "-c",
                script,
            ]
            log = stack.enter_context((folder / f"{name}.out").open("w"))
            node = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
            stack.callback(node.wait)
            stack.callback(node.kill)
            _until(
                lambda name=name: (folder / f"{name}.ready").exists(), 20, folder / f"{name}.out"
            )
            pids[name] = psutil.Process(node.pid).children()[0].pid
        _connect(pids)
        yield Lab(pids=pids, shared=shared)


def _connect(pids: dict[str, int]) -> None:
    """Give the launcher a switch and every node a cable to it; nothing of it is visible outside."""
    launcher = pids["launcher"]

    def ip(pid: int, words: str) -> None:
        subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *words.split()], check=True)

    ip(launcher, "link add switch type bridge")
    ip(launcher, f"addr add {NODES['launcher']}/24 dev switch")
    ip(launcher, "link set switch up")
    for number, (name, pid) in enumerate(pids.items()):
        if name == "launcher":
            continue
        ip(launcher, f"link add cable{number} type veth peer name eth0 netns {pid}")
        ip(launcher, f"link set cable{number} master switch up")
        ip(pid, f"addr add {NODES[name]}/24 dev eth0")
        ip(pid, "link set eth0 up")
        ip(
            pid, f"route add default via {NODES['launcher']}"
        )  # without one Ray takes 127.0.0.1; it leads nowhere


def _until(true: object, seconds: float, log: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, log.read_text() if log else "waited in vain"
        time.sleep(0.2)


def _filled() -> str:
    """Return clusters/local.yaml for the namespaces: filled in, and without network access."""
    text = (REPOSITORY / "clusters" / "local.yaml").read_text()
    for name, value in (
        ("FILL_IN_HEAD_IP", NODES["head"]),
        ("FILL_IN_WORKER_IPS", f"{NODES['worker-a']}, {NODES['worker-b']}"),
        ("FILL_IN_USER", "root"),
        ("FILL_IN_KEY", "~/.ssh/id_ed25519"),
    ):
        text = text.replace(name, value)
    config = yaml.safe_load(text)
    (install,) = [line for line in config["setup_commands"] if "pip install" in line]
    place = config["setup_commands"].index(install)
    # what pip would fetch is in ~/venv already, which this proves; the code is the copy that `ray
    # up` sends
    packages = install.partition(" -e ")[0].replace(
        "pip install", "pip install --no-index --dry-run"
    )
    config["setup_commands"][place] = packages
    config["setup_commands"].insert(
        place + 2, "echo 'export PYTHONPATH=$HOME/casting_tune' >> ~/.casting_tune"
    )
    config["worker_start_ray_commands"][-1] += " --num-cpus=1"
    return yaml.safe_dump(config)


def test_a_sweep_runs_on_a_cluster_that_ray_up_made_over_ssh(lab: Lab) -> None:
    file = lab.shared.parent / "local.yaml"
    file.write_text(_filled())
    timings = [time.monotonic()]
    lab.run("ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
    assert "no findings" in lab.run(f"casting-tune cluster check {file}")
    lab.run(f"ray up -y --no-config-cache {file}")
    timings.append(time.monotonic())
    quiet = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    dashboard = subprocess.Popen(lab.inside("launcher", f"exec ray dashboard {file}"), **quiet)
    port = lab.inside("launcher", "exec 3<>/dev/tcp/127.0.0.1/8265")
    sweep = (
        "python -m casting_tune.sweep backbone_grid --quick --address auto "
        "--only backbone=mobilenetv2,resnet50 "
        "--set image_px=32 --set epochs=1 --set train_images=64 --set test_images=16 --no-baselines"
    )
    try:
        _until(lambda: subprocess.run(port, capture_output=True, check=False).returncode == 0, 60)
        output = lab.run(f"ray job submit --address http://127.0.0.1:8265 -- {sweep}")
    finally:
        dashboard.kill()  # what it started inside goes with the launcher
        dashboard.wait()
    timings.append(time.monotonic())
    assert "2 cells: 0 done, 2 to do" in output
    trials = pq.read_table(lab.shared / "results" / "trials").to_pylist()
    assert [trial["status"] for trial in trials] == ["completed"] * 2
    workers = {hashlib.sha256(name).hexdigest()[:8] for name in (b"ct-worker-a", b"ct-worker-b")}
    assert {trial["host"] for trial in trials} == workers
    table = lab.run(
        f"ray exec {file} {shlex.quote('casting-tune table backbone_grid --format csv')}"
    )
    for name in ("mobilenetv2", "resnet50"):
        assert f'cell,"{name}, default' in table, table
    lab.run(f"ray down -y {file}")
    timings.append(time.monotonic())
    print(*(f"{b - a:.0f} s" for a, b in itertools.pairwise(timings)))
