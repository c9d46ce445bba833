"""Where pretrained weights lie on this machine, and how to come by those that do not.

In: timm's settings of a network, or a `local-dir:PATH`. Out: files and identities, or a
WeightsError in one line. Fetched weights are safetensors, or a tensors-only .pth whose name carries
its checksum. Knows no networks and no names of backbones beyond repeating them in messages.
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
"""How long a server may take to say whether it has the weights.

The hub's own way waits up to 70 s.
"""

SAFE_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where timm keeps the weights of one network.

    Attributes:
        backbone: as the user calls it, for messages.
        tag: timm's name of network and training, such as `resnet50.tv_in1k`.
        repository: on the hub; empty if timm has only an address.
        address: of a .pth file; used where there is no repository.
    """

    backbone: str
    tag: str
    repository: str
    address: str


def find_source(backbone: str, settings: Any) -> Source:
    """Return where the weights of a network are, of timm's settings (a PretrainedCfg) of it."""
    if settings is None or not (settings.hf_hub_id or settings.url):
        raise WeightsError(
            f"No pretrained weights of '{backbone}' exist for timm: "
            f'use weights = "none", or "local-dir:DIR" with weights of your own.'
        )
    tag = f"{settings.architecture}.{settings.tag}" if settings.tag else str(settings.architecture)
    return Source(
        backbone=backbone, tag=tag, repository=settings.hf_hub_id or "", address=settings.url or ""
    )


def find_cached(source: Source) -> Path | None:
    """Return the file in the cache of the hub (or of torch, for an address), or None."""
    if source.repository:
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(source.repository, SAFE_FILE)
        return Path(found) if isinstance(found, str) else None
    file = _torch_file(source)
    return file if file.is_file() else None


def ask(source: Source) -> None:
    """Raise WeightsError unless their server says, within seconds, that it has the weights."""
    _try(source, _ask_hub if source.repository else _ask_address)


def fetch(source: Source) -> Path:
    """Download the weights into the cache and return their file; WeightsError if that fails.

    Of the processes of a machine that want the same weights one downloads, and the others wait for
    its file.
    """
    ask(source)
    _try(source, _fetch_alone)
    file = find_cached(source)
    if file is None:
        raise WeightsError(
            f"Weights 'imagenet' of '{source.backbone}' were fetched, but the cache does not hold them."
        )
    return file


def overlay(file: Path) -> dict[str, Any]:
    """Return what to lay over timm's settings so that it takes its weights from this file, and unpickles nothing.

    timm 1.0.20 would unpickle a .pth file without a filter, so the tensors of one are read here.
    """
    if file.suffix == ".safetensors":
        return {"file": str(file), "custom_load": False}
    import torch

    return {
        "state_dict": torch.load(file, map_location="cpu", weights_only=True),
        "custom_load": False,
    }


def find_folder(weights: str) -> Path:
    """Return the folder behind `local-dir:PATH`, after a look that timm's two files are in it."""
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
        what = f"has no {' and no '.join(missing)}" if folder.is_dir() else "is no folder"
        raise WeightsError(f"'{weights}': {folder} {what}. {_FORM}")
    return folder


def read_settings(weights: str) -> tuple[str, dict[str, Any]]:
    """Return the architecture and the pretrained settings that the config.json of a local folder names."""
    file = find_folder(weights) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        architecture = config["architecture"]
        settings = dict(config.get("pretrained_cfg", config))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"'{weights}': config.json is not timm's ({type(error).__name__}: {error}). {_FORM}"
        ) from error
    return str(architecture), settings


def stored_names(weights: str) -> set[str]:
    """Return the names of the tensors that a local folder holds; WeightsError if its file is none of safetensors."""
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
    except (
        Exception
    ) as error:  # the hub passes on errors of its HTTP library, which was requests, httpx, httpx2
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise WeightsError(
            f"Weights 'imagenet' of '{source.backbone}' ({source.repository or source.tag}) are not in the cache and "
            f"were not to be had ({reason[:120]}): connect once, or set {cache} to a filled cache, or use "
            f'weights = "local-dir:DIR" or "none".'
        ) from error


def _ask_hub(source: Source) -> None:
    import huggingface_hub

    address = huggingface_hub.hf_hub_url(source.repository, SAFE_FILE)
    huggingface_hub.get_hf_file_metadata(address, timeout=REACH_S)


def _ask_address(source: Source) -> None:
    from urllib.request import Request, urlopen

    urlopen(Request(source.address, method="HEAD"), timeout=REACH_S).close()


def _fetch_alone(source: Source) -> None:
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
