"""Checks a cluster file of `ray up` before it costs money: offline, in a moment.

Input: the path of a cluster file. Output: Findings, each with its line and advice. Ray's own
preparation and validation and botocore's check of every node come first; then open ports of Ray's
defaults, and common mistakes. Starts nothing, uses no network, knows no sweeps.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from casting_tune.errors import UsageError
from casting_tune.execution import cluster_file
from casting_tune.execution.cluster_file import PLACEHOLDER, START, ClusterFile

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: the `line` of the file, from 1, and what is wrong and what to do."""

    line: int
    text: str


def check(file: Path, *, gpus_per_trial: float = 0) -> list[Finding]:
    """Return all problems of a cluster file, in the order of its lines.

    Args:
        file: a cluster file of `ray up` for the provider aws or local.
        gpus_per_trial: GPUs of a trial, 0 or more; for AWS only, where the file lists the nodes.

    Raises:
        UsageError: not a readable YAML file of such a provider, or GPUs for another provider.
        ResourcesError: the extra `cluster` is not installed.
    """
    cluster = cluster_file.read(file)
    if gpus_per_trial and not cluster.is_aws:
        raise UsageError(
            f"--gpus-per-trial is checked for the provider aws only; '{file}' lists no GPUs. "
            "Omit the option."
        )
    findings = [
        Finding(line, f"'{key}' is defined twice and the last one is used: remove one.")
        for key, line in cluster.doubled
    ]
    for name, line, hint in cluster.placeholders:
        findings.append(Finding(line, f"{name} must be replaced{f' ({hint})' if hint else ''}."))
    if cluster.refusal is None:
        rules = (
            _node_configs,
            _provider,
            _doors,
            _identity,
            _version,
            _token,
            _mounts,
            _storage,
            _local,
        )
        findings += [finding for rule in rules for finding in rule(cluster)]
        findings += _gpus(cluster, gpus_per_trial)
    else:
        findings.append(Finding(1, f"Ray rejects the file: {cluster.refusal}"))
    return sorted(findings, key=lambda finding: finding.line)


def open_doors(permissions: list[dict[str, Any]]) -> list[str]:
    """Return the inbound rules that admit everybody: "tcp 22-22 from 0.0.0.0/0".

    Half of all addresses counts as everybody. `permissions` are the IpPermissions of EC2.
    """
    doors = []
    for rule in permissions:
        ranges = [r.get("CidrIp") for r in rule.get("IpRanges", [])]
        ranges += [r.get("CidrIpv6") for r in rule.get("Ipv6Ranges", [])]
        ports = (
            "all ports"
            if rule.get("FromPort") in (None, -1)
            else f"{rule['FromPort']}-{rule.get('ToPort')}"
        )
        wide = [place for place in ranges if str(place).rpartition("/")[2] in ("0", "1")]
        doors += [f"{rule.get('IpProtocol')} {ports} from {place}" for place in wide]
    return doors


def _node_configs(cluster: ClusterFile) -> Iterator[Finding]:
    """Check every node_config against botocore's shape of RunInstances, as EC2 itself will."""
    if not cluster.is_aws:
        return
    import botocore.session
    from botocore.validate import ParamValidator

    shape = (
        botocore.session.Session()
        .get_service_model("ec2")
        .operation_model("RunInstances")
        .input_shape
    )
    for name, kind in cluster.node_types.items():
        config = {
            key: value for key, value in kind["node_config"].items() if key != "SubnetIds"
        }  # Ray's own key
        faults = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **config}, shape)
        for fault in faults.generate_report().splitlines():
            line = cluster.line("available_node_types", name, "node_config")
            yield Finding(line, f"EC2 will reject the node_config of '{name}': {fault}.")


