"""cluster.yaml on AWS without AWS: moto answers, and what Ray asked it for is read back.

The account comes from clusters/account.yaml, by moto's CloudFormation; bootstrap, creation and
termination are Ray's.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler import tags
from ray.autoscaler._private import updater
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import utils as aws_utils
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND

from casting_tune.execution import cluster_check

REPOSITORY = Path(__file__).parent.parent.parent
REGION = "eu-central-1"
HOME_ADDRESS = "203.0.113.7/32"


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An account in which the stack was made; its outputs."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch(mode=0o600)
    caches = (aws_utils.resource_cache, aws_utils.client_cache, aws_config._get_subnets_or_die)
    with mock_aws():
        for cache in caches:
            cache.cache_clear()
        stacks = boto3.client("cloudformation", REGION)
        stacks.create_stack(
            StackName="casting-tune",
            TemplateBody=(REPOSITORY / "clusters" / "account.yaml").read_text(),
            Parameters=[{"ParameterKey": "SshFrom", "ParameterValue": HOME_ADDRESS}],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        (stack,) = stacks.describe_stacks(StackName="casting-tune")["Stacks"]
        yield {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    for cache in caches:
        cache.cache_clear()


def filled(account: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """Return cluster.yaml with the stack's outputs in it, passed by the check."""
    text = (REPOSITORY / "cluster.yaml").read_text()
    values = {
        "FILL_IN_REGION": REGION,
        "FILL_IN_ZONES": f"{REGION}a,{REGION}b",
        "FILL_IN_SECURITY_GROUP": account["SecurityGroup"],
        "FILL_IN_BUCKET": account["Bucket"],
    }
    for name, value in values.items():
        text = text.replace(name, value)
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    assert cluster_check.check(file, gpus_per_trial=1) == []
    return dict(yaml.safe_load(text))


