"""What several test files share: drawn castings, their pack, a short sweep, the real images."""

from __future__ import annotations

import io
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from casting_tune.data import pack, synthetic
from casting_tune.data.audit import Audit, audit
from casting_tune.data.pack import Pack
from casting_tune.execution import runner
from casting_tune.planning.options import Options
from casting_tune.store import storage
from casting_tune.store.store import Store

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # `pytest -n 2`: two tests share the cores
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
    return pack.pack(drawn, tmp_path_factory.mktemp("packs"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "results")


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes the system refuse to open a file, as for another account: tests may run as root."""
    real = io.open

    def refuse(refused: Path) -> None:
        def opened(file: object, *words: object, **more: object) -> object:
            if isinstance(file, (str, os.PathLike)) and Path(file) == refused:
                raise PermissionError(13, "Permission denied", str(file))
            return real(file, *words, **more)  # type: ignore[call-overload]

        monkeypatch.setattr("io.open", opened)
        monkeypatch.setattr("builtins.open", opened)

    return refuse


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A sweep file of four cells that train in a second each."""
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which the tiny sweep has run, with its baselines and a timing pass.

    Read it, never write to it.
    """
    folder = tmp_path_factory.mktemp("trained")
    file = folder / "tiny.toml"
    file.write_text(TINY)
    options = Options(
        sweep=str(file), data=drawn, results=folder / "results", inline=True, timing=True
    )
    prepared = runner.prepare(options, say=lambda _: None)
    assert runner.execute(prepared, on_event=lambda _: None) == 0
    return prepared.store


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of the real images, where CASTING_TUNE_DATA names one."""
    folder = os.environ.get("CASTING_TUNE_DATA")
    if not folder:
        pytest.skip("CASTING_TUNE_DATA does not name the folder of the real castings")
    return Path(folder)


@pytest.fixture(scope="session")
def real_packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pack of the real images."""
    return tmp_path_factory.mktemp("packs")


@pytest.fixture(scope="session")
def real(real_images: Path, real_packs: Path) -> Pack:
    """The pack of the real images."""
    return pack.pack(real_images, real_packs)


@pytest.fixture(scope="session")
def real_audit(real: Pack) -> Audit:
    """What the audit says of the real images, after a minute."""
    return audit(real)


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
    """An empty bucket as AWS's users reach it, by the environment; its address.

    Its cache lies below tmp_path.
    """
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "fake", "AWS_SECRET_ACCESS_KEY": "fake",
        "AWS_EC2_METADATA_DISABLED": "true", "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    storage.at.cache_clear()  # it knows other tests' buckets by other endpoints
    name = f"castings-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}/results"
    storage.at.cache_clear()


HOSTILE = (
    '"><img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script><b>%{x}$\\frac'
)
"""A name that tries to be markup: in HTML, in an attribute, in a script, in plotly's text."""


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose texts are HOSTILE.

    It has a sweep "s" of three rows of three seeds, a failure and an audit.
    """
    store = Store(tmp_path_factory.mktemp("hostile"))
    noon, rng, cells = datetime(2026, 1, 1, 12, tzinfo=UTC), np.random.default_rng(0), []
    for k, position in product(range(3), range(4)):
        cell = f"{k}{position}".rjust(16, "a")
        row = f"{k} {HOSTILE}"
        settings = {
            "backbone": f"timm:{HOSTILE}{k}", "augmentation": HOSTILE, "batch_size": 4 * 2**k,
            "image_px": 32, "weights": "none", "seed": position, "fold": 0, "dataset_id": "d",
        }  # fmt: skip
        cells.append(
            {"run_id": HOSTILE, "sweep": "s", "asked_at": noon, "position": len(cells),
             "cell_id": cell, "row": row, "label": row, "quick": True, "command": HOSTILE,
             "kind": "cell", **settings}
        )  # fmt: skip
        trial = {
            "cell_id": cell,
            "attempt": 1,
            "sweep": "s",
            "label": row,
            "started_at": noon,
            **settings,
        }
        if position == 3:
            store.write("trials", "s", f"{cell}-1", [trial | {"status": "error", "error": HOSTILE}])
            continue
        y = np.arange(200) % 2
        score = np.clip(y * 0.5 + 0.25 + rng.normal(0, 0.15 + 0.1 * k, 200), 0, 1).astype(
            np.float32
        )
        images = [
            {"cell_id": cell, "attempt": 1, "split": split, "image": i, "path": f"{i}{HOSTILE}",
             "sha256": str(i), "leaked": False, "y_true": int(y[i]), "score": float(score[i])}
            for i in range(200) for split in ("validation" if i < 100 else "test",)
        ]  # fmt: skip
        wrong = (score[100:] >= 0.5) != (y[100:] == 1)
        trial |= {
            "status": "completed", "n_test": 100, "epochs": 3, "precision": "fp32", "device": "cpu",
            "n_threads": 1, "n_at_once": 2, "n_train": 400, "latency_one_s": 0.002 * (k + 1),
            "torch": HOSTILE, "epoch_s": 1.0,
            "validation_accuracy": 0.95 - 0.05 * k + 0.01 * position,
            "test_accuracy": float(1 - wrong.mean()), "test_escape_rate": float(wrong[1::2].mean()),
            "test_overkill_rate": float(wrong[::2].mean()), "test_fn": int(wrong[1::2].sum()),
            "test_tp": int((~wrong[1::2]).sum()), "test_fp": int(wrong[::2].sum()),
            "test_tn": int((~wrong[::2]).sum()), "split": "official",
        }  # fmt: skip
        epochs = [
            {"cell_id": cell, "attempt": 1, "sweep": "s", "epoch": e, "train_loss": 1 / e,
             "validation_loss": 1.2 / e, "validation_accuracy": 1 - 0.3 / e, "train_s": 1.0}
            for e in (1, 2, 3)
        ]  # fmt: skip
        store.write("epochs", "s", f"{cell}-1-1", epochs)
        store.write("predictions", "s", f"{cell}-1", images)
        store.write("trials", "s", f"{cell}-1", [trial])
    audited = [
        {"dataset_id": "d", "image": i, "path": f"{i}{HOSTILE}", "sha256": str(i), "y_true": i % 2,
         "group_id": i // 2, "split": "test" if 100 <= i < 200 else "train",
         "copy_in_train": False, "twin_in_train": 100 <= i < 130, "conflict": False,
         "constant": False, "outlier": False, "finding": HOSTILE if i == 0 else None}
        for i in range(200)
    ]  # fmt: skip
    store.write("images", "d", "audit-1", audited)
    store.write("cells", "s", "run", cells)
    return store
