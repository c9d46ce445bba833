"""Takes out of a text what belongs to a machine and its people: secrets, home folders, host and user names.

Comes in: the text of an error or a command. Goes out: the text as a store may keep it. Reads the
environment, for that is what must not be kept.
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
_ADDRESS = re.compile(
    r"(?:(?<=\bip=)|(?<![\w.=]))(?!127\.)(?:\d{1,3}\.){3}\d{1,3}\b(?!\.)"
)  # 12.4.5.8 after = is a version
_EVERYBODYS = {"root", "localhost", "user", "nobody"}


def scrub(text: str) -> str:
    """Return a text without the home folder ("~"), values of the environment ("$NAME"), hosts and users."""
    return without(
        text, dict(os.environ), home=str(Path.home()), host=platform.node(), user=_user()
    )


def without(text: str, environment: Mapping[str, str], *, home: str, host: str, user: str) -> str:
    """Return a text without what is named.

    Of the environment, values of 8 characters and more go, and those of 4 and more whose name tells
    of a secret: what is shorter is a number or a switch. Host and user go as whole words, unless
    they are everybody's ("root").
    """
    if len(home) > 1:
        text = text.replace(home, "~")
    text = _ADDRESS.sub("HOST", _HOMES.sub("~", text))
    values = sorted(
        environment.items(), key=lambda pair: -len(pair[1])
    )  # the longest first: one may hold another
    for name, value in values:
        if len(value) >= (4 if _SECRET.search(name) else 8):
            text = text.replace(value, f"${name}")
    for word, stands in ((host, "HOST"), (host.partition(".")[0], "HOST"), (user, "USER")):
        if len(word) >= 3 and word not in _EVERYBODYS:
            text = re.sub(rf"(?<![\w$]){re.escape(word)}(?!\w)", stands, text)
    return text


@functools.cache
def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that nobody has
        return ""
