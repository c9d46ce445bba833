"""What several test files share: a small set of drawn castings, its pack, a sweep file of seconds, the real images."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from casting_tune import pack as pack_room
from casting_tune import storage, sweep, synthetic
from casting_tune.pack import Pack
from casting_tune.store import Store
from casting_tune.sweep import Options

TINY = """
question = "Does it run?"
type = "grid"

[fixed]
backbone = "timm:test_resnet.r160_in1k"
weights = "none"
image_px = 32
batch_size = 16
epochs = 2

[axes]
augmentation = ["default", "only flip"]
seed = [0, 1]

[quick]
only = { augmentation = ["default"] }
set = { epochs = 1 }
"""


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 80 drawn castings of 64 px."""
    folder = tmp_path_factory.mktemp("drawn") / "castings"
    synthetic.draw(folder, n_images=80, size_px=64, seed=1)
    return folder


@pytest.fixture(scope="session")
def packed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The pack of `drawn`."""
    return pack_room.pack(drawn, tmp_path_factory.mktemp("packs"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "results")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A sweep file of four cells that train in a second each."""
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which the tiny sweep has run, with its baselines and a timing pass. Read it, never write to it."""
    folder = tmp_path_factory.mktemp("trained")
    file = folder / "tiny.toml"
    file.write_text(TINY)
    asked = Options(sweep=str(file), data=drawn, results=folder / "results", inline=True, timing=True)
    prepared = sweep.prepare(asked, say=lambda _: None)
    assert sweep.execute(prepared, on_event=lambda _: None) == 0
    return prepared.store


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of the real images, where CASTING_TUNE_DATA names one."""
    folder = os.environ.get("CASTING_TUNE_DATA")
    if not folder:
        pytest.skip("CASTING_TUNE_DATA does not name the folder of the real castings")
    return Path(folder)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto's S3 on the loopback; its endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket as AWS's users reach it, by the environment; its address. Its cache lies below tmp_path."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "fake", "AWS_SECRET_ACCESS_KEY": "fake", "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    storage.at.cache_clear()  # it knows other tests' buckets by other endpoints
    name = f"castings-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}/results"
    storage.at.cache_clear()