def _provider(cluster: ClusterFile) -> Iterator[Finding]:
    """Check the region, its zones, and the images."""
    if not cluster.is_aws:
        return
    provider = cluster.written["provider"]
    region, zones = provider.get("region"), str(provider.get("availability_zone") or "")
    if not region:
        yield Finding(
            cluster.line("provider"), "provider.region is missing: add one, such as eu-central-1."
        )
    elif not PLACEHOLDER.search(f"{region}{zones}"):
        strays = [
            zone.strip()
            for zone in zones.split(",")
            if zone and not zone.strip().startswith(region)
        ]
        if strays:
            line = cluster.line("provider", "availability_zone")
            yield Finding(
                line,
                f"The zones {', '.join(strays)} are not in {region}: use zones of that region.",
            )
    for name, kind in cluster.node_types.items():
        if not kind["node_config"].get("ImageId"):
            line = cluster.line("available_node_types", name, "node_config")
            yield Finding(
                line,
                f"'{name}' has no ImageId: Ray would use an Ubuntu 18.04 of 2021. Set an image.",
            )


def _doors(cluster: ClusterFile) -> Iterator[Finding]:
    """Check ports that are open to the internet: SSH by Ray's default, own rules, the dashboard."""
    if cluster.is_aws:
        for name, kind in cluster.node_types.items():
            config = kind["node_config"]
            if not config.get("SecurityGroupIds") and not config.get("NetworkInterfaces"):
                line = cluster.line("available_node_types", name, "node_config")
                yield Finding(
                    line,
                    f"'{name}' has no SecurityGroupIds: "
                    "Ray would open SSH to 0.0.0.0/0. Set a group.",
                )
        group = cluster.written["provider"].get("security_group") or {}
        for door in open_doors(group.get("IpPermissions") or []):
            line = cluster.line("provider", "security_group", "IpPermissions")
            yield Finding(
                line,
                f"The security group admits everybody ({door}): list the permitted addresses.",
            )
    for command in cluster.prepared[START["head"]]:
        host = re.search(r"--dashboard-host[= ](\S+)", command)
        if host and host[1] not in _LOOPBACK:
            line = cluster.line(START["head"])
            text = (
                f"The dashboard listens on {host[1]}; anyone who reaches it can run code: "
                "use --dashboard-host=127.0.0.1."
            )
            yield Finding(line, text)


def _identity(cluster: ClusterFile) -> Iterator[Finding]:
    """Check the rights of a node in the account, and the access to its metadata."""
    if not cluster.is_aws:
        return
    for name, kind in cluster.node_types.items():
        config, line = (
            kind["node_config"],
            cluster.line("available_node_types", name, "node_config"),
        )
        if not config.get("IamInstanceProfile"):
            is_head = name == cluster.prepared["head_node_type"]
            without = (
                "Ray would give it full access to EC2 and S3"
                if is_head
                else "it could not write results to the bucket"
            )
            yield Finding(
                line,
                f"'{name}' has no IamInstanceProfile: {without}. "
                "Set a profile limited to one bucket.",
            )
        if (config.get("MetadataOptions") or {}).get("HttpTokens") != "required":
            text = (
                f"'{name}' answers IMDSv1, which exposes its rights: "
                "MetadataOptions: {HttpTokens: required}."
            )
            yield Finding(line, text)


def _version(cluster: ClusterFile) -> Iterator[Finding]:
    """Check that the nodes install the version of Ray of this machine, which submits jobs."""
    here = version("ray")
    line = cluster.line("setup_commands")
    commands = [command for part in START for command in cluster.commands(part)]
    pins = {
        pin
        for command in commands
        for pin in re.findall(r"\bray(?:\[[\w,]*\])?==([\w.]+)", command)
    }
    if not pins:
        default = "would install a nightly Ray" if cluster.is_aws else "installs no Ray"
        yield Finding(
            line,
            f"No command pins Ray, and Ray's default {default}: "
            f'pip install "ray[default]=={here}".',
        )
    for pin in sorted(pins - {here}):
        yield Finding(
            line, f'The nodes get Ray {pin}; this machine has {here}: use "ray[default]=={here}".'
        )


