"""Removes private information from a text: secrets, home folders, host and user names.

Input: the text of an error or a command. Output: the text for the store. Reads the environment,
because its values must not be stored.
"""

from __future__ import annotations

import functools
import getpass
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_HOMES = re.compile(r"(?:/home|/Users|C:\\Users)[/\\][^/\\\s:'\"]+")
# 12.4.5.8 after = is a version
_ADDRESS = re.compile(r"(?:(?<=\bip=)|(?<![\w.=]))(?!127\.)(?:\d{1,3}\.){3}\d{1,3}\b(?!\.)")
_PUBLIC = {"root", "localhost", "user", "nobody"}


def scrub(text: str) -> str:
    """Return a text without home folder ("~"), environment values ("$NAME"), host and user."""
    return redacted(
        text, dict(os.environ), home=str(Path.home()), host=platform.node(), user=_user()
    )


def redacted(text: str, environment: Mapping[str, str], *, home: str, host: str, user: str) -> str:
    """Return a text without the given values.

    Values of the environment with at least 8 characters are replaced, and with at least 4 if their
    name indicates a secret; shorter ones are numbers or switches. Host and user are replaced as
    whole words, unless they are common names ("root").
    """
    if len(home) > 1:
        text = text.replace(home, "~")
    text = _ADDRESS.sub("HOST", _HOMES.sub("~", text))
    # the longest first: one value may contain another
    values = sorted(environment.items(), key=lambda pair: -len(pair[1]))
    for name, value in values:
        if len(value) >= (4 if _SECRET.search(name) else 8):
            text = text.replace(value, f"${name}")
    for word, placeholder in ((host, "HOST"), (host.partition(".")[0], "HOST"), (user, "USER")):
        if len(word) >= 3 and word not in _PUBLIC:
            text = re.sub(rf"(?<![\w$]){re.escape(word)}(?!\w)", placeholder, text)
    return text


@functools.cache
def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, the user number may have no name
        return ""
