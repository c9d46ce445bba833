"""One trial from images to rows: the only place where a TrialConfig is taken apart.

Comes in: a configuration, a pack, a store, and where it runs. Goes out: rows of epochs, then predictions, then the one
row in trials that commits them; and each Epoch to `on_epoch`, after its row is safe. A trial that fails is a row too.
Knows no sweep files and no Ray: whoever schedules calls `run_trial` in a process of their choice.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from casting_tune import augment, backbones, baselines, checkpoint, folds, loader, metrics, train
from casting_tune.errors import Diverged, StoreError, UsageError
from casting_tune.pack import Pack
from casting_tune.store import Store
from casting_tune.trial import RECIPE, Epoch, Predictions, Status, TrialConfig, cell_id

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

EVALUATION_BATCH = 32
BASELINE = "baseline:"  # begins the backbone of a cell that trains nothing: a name of `baselines.BASELINES` follows
PROBED, PROBED_PX = "timm:resnet10t", 96  # the frozen random network behind the linear probe

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a trial runs, as its row records it.

    Attributes:
        device: "cpu" or "cuda"; the scheduler has made the right GPU the visible one.
        n_threads: CPU threads of the trial.
        n_at_once: trials that may run at the same time on this machine or cluster; 1 had it alone.
        ray: Ray's version, None in a plain loop.
        git_commit: of the casting_tune that runs, None outside a checkout.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    n_threads: int = 1
    n_at_once: int = 1
    ray: str | None = None
    git_commit: str | None = None


def run_trial(
    config: TrialConfig,
    pack: Pack,
    store: Store,
    *,
    sweep: str,
    label: str,
    place: Place,
    groups: NDArray[np.int64] | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _epoch: None,
) -> dict[str, Any]:
    """Train one cell once, write its rows, and return its row of trials.

    `groups` [n] numbers the photographs of the pack's images; a grouped split needs it.

    A loss that is not finite, memory that runs out, or any other error of the trial ends it with that status and its
    message in the row: one trial never ends a sweep. Errors of the store itself are raised.
    """
    started_at, started = datetime.now(UTC), time.perf_counter()
    cell = cell_id(config, pack.dataset_id)
    attempt = store.next_attempt(cell)
    name = f"{cell}-{attempt}"
    row = describe(config, pack, groups) | {
        "cell_id": cell, "attempt": attempt, "sweep": sweep, "label": label, "started_at": started_at,
        "device": place.device, "n_threads": place.n_threads, "n_at_once": place.n_at_once,
        "ray": place.ray, "git_commit": place.git_commit,
    }  # fmt: skip

    known = set(store.read("epochs", columns=["epoch"], cell_ids=[cell])["epoch"].to_pylist()) if attempt > 1 else set()

    def keep(epoch: Epoch) -> None:
        if epoch.epoch not in known:  # else an earlier attempt wrote it before it died
            kept = asdict(epoch) | {"cell_id": cell, "attempt": attempt, "sweep": sweep, "ended_at": datetime.now(UTC)}
            store.write("epochs", sweep, f"{name}-{epoch.epoch}", [kept])
        on_epoch(epoch)

    status: Status = "completed"
    try:
        learn = _learn_nothing if config.backbone.startswith(BASELINE) else _train
        predictions, measured = learn(
            config, pack, place, groups=groups, on_epoch=keep, resumable=store.checkpoint(cell)
        )
    except StoreError:
        raise
    except Exception as error:  # whatever a network, driver or kernel raises: the row keeps it, the sweep goes on
        status = _status(error)
        row["error"] = f"{type(error).__name__}: {error}".replace(str(Path.home()), "~")[:2000]
    else:
        row |= measured | _score(predictions)
        store.write("predictions", sweep, name, _prediction_rows(predictions, pack, cell, attempt))
    row |= {"status": status, "duration_s": time.perf_counter() - started}
    store.write("trials", sweep, name, [row])
    if status in ("completed", "diverged"):
        store.checkpoint(cell).unlink(missing_ok=True)
    return row


def lost(
    config: TrialConfig,
    pack: Pack,
    store: Store,
    *,
    sweep: str,
    label: str,
    place: Place,
    groups: NDArray[np.int64] | None,
    error: str,
) -> dict[str, Any]:
    """Write and return the row of a trial whose process ended before it could say how."""
    cell = cell_id(config, pack.dataset_id)
    attempt = store.next_attempt(cell)
    row = describe(config, pack, groups) | {
        "cell_id": cell, "attempt": attempt, "sweep": sweep, "label": label, "status": "error", "error": error[:2000],
        "started_at": datetime.now(UTC), "device": place.device, "n_threads": place.n_threads,
        "n_at_once": place.n_at_once, "ray": place.ray, "git_commit": place.git_commit,
    }  # fmt: skip
    store.write("trials", sweep, f"{cell}-{attempt}", [row])
    return row


def check(config: TrialConfig, pack: Pack, groups: NDArray[np.int64] | None = None) -> None:
    """Raise UsageError where a configuration cannot run on these images; costs no training."""
    if config.in_channels == 1 and pack.images.ndim == 4:
        raise UsageError("in_channels = 1 takes gray images, and these have colour. Set in_channels = 3.")
    _folds(config, pack, groups)


def resolve_precision(config: TrialConfig, device: Literal["cpu", "cuda"]) -> Precision:
    """Return what precision `auto` means for a backbone on a device, from what was measured; never probed.

    A GPU computes in bf16. A CPU does where it has bf16 instructions and the backbone is known to gain
    (`Backbone.cpu_bf16`), else in fp32.
    """
    if config.precision != "auto":
        return config.precision
    known = backbones.BACKBONES.get(config.backbone)
    if device == "cuda" or (known is not None and known.cpu_bf16 and _cpu_has_bf16()):
        return "bf16"
    return "fp32"


def _cpu_has_bf16() -> bool:
    """Say whether Linux lists bf16 instructions for this CPU; elsewhere no is the safe answer."""
    with contextlib.suppress(OSError):
        flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())
    return False


def describe(config: TrialConfig, pack: Pack, groups: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """Return what a row of trials says of a configuration, its images and the libraries, one column a toggle."""
    settings = asdict(config)
    toggles = settings.pop("toggles")
    parts = _folds(config, pack, groups)
    return settings | {
        "weights": config.weights.partition(":")[
            0
        ],  # the folder's path stays out of the store; weights_id identifies it
        "augmentation": augment.name(toggles),
        **{toggle: toggle in toggles for toggle in augment.TOGGLES},
        "recipe": RECIPE,
        "dataset_id": pack.dataset_id,
        "positive": pack.positive,
        "n_train": len(parts.train),
        "n_validation": len(parts.validation),
        "n_test": len(parts.test),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "timm", "kornia")},
        "casting_tune": importlib.metadata.version("casting-tune"),
    }


def _folds(config: TrialConfig, pack: Pack, groups: NDArray[np.int64] | None) -> folds.Folds:
    splits, kept_together = pack.splits, cast("NDArray[Any]", pack.sha256)
    if config.split == "grouped":
        if groups is None:
            raise UsageError('split = "grouped" needs the audit\'s groups of these images, and there are none.')
        kept_together = groups
        splits = folds.grouped(pack.labels, groups, n_folds=config.n_folds, fold=config.fold, seed=config.split_seed)
    return folds.split(
        pack.labels,
        splits,
        kept_together,
        validation_share=config.validation_share,
        seed=config.split_seed,
        train_images=config.train_images,
        test_images=config.test_images,
    )


def _train(
    config: TrialConfig,
    pack: Pack,
    place: Place,
    *,
    groups: NDArray[np.int64] | None,
    on_epoch: Callable[[Epoch], None],
    resumable: Path,
) -> tuple[Predictions, dict[str, Any]]:
    """Train on the training images, predict validation and test; return predictions and what was measured."""
    import torch

    torch.set_num_threads(place.n_threads)
    device = torch.device(place.device)
    precision = cast(Precision, config.precision)
    _reset_peak_memory(device)
    parts = _folds(config, pack, groups)
    model = backbones.build(
        config.backbone,
        weights=config.weights,
        dense=config.dense,
        dropout=config.dropout,
        in_channels=config.in_channels,
        seed=config.seed,
    ).to(device, memory_format=_layout(config))  # type: ignore[call-overload]
    n_parameters, n_statistics = backbones.n_parameters(model)
    prepare = _preparation(config, device)
    images = {name: _put(pack, rows, config, device) for name, rows in asdict(parts).items()}

    def training(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        torch.manual_seed(_stream(config.seed, f"dropout/{epoch}"))
        pixels, y_true = images["train"]
        order = torch.from_numpy(loader.shuffle(len(y_true), seed=config.seed, epoch=epoch)).to(device)
        draws = augment.draw(config.toggles, len(y_true), seed=config.seed, epoch=epoch, device=device)
        for rows in loader.batches(len(y_true), config.batch_size):
            chosen = order[rows]
            yield prepare(augment.apply(pixels[chosen], draws[rows], px=config.image_px)), y_true[chosen]

    def evaluation(part: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        pixels, y_true = images[part]
        for rows in loader.batches(len(y_true), EVALUATION_BATCH):
            yield prepare(augment.resize(pixels[rows], px=config.image_px)), y_true[rows]

    recipe = train.Recipe(
        base_lr=config.base_lr,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        warmup_share=config.warmup_share,
        lr_schedule=config.lr_schedule,
        epochs=config.epochs,
        n_steps=len(loader.batches(len(parts.train), config.batch_size)),
        precision=precision,
    )
    optimiser = train.make_optimiser(model, recipe)
    try:
        last = checkpoint.load(resumable, model, optimiser)
    except Exception:  # damaged, however torch finds out: this attempt fails and says so, the next one starts afresh
        resumable.unlink()
        raise
    if last is not None:
        on_epoch(last)  # its row may be missing, should the process have died between checkpoint and row
    n_done = 0 if last is None else last.epoch
    epochs = []
    for epoch in train.fit(
        model, optimiser, recipe, batches=training, validation=lambda: evaluation("validation"), n_done=n_done
    ):
        if epoch.epoch < recipe.epochs:
            checkpoint.save(resumable, model, optimiser, epoch)
        on_epoch(epoch)
        epochs.append(epoch)
    scores = [train.predict(model, evaluation(part), precision=precision) for part in ("validation", "test")]
    predictions = _predictions(parts, pack, scores)
    if not np.isfinite(predictions.score).all():
        raise Diverged("The network scores some images as not a number. A smaller base_lr helps.")
    batch = next(evaluation("test"))[0]
    epoch_s = statistics.median(epoch.train_s for epoch in epochs)
    return predictions, {
        "epoch_s": epoch_s,
        "step_s": epoch_s / recipe.n_steps,
        "image_s": epoch_s / len(parts.train),
        "n_steps": recipe.n_steps,
        "latency_one_s": train.latency(model, batch[:1], precision=precision),
        "latency_batch_s": train.latency(model, batch, precision=precision),
        "latency_batch_images": len(batch),
        "peak_memory_bytes": _peak_memory(device),
        "n_parameters": n_parameters,
        "n_statistics": n_statistics,
        "resumed_from": n_done,
    }


def _learn_nothing(
    config: TrialConfig,
    pack: Pack,
    place: Place,
    *,
    groups: NDArray[np.int64] | None,
    on_epoch: Callable[[Epoch], None],
    resumable: Path,
) -> tuple[Predictions, dict[str, Any]]:
    """Score the test images by a baseline, which may look at all labels of train and validation."""
    import torch

    del on_epoch, resumable
    torch.set_num_threads(place.n_threads)
    parts = _folds(config, pack, groups)
    known = np.sort(np.concatenate([parts.train, parts.validation]))
    name = config.backbone.removeprefix(BASELINE)
    if name == "linear_probe":
        features = _random_features(pack, np.concatenate([known, parts.test]))
        found = baselines.linear_probe(features[: len(known)], pack.labels[known], features[len(known) :])
    elif name == "majority":
        found = baselines.majority(pack.labels[known], len(parts.test))
    else:
        descriptor = cast(Literal["small", "polar"], name.removeprefix("nearest_"))
        found = baselines.nearest(pack.images, pack.labels, known, parts.test, descriptor=descriptor)
    return _predictions(replace(parts, train=known, validation=known[:0]), pack, [found.score[:0], found.score]), {}


def _random_features(pack: Pack, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return what a network with random weights sees in some images: [n, d], the same for the same images."""
    import torch

    channels: Literal[1, 3] = 1 if pack.images.ndim == 3 else 3
    config = TrialConfig(backbone=PROBED, image_px=PROBED_PX, in_channels=channels)
    device = torch.device("cpu")
    model = backbones.build(PROBED, weights="none", dense=0, dropout=0, in_channels=channels, seed=0).eval()
    prepare = _preparation(config, device)
    pixels = loader.put(pack.images, rows, px=PROBED_PX, device=device)
    with torch.inference_mode():
        seen = [
            cast("torch.nn.Module", model.backbone)(prepare(augment.resize(pixels[part], px=PROBED_PX)))
            for part in loader.batches(len(rows), EVALUATION_BATCH)
        ]
    return torch.cat(seen).numpy()


