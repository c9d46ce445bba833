"""Check and read the files of an export. Imports no torch, timm, kornia, ray or pandas."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from casting_tune.data import pixel_rules
from casting_tune.data.pixel_rules import PixelRules
from casting_tune.errors import StoreError, UsageError, unreadable

VERSION = 2
"""Format version of an export folder; raise it when an older predict cannot run the export.

1: images become pixels by the default rules. 2: by the rules in `pixels` of decision.json.
"""

_REQUIRED = {"network.onnx", "decision.json", "model.safetensors", "head.safetensors"}


def check_sums(folder: Path) -> None:
    """Compare every file of an export with SHA256SUMS.

    Raises:
        UsageError: the folder is not an export.
        StoreError: a file is missing, changed or unreadable.
    """
    try:
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"'{folder}' is not an export: SHA256SUMS not found. "
            "Create an export with casting-tune export."
        ) from error
    except OSError as error:
        raise StoreError(unreadable(folder / "SHA256SUMS", error)) from error
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}
    if missing := _REQUIRED - set(sums):
        raise StoreError(
            f"SHA256SUMS in '{folder}' does not list {', '.join(sorted(missing))}. "
            "Export the cell again."
        )
    for name, expected in sums.items():
        _check_sum(folder, name, expected)


def _check_sum(folder: Path, name: str, expected: str) -> None:
    try:
        with (folder / Path(name).name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise StoreError(
            f"{name} not found in '{folder}', but listed in SHA256SUMS. Export the cell again."
        ) from error
    except OSError as error:
        raise StoreError(unreadable(folder / name, error)) from error
    if digest != expected:
        raise StoreError(
            f"{name} in '{folder}' was changed after the export. Export the cell again."
        )


def version(pixels: PixelRules) -> int:
    """Return the lowest version that decodes images by these rules."""
    is_default = (pixels.bits, pixels.resize) == (None, "letterbox") and pixels.colour != "gray"
    return 1 if is_default else VERSION


def read_decision(folder: Path) -> dict[str, Any]:
    """Return the contents of decision.json.

    Raises:
        StoreError: the file cannot be read, or has another version.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / "decision.json").read_text("utf-8"))
        version = settings["version"]
        pixel_rules.from_record(settings.get("pixels", {}))
    except OSError as error:
        raise StoreError(unreadable(folder / "decision.json", error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"Invalid decision.json in '{folder}'. Export the cell again.") from error
    if version not in range(1, VERSION + 1):
        raise StoreError(
            f"'{folder}' is an export of version {version}; this casting_tune supports 1 to "
            f"{VERSION}. "
            "Export the cell again, or install the casting_tune version that exported it."
        )
    return settings
