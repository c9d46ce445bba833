"""Finds pretrained weights on this machine, and downloads missing ones.

Input: timm's settings of a network, or a `local-dir:PATH`. Output: files and identities, or a
WeightsError in one line. Downloaded weights are safetensors, or a tensors-only .pth whose name
contains its checksum. Knows no networks; names of backbones appear in messages only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casting_tune.errors import UsageError, WeightsError, unknown, unreadable

REACH_S = 5.0
"""Timeout of the check whether a server has the weights; the hub's own check takes up to 70 s."""

SAFE_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The location of the weights of one network.

    Attributes:
        backbone: the user's name of it, for messages.
        tag: timm's name of network and training, such as `resnet50.tv_in1k`.
        repository: on the hub; empty if timm has only an address.
        address: of a .pth file; used if there is no repository.
    """

    backbone: str
    tag: str
    repository: str
    address: str


def find_source(backbone: str, settings: Any) -> Source:
    """Return the location of weights from timm's settings (a PretrainedCfg) of the network."""
    if settings is None or not (settings.hf_hub_id or settings.url):
        raise WeightsError(
            f"No pretrained weights of '{backbone}' exist in timm. "
            f'Use weights = "none", or "local-dir:DIR" with your own weights.'
        )
    tag = f"{settings.architecture}.{settings.tag}" if settings.tag else str(settings.architecture)
    return Source(
        backbone=backbone, tag=tag, repository=settings.hf_hub_id or "", address=settings.url or ""
    )


def find_cached(source: Source) -> Path | None:
    """Return the file in the cache of the hub (or of torch, for an address), or None."""
    if source.repository:
        import huggingface_hub

        path = huggingface_hub.try_to_load_from_cache(source.repository, SAFE_FILE)
        return Path(path) if isinstance(path, str) else None
    file = _torch_file(source)
    return file if file.is_file() else None


def check_available(source: Source) -> None:
    """Raise WeightsError unless the server confirms within seconds that it has the weights."""
    _try(source, _check_hub if source.repository else _check_address)


def fetch(source: Source) -> Path:
    """Download the weights into the cache and return their file; WeightsError on failure.

    If several processes of a machine need the same weights, one downloads and the others wait.
    """
    check_available(source)
    _try(source, _fetch_locked)
    file = find_cached(source)
    if file is None:
        raise WeightsError(
            f"Weights 'imagenet' of '{source.backbone}' were downloaded but are not in the cache."
        )
    return file


def overlay(file: Path) -> dict[str, Any]:
    """Return changes of timm's settings: it then loads this file and unpickles nothing.

    timm 1.0.20 unpickles a .pth file without a filter, so its tensors are read here.
    """
    if file.suffix == ".safetensors":
        return {"file": str(file), "custom_load": False}
    import torch

    return {
        "state_dict": torch.load(file, map_location="cpu", weights_only=True),
        "custom_load": False,
    }


def find_folder(weights: str) -> Path:
    """Return the folder of `local-dir:PATH`; check that it contains timm's two files."""
    kind, _, path = weights.partition(":")
    if kind != "local-dir" or not path:
        raise UsageError(unknown("weights", weights, ("imagenet", "none", "local-dir:DIR")))
    folder = Path(path).expanduser()
    missing = []
    for file in ("config.json", SAFE_FILE):
        try:
            (folder / file).open("rb").close()  # safetensors reports an unreadable file as missing
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            missing.append(file)
        except OSError as error:
            raise WeightsError(f"'{weights}': {unreadable(folder / file, error)}") from error
    if missing:
        what = f"{' and '.join(missing)} not found in" if folder.is_dir() else "not a folder:"
        raise WeightsError(f"'{weights}': {what} {folder}. {_FORM}")
    return folder


def read_settings(weights: str) -> tuple[str, dict[str, Any]]:
    """Return architecture and pretrained settings from the config.json of a local folder."""
    file = find_folder(weights) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        architecture = config["architecture"]
        settings = dict(config.get("pretrained_cfg", config))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"'{weights}': config.json is not a file of timm ({type(error).__name__}: {error}). "
            f"{_FORM}"
        ) from error
    return str(architecture), settings


def stored_names(weights: str) -> set[str]:
    """Return the names of the tensors of a local folder; WeightsError if its file is invalid."""
    import safetensors

    file = find_folder(weights) / SAFE_FILE
    try:
        with safetensors.safe_open(file, "pt") as tensors:
            return set(tensors.keys())
    except safetensors.SafetensorError as error:
        raise WeightsError(f"'{weights}': {SAFE_FILE} cannot be read ({error}). {_FORM}") from error


def fingerprint(weights: str) -> str:
    """Return 12 hexadecimal digits over the two files of a local folder."""
    folder = find_folder(weights)
    digest = hashlib.sha256()
    for file in ("config.json", SAFE_FILE):
        with (folder / file).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]


_FORM = (
    f"timm's save_for_hf(network, DIR, safe_serialization=True) writes config.json and {SAFE_FILE}."
)


def _try(source: Source, step: Callable[[Source], None]) -> None:
    from huggingface_hub import constants

    cache = "HF_HOME" if source.repository else "TORCH_HOME"
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        step(source)
    # the hub raises errors of its HTTP library, which was requests, then httpx, then httpx2
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise WeightsError(
            f"Weights 'imagenet' of '{source.backbone}' ({source.repository or source.tag}) are "
            f"not in the cache and not available ({reason[:120]}). Connect to the network, set "
            f'{cache} to a cache that has them, or use weights = "local-dir:DIR" or "none".'
        ) from error


def _check_hub(source: Source) -> None:
    import huggingface_hub

    address = huggingface_hub.hf_hub_url(source.repository, SAFE_FILE)
    huggingface_hub.get_hf_file_metadata(address, timeout=REACH_S)


def _check_address(source: Source) -> None:
    from urllib.request import Request, urlopen

    urlopen(Request(source.address, method="HEAD"), timeout=REACH_S).close()


def _fetch_locked(source: Source) -> None:
    import filelock
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) if source.repository else _torch_file(source).parent
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / f".{source.tag}.lock"):
        if find_cached(source) is None:
            (_fetch_hub if source.repository else _fetch_address)(source)


def _fetch_hub(source: Source) -> None:
    import huggingface_hub

    huggingface_hub.hf_hub_download(source.repository, SAFE_FILE, etag_timeout=REACH_S)


def _fetch_address(source: Source) -> None:
    import torch

    file = _torch_file(source)
    checksum = torch.hub.HASH_REGEX.search(file.name)
    torch.hub.download_url_to_file(
        source.address, str(file), checksum.group(1) if checksum else None, progress=False
    )


def _torch_file(source: Source) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(source.address).name
