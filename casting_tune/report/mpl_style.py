"""The style, safe text and PNG output of all matplotlib pictures.

Uses Figure and the Agg canvas: no window, no pyplot, no matplotlibrc of the user. The same figure
gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casting_tune.errors import UsageError
from casting_tune.text import plain as without_controls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: Any = {
    "text.parse_math": False, "font.size": 11, "axes.titlesize": 11,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#555555", "axes.axisbelow": True, "grid.color": "#dddddd",
    "legend.frameon": False, "text.color": "#222222", "axes.labelcolor": "#222222",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Draw with our style, without any matplotlibrc; restore the settings afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def save(figure: Figure, file: Path) -> Path:
    """Write a figure as a PNG and return its path.

    Raises:
        UsageError: the folder or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi="figure", metadata={"Software": None})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(buffer.getvalue())
    except OSError as error:
        raise UsageError(
            f"Cannot write '{file}': {error.strerror}. Use another folder with --out."
        ) from error
    return file


def name(text: object) -> str:
    """Return a name of at most 44 characters, shortened in the middle."""
    whole = plain(str(text))
    return whole if len(whole) <= 44 else f"{whole[:26]} … {whole[-15:]}"


def plain(text: str) -> str:
    """Return text with ? for characters missing in the font: a missing glyph is a warning."""
    import matplotlib
    from matplotlib.font_manager import get_font

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    regular, bold = (
        get_font(fonts / f"DejaVuSans{face}.ttf").get_charmap() for face in ("", "-Bold")
    )
    return "".join(
        c if ord(c) in regular and ord(c) in bold else "?" for c in without_controls(text)
    )