def _preparation(config: TrialConfig, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what turns augmented images [b, c, px, px] in 0..1 into inputs [b, in_channels, px, px]."""
    import torch

    mean, std = (
        torch.tensor(values, device=device).reshape(1, 3, 1, 1)
        for values in backbones.normalisation(config.backbone, config.weights)
    )
    if config.in_channels == 1:
        mean, std = mean.mean(1, keepdim=True), std.mean(1, keepdim=True)
    scale, offset = 1 / std, -mean / std

    def prepare(images: torch.Tensor) -> torch.Tensor:
        # a gray image broadcasts against three means: this is the expansion to three channels
        return torch.addcmul(offset, images, scale).contiguous(memory_format=_layout(config))

    return prepare


def _put(
    pack: Pack, rows: NDArray[np.int64], config: TrialConfig, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    labels = torch.from_numpy(pack.labels[rows].astype(np.float32)).to(device)
    return loader.put(pack.images, rows, px=config.image_px, device=device), labels


def _layout(config: TrialConfig) -> torch.memory_format:
    import torch

    return torch.channels_last if config.layout == "channels_last" else torch.contiguous_format


def _stream(seed: int, purpose: str) -> int:
    """Return a seed of its own for one use of randomness in a trial."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{seed}".encode()).digest()[:8], "big") >> 1