def _token(cluster: ClusterFile) -> Iterator[Finding]:
    """Check that every node gets the token, and that it is private.

    Without it, anyone who reaches a Ray port can run code (CVE-2023-48022).
    """
    mounts = cluster.written.get("file_mounts") or {}
    local = [str(here) for there, here in mounts.items() if str(there).endswith(".ray/auth_token")]
    line = cluster.line("file_mounts")
    if not local:
        yield Finding(
            line,
            'The nodes get no token: file_mounts: {"~/.ray/auth_token": "~/.ray/auth_token"}.',
        )
    for name in local:
        file = Path(name).expanduser()
        if not file.is_file():
            yield Finding(
                line,
                f"The token {name} does not exist: ray get-auth-token --generate && "
                f"chmod 600 {name}.",
            )
        elif stat.S_IMODE(file.stat().st_mode) & 0o077:
            mode = stat.S_IMODE(file.stat().st_mode)
            yield Finding(
                line, f"Others can read the token {name} (mode {mode:o}): chmod 600 {name}."
            )
    for part, start in START.items():
        if not any("RAY_AUTH_MODE=token" in command for command in cluster.commands(part)):
            text = (
                f"Ray starts without a token on the {part}: "
                "set RAY_AUTH_MODE=token in its commands."
            )
            yield Finding(cluster.line(start), text)


def _mounts(cluster: ClusterFile) -> Iterator[Finding]:
    """Check that the files for the nodes exist; paths are relative to the current folder."""
    for there, here in (cluster.written.get("file_mounts") or {}).items():
        if not str(there).endswith(".ray/auth_token") and not Path(str(here)).expanduser().exists():
            text = (
                f"{here} does not exist, but is sent to the nodes: "
                "run the command in the top folder of the checkout, or remove the entry."
            )
            yield Finding(cluster.line("file_mounts", there), text)


def _storage(cluster: ClusterFile) -> Iterator[Finding]:
    """Check that all nodes share the results: an object store, or a mounted folder."""
    line = cluster.line("setup_commands")
    for part in START:
        commands = cluster.commands(part)
        named = [
            m[1]
            for command in commands
            if (m := re.search(r"CASTING_TUNE_RESULTS=['\"]?([^\s'\"]+)", command))
        ]
        if not named:
            text = (
                f"The {part} has no place for results: export CASTING_TUNE_RESULTS in its commands."
            )
            yield Finding(line, text)
            continue
        mounted = [
            m[1]
            for command in commands
            if (m := re.search(r"(?:mountpoint -q|\bmount .*) (/\S+)", command))
        ]
        place = named[-1]
        if "://" not in place and not any(Path(place).is_relative_to(folder) for folder in mounted):
            way_out = (
                "s3://..., or a shared folder that a command mounts or tests with mountpoint -q"
            )
            yield Finding(
                line, f"The {part} keeps results on its own disk, in {place}: use {way_out}."
            )


def _local(cluster: ClusterFile) -> Iterator[Finding]:
    """Check surprises of Ray's provider for the user's own machines."""
    if cluster.is_aws:
        return
    heads = [command for command in cluster.prepared[START["head"]] if "ray start" in command]
    if len(cluster.written["provider"]["worker_ips"]) > 1 and not any(
        "RAY_enable_autoscaler_v2=0" in c for c in heads
    ):
        text = (
            "Autoscaler v2 starts only one of several workers: "
            "RAY_enable_autoscaler_v2=0 ray start --head ..."
        )
        yield Finding(cluster.line(START["head"]), text)
    key = (cluster.written.get("auth") or {}).get("ssh_private_key")
    if key and not PLACEHOLDER.search(key) and not Path(key).expanduser().is_file():
        yield Finding(
            cluster.line("auth", "ssh_private_key"),
            f"The key {key} does not exist: set the SSH key.",
        )


def _gpus(cluster: ClusterFile, gpus_per_trial: float) -> Iterator[Finding]:
    """Check requested GPUs that no node has; only possible for AWS before Ray runs."""
    if not cluster.is_aws:
        return
    most = 0.0
    for name, kind in cluster.node_types.items():
        n_gpus = (kind.get("resources") or {}).get("GPU", 0)
        instance = str(kind["node_config"].get("InstanceType", ""))
        if n_gpus and not re.match(r"(g|p)\w*\d", instance):
            line = cluster.line("available_node_types", name, "resources")
            yield Finding(
                line,
                f"'{name}' has resources of {n_gpus} GPU; {instance} has none: "
                "use a g or p instance.",
            )
        elif kind.get("max_workers", 0) > 0:
            most = max(most, n_gpus)
    if gpus_per_trial > most:
        text = (
            f"A trial requires {gpus_per_trial:g} GPU; no worker has more than {most:g}: "
            "resources: {GPU: n}."
        )
        yield Finding(cluster.line("available_node_types"), text)
