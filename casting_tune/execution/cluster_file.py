"""Reads a cluster file of `ray up`: its content with line numbers, and Ray's completion of it.

Input: the path of a YAML file, for AWS or for the user's own machines. Output: a ClusterFile. Also
returns the cluster files that come with casting_tune. The checks are in `cluster_check`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.resources
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casting_tune.errors import ResourcesError, UsageError
from casting_tune.execution import ray_private

PLACEHOLDER = re.compile(r"FILL_IN_[A-Z_]+")
FILES = {
    "aws": "cluster.yaml",
    "local": "local.yaml",
    "kubernetes": "rayjob.yaml",
    "account": "account.yaml",
}
"""The cluster files that come with casting_tune, by their purpose."""

START = {"head": "head_start_ray_commands", "worker": "worker_start_ray_commands"}
"""The commands that start Ray, by the part of the cluster on which they run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """A cluster file of `ray up` for the provider aws or local.

    Attributes:
        written: as the user wrote it.
        prepared: with Ray's defaults; empty if Ray rejects the file.
        refusal: why Ray rejects it, in one line, or None.
        lines: the line of every key, by the path of keys to it.
        doubled: keys that occur twice in one mapping, and their lines.
        placeholders: values that must be replaced, their lines, and their comments.
    """

    written: dict[str, Any]
    prepared: dict[str, Any]
    refusal: str | None
    lines: dict[tuple[str, ...], int]
    doubled: tuple[tuple[str, int], ...]
    placeholders: tuple[tuple[str, int, str], ...]

    def line(self, *path: str) -> int:
        """Return the line of a key, or of the nearest key above it that the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def commands(self, part: str) -> list[str]:
        """Return the commands that run on "head" or "worker" until Ray has started there."""
        kinds = ("initialization_commands", "setup_commands", f"{part}_setup_commands", START[part])
        return [command for kind in kinds for command in self.written.get(kind) or []]

    @property
    def is_aws(self) -> bool:
        """Whether the provider is AWS; otherwise it is the user's own machines."""
        return bool(self.written["provider"]["type"] == "aws")

    @property
    def node_types(self) -> dict[str, dict[str, Any]]:
        """The kinds of nodes, by name, with Ray's defaults."""
        return dict(self.prepared.get("available_node_types", {}))


def source(purpose: str) -> str:
    """Return the text of a cluster file of casting_tune, from the wheel or the checkout."""
    name = FILES[purpose]
    here = Path(str(importlib.resources.files("casting_tune")))
    for folder in (here / "clusters", here.parent, here.parent / "clusters"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise ResourcesError(f"The file '{name}' is missing from casting_tune. Reinstall casting_tune.")


def read(file: Path) -> ClusterFile:
    """Read a cluster file.

    Raises:
        UsageError: not a readable YAML file of a provider that can be checked.
        ResourcesError: the extra `cluster` is not installed.
    """
    _need_extra()
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        root, written = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The cluster file '{file}' cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"'{file}' is not YAML: {' '.join(str(error).split())}.") from error
    provider = written.get("provider") if isinstance(written, dict) else None
    kind = provider.get("type") if isinstance(provider, dict) else None
    if kind not in ("aws", "local"):
        raise UsageError(
            f"The provider of '{file}' cannot be checked: provider.type must be aws or local; "
            f"got {kind!r}."
        )
    prepared, refusal = _prepared(written)
    doubled, lines = _keys(root)
    return ClusterFile(
        written=written,
        prepared=prepared,
        refusal=refusal,
        lines=lines,
        doubled=tuple(doubled),
        placeholders=tuple(_placeholders(root, text)),
    )


def _need_extra() -> None:
    try:
        import boto3  # noqa: F401
        import ray.autoscaler  # noqa: F401
    except ImportError as error:
        raise ResourcesError(
            "Clusters require an extra: pip install 'casting-tune[cluster]'."
        ) from error


def _prepared(written: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the file with Ray's defaults, or nothing and why Ray rejects it."""
    import click
    import jsonschema

    level = logging.root.manager.disable
    logging.disable(logging.INFO)  # Ray logs every default
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return ray_private.prepare_cluster_file(copy.deepcopy(written)), None
    except jsonschema.ValidationError as error:
        return {}, f"{'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message}"
    except (ValueError, RuntimeError, click.ClickException) as error:
        return {}, " ".join(str(error).split())
    # Ray fails before it validates, as it would in `ray up`
    except (TypeError, KeyError, AttributeError) as error:
        return {}, f"it fails with {type(error).__name__}: {error}"
    finally:
        logging.disable(level)


def _keys(root: Any) -> tuple[list[tuple[str, int]], dict[tuple[str, ...], int]]:
    """Return the keys that occur twice in one mapping, and the line of every key by its path."""
    import yaml

    doubled: list[tuple[str, int]] = []
    lines: dict[tuple[str, ...], int] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.value in seen:
                    doubled.append((str(key.value), line))
                seen.add(key.value)
                lines[*path, str(key.value)] = line
                walk(value, (*path, str(key.value)))
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                walk(value, path)

    walk(root, ())
    return doubled, lines


def _placeholders(root: Any, text: str) -> Iterator[tuple[str, int, str]]:
    """Yield every value that must be replaced, with its line and its comment."""
    rows = text.splitlines()
    places: dict[tuple[str, int], None] = {}
    for scalar in _scalars(root):
        for name in PLACEHOLDER.findall(scalar.value):
            first, last = scalar.start_mark.line, scalar.end_mark.line
            places[name, next(line for line in range(first, last + 1) if name in rows[line])] = None
    for name, line in places:
        yield name, line + 1, rows[line].partition(" # ")[2].strip()


def _scalars(node: Any) -> Iterator[Any]:
    import yaml

    if isinstance(node, yaml.ScalarNode):
        yield node
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            yield from _scalars(part)