def _predictions(parts: folds.Folds, pack: Pack, scores: list[NDArray[np.float32]]) -> Predictions:
    rows = np.concatenate([parts.validation, parts.test])
    split = np.repeat(["validation", "test"], [len(parts.validation), len(parts.test)])
    learned = pack.sha256[np.concatenate([parts.train, parts.validation])]
    return Predictions(
        image=rows,
        split=split,
        y_true=pack.labels[rows],
        score=np.concatenate(scores),
        leaked=(split == "test") & np.isin(pack.sha256[rows], learned),
    )


def _prediction_rows(predictions: Predictions, pack: Pack, cell: str, attempt: int) -> list[dict[str, Any]]:
    return [
        {
            "cell_id": cell,
            "attempt": attempt,
            "split": str(split),
            "image": int(image),
            "path": str(pack.paths[image]),
            "sha256": str(pack.sha256[image]),
            "leaked": bool(leaked),
            "y_true": int(y_true),
            "score": float(score),
        }
        for image, split, leaked, y_true, score in zip(
            predictions.image, predictions.split, predictions.leaked, predictions.y_true, predictions.score, strict=True
        )
    ]


def _score(predictions: Predictions) -> dict[str, float | int | None]:
    """Return the metric columns of a row of trials: both splits at threshold 0.5, and the study's view of the test."""
    columns: dict[str, float | int | None] = {}
    for split in ("validation", "test"):
        chosen = predictions.split == split
        y_true, score = predictions.y_true[chosen], predictions.score[chosen]
        if not len(score):
            continue  # a baseline has no validation
        columns |= {f"{split}_{name}": value for name, value in metrics.measure(y_true, score).items()}
        columns |= _counts(split, y_true, score)
    leaked = predictions.leaked[chosen]
    columns |= _counts("test_leaked", y_true[leaked], score[leaked])
    view = metrics.measure(y_true, score, positive="ok")
    return columns | {f"test_{name}_ok": view[name] for name in ("recall", "precision", "f1")}


def _counts(prefix: str, y_true: NDArray[np.uint8], score: NDArray[np.float32]) -> dict[str, int]:
    return {f"{prefix}_{name}": n for name, n in asdict(metrics.counts(y_true, score)).items()}


def _status(error: Exception) -> Status:
    import torch

    if isinstance(error, Diverged):
        return "diverged"
    return "oom" if isinstance(error, torch.OutOfMemoryError | MemoryError) else "error"


def _reset_peak_memory(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # Linux alone: "5" resets this process's own peak (proc(5), clear_refs)
            Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> int | None:
    """Return the most bytes held since the reset: of the GPU, or of this process's resident memory (None: unknown)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