def bootstrap(config: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(config)
    validate_config(prepared)
    return dict(AWSNodeProvider.bootstrap_config(prepared))


def start(
    provider: AWSNodeProvider, config: dict[str, Any], kind: str, count: int
) -> list[dict[str, Any]]:
    """Start nodes of a kind as `ray up` and the autoscaler do; return what EC2 knows of them."""
    part = "head" if kind == config["head_node_type"] else "worker"
    node = config["available_node_types"][kind]["node_config"]
    for _ in range(count):  # one by one: asked for several, moto makes the fewest that would do
        provider.create_node(node, {TAG_RAY_NODE_KIND: part}, 1)
    ids = provider.non_terminated_nodes({TAG_RAY_NODE_KIND: part})
    answer = boto3.client("ec2", REGION).describe_instances(InstanceIds=ids)
    return [
        instance for reservation in answer["Reservations"] for instance in reservation["Instances"]
    ]


def doors(instance: dict[str, Any]) -> list[str]:
    groups = [group["GroupId"] for group in instance["SecurityGroups"]]
    answer = boto3.client("ec2", REGION).describe_security_groups(GroupIds=groups)
    return [
        door
        for group in answer["SecurityGroups"]
        for door in cluster_check.open_doors(group["IpPermissions"])
    ]


def test_head_and_spot_workers_are_requested_as_in_the_file_and_terminated(
    account: dict[str, str], tmp_path: Path
) -> None:
    config = bootstrap(filled(account, tmp_path))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    (head,) = start(provider, config, "head", 1)
    workers = start(provider, config, "worker", 2)
    assert len(workers) == 2
    assert (head["InstanceType"], {worker["InstanceType"] for worker in workers}) == (
        "m7i.xlarge",
        {"g6.xlarge"},
    )
    assert [node.get("InstanceLifecycle") for node in (head, *workers)] == [None, "spot", "spot"]
    for node in (head, *workers):
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert [group["GroupId"] for group in node["SecurityGroups"]] == [account["SecurityGroup"]]
        assert node["Placement"]["AvailabilityZone"] in {f"{REGION}a", f"{REGION}b"}
        assert node["ImageId"].startswith(
            "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver"
        )
        assert doors(node) == []
    assert head["IamInstanceProfile"]["Arn"].endswith("/casting-tune-head")
    assert all(
        worker["IamInstanceProfile"]["Arn"].endswith("/casting-tune-worker") for worker in workers
    )
    assert [
        profile["InstanceProfileName"]
        for profile in boto3.client("iam").list_instance_profiles()["InstanceProfiles"]
    ] == ["casting-tune-worker", "casting-tune-head"]
    (key,) = (tmp_path / ".ssh").glob("*.pem")
    assert key.stat().st_mode & 0o077 == 0

    provider.terminate_nodes(provider.non_terminated_nodes({}))
    answer = boto3.client("ec2", REGION).describe_instances()
    states = [
        i["State"]["Name"]
        for reservation in answer["Reservations"]
        for i in reservation["Instances"]
    ]
    assert states == ["terminated"] * 3  # stopped ones would go on costing their disks


def test_workers_come_from_another_zone_where_the_first_has_none_left(
    account: dict[str, str], tmp_path: Path
) -> None:
    config = bootstrap(filled(account, tmp_path))
    subnets = config["available_node_types"]["worker"]["node_config"]["SubnetIds"]
    answer = boto3.client("ec2", REGION).describe_subnets(SubnetIds=subnets)
    assert {subnet["AvailabilityZone"] for subnet in answer["Subnets"]} == {
        f"{REGION}a",
        f"{REGION}b",
    }


def test_ssh_is_open_to_one_address_and_the_nodes_to_each_other(account: dict[str, str]) -> None:
    answer = boto3.client("ec2", REGION).describe_security_groups(
        GroupIds=[account["SecurityGroup"]]
    )
    rules = answer["SecurityGroups"][0]["IpPermissions"]
    (ssh,) = [rule for rule in rules if rule["IpRanges"]]
    assert (ssh["FromPort"], ssh["ToPort"], ssh["IpRanges"][0]["CidrIp"]) == (22, 22, HOME_ADDRESS)
    (among,) = [rule for rule in rules if rule is not ssh]
    assert [pair["GroupId"] for pair in among["UserIdGroupPairs"]] == [account["SecurityGroup"]]


@pytest.mark.parametrize("door", ["ray's default", "a rule by hand"])
def test_an_open_door_is_seen_on_the_nodes_that_ray_made(
    door: str, account: dict[str, str], tmp_path: Path
) -> None:
    config = filled(account, tmp_path)
    if door == "ray's default":
        for kind in config["available_node_types"].values():
            kind["node_config"] = {
                k: v for k, v in kind["node_config"].items() if k != "SecurityGroupIds"
            }
    else:
        boto3.client("ec2", REGION).authorize_security_group_ingress(
            GroupId=account["SecurityGroup"],
            IpProtocol="tcp",
            FromPort=6379,
            ToPort=6379,
            CidrIp="0.0.0.0/0",
        )
    config = bootstrap(config)
    (head,) = start(AWSNodeProvider(config["provider"], config["cluster_name"]), config, "head", 1)
    port = 22 if door == "ray's default" else 6379
    assert doors(head) == [f"tcp {port}-{port} from 0.0.0.0/0"]


def test_a_node_may_use_one_bucket_and_only_the_head_may_start_nodes(
    account: dict[str, str],
) -> None:
    iam = boto3.client("iam")

    def rights(role: str) -> list[dict[str, Any]]:
        documents = [
            iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
            for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
        ]
        assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
        parsed = [
            json.loads(document) if isinstance(document, str) else document
            for document in documents
        ]
        return [statement for document in parsed for statement in document["Statement"]]

    bucket = f"arn:aws:s3:::{account['Bucket']}"
    storage = rights("casting-tune-worker")
    assert {statement["Resource"] for statement in storage} == {bucket, f"{bucket}/*"}
    assert all(action.startswith("s3:") for statement in storage for action in statement["Action"])
    more = [statement for statement in rights("casting-tune-head") if statement not in storage]
    actions = {action for statement in more for action in statement["Action"]}
    assert actions == {
        "ec2:RunInstances", "ec2:CreateTags", "ec2:Describe*", "ec2:TerminateInstances",
        "ssm:GetParameters", "iam:PassRole",
    }  # fmt: skip
    (passed,) = [statement for statement in more if statement["Action"] == ["iam:PassRole"]]
    assert passed["Resource"].endswith("role/casting-tune-worker")


def test_the_head_tags_what_it_starts_and_never_makes_another_instance_its_own(
    account: dict[str, str],
) -> None:
    """Terminating requires the tag of the cluster: whoever sets tags could end any instance."""
    del account
    policy = boto3.client("iam").get_role_policy(
        RoleName="casting-tune-head", PolicyName="casting-tune-workers"
    )
    statements = cast("Any", policy["PolicyDocument"])["Statement"]
    conditions = {
        action: [s.get("Condition") for s in statements if action in s["Action"]]
        for action in MAY_HARM
    }
    of_the_cluster = {"ec2:ResourceTag/ray-cluster-name": "casting-tune"}
    noted = ["ray-node-status", "ray-runtime-config", "ray-file-mounts-contents"]
    assert conditions == {
        "ec2:TerminateInstances": [{"StringEquals": of_the_cluster}],
        "ec2:CreateTags": [
            {"StringEquals": {"ec2:CreateAction": "RunInstances"}},
            {"StringEquals": of_the_cluster, "ForAllValues:StringEquals": {"aws:TagKeys": noted}},
        ],
    }
    assert not any("ec2:*" in s["Action"] or "*" in s["Action"] for s in statements)
    # what Ray sets on instances that run already, by its own source
    set_by_ray = set(re.findall(r"(TAG_RAY_\w+)(?:: |\] = )", inspect.getsource(updater)))
    assert {getattr(tags, name) for name in set_by_ray} == set(noted)


MAY_HARM = ("ec2:TerminateInstances", "ec2:CreateTags")


def test_cloudformation_reads_the_template_which_it_does_not_where_yaml_has_aliases() -> None:
    text = (REPOSITORY / "clusters" / "account.yaml").read_text()
    assert not [event for event in yaml.parse(text) if isinstance(event, yaml.AliasEvent)]
    pattern = re.compile(yaml.safe_load(text)["Parameters"]["SshFrom"]["AllowedPattern"])
    assert pattern.fullmatch(HOME_ADDRESS)
    assert not pattern.fullmatch("0.0.0.0/0")
