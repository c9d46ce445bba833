"""Pictures as PNG files: what the images are, what the augmentation makes of them, and charts of a sweep's figures.

In come a pack, or a data frame that a table has worked out; out go files. The grids show the pixels that the training
pipeline makes, one for one. A chart computes no metric, draws every name as plain text (a `$` is a `$`), and says on
its axis which range it shows. The same input gives the same bytes. Draws on matplotlib's Figure and Agg canvas: no
window, no pyplot, and the user's matplotlibrc has no say.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from casting_tune import augment
from casting_tune.errors import ImagesError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from casting_tune.pack import Pack

SETTINGS = (
    "default", "only hue contrast", "additional", "no hue contrast", "no shift", "no rotation", "no brightness",
    "no shear", "no zoom", "no fill_mode", "no flip",
)  # fmt: skip
"""The study's settings of part 2, in its order, spelled as `augment.parse` reads them."""

BRIGHTNESS = (0.875, 0.9375, 1.0, 1.0625, 1.125, 1.1875, 1.25)
HUE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
"""Of the palette of Okabe and Ito (2008), which colour-blind readers tell apart; markers say the same once more."""

_METRICS = {"accuracy": ("accuracy", _BLUE, "o"), "recall": ("recall", _ORANGE, "s"), "f1": ("F1", _GREEN, "^")}
_MARKERS = "os^DvP*X"
_DPI = 150
_MOST_PX = 60_000  # Agg draws up to 65,536
_STYLE: Any = {
    "text.parse_math": False, "font.size": 11, "axes.titlesize": 11, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.axisbelow": True,
    "grid.color": "#dddddd", "legend.frameon": False, "text.color": "#222222", "axes.labelcolor": "#222222",
}  # fmt: skip


def preview(pack: Pack, folder: Path, *, seed: int = 0, px: int = 300) -> list[Path]:
    """Write samples.png, brightness.png, hue.png and augmentation.png, and return their paths.

    Args:
        pack: the images; one defective training image, drawn with the seed, stands in all but the samples.
        folder: made if need be; files of these names are replaced.
        seed: draws the images and every augmentation.
        px: side of the network's input, and so of each image in the grids.

    Raises:
        UsageError: px is out of range, or the folder cannot be written.
        ImagesError: no training image is defective.
    """
    if not 16 <= px <= 600:
        raise UsageError(f"An image in a preview is 16 to 600 pixels wide; got {px}.")
    gray = pack.images.ndim == 3
    rows = np.flatnonzero((pack.labels == 1) & (pack.splits == "train"))
    if not len(rows):
        raise ImagesError(f"A preview takes a defective image in train, and there is none of '{pack.positive}'.")
    image = pack.images[np.random.default_rng(seed).choice(rows)]
    counts = f"{int(np.sum(pack.labels == 1)):,} {pack.positive} and {int(np.sum(pack.labels == 0)):,} {pack.negative}"
    low, high = augment.TOGGLES["brightness"].low, augment.TOGGLES["brightness"].high
    draws = augmented(image, n=6, seed=seed, px=px)
    stays = "The casting is exactly gray and stays so at every turn." if gray else "The casting turns with it."
    grids = {
        "samples": (
            samples(pack, n=6, seed=seed, px=px), [f"{pack.positive} (defective)", f"{pack.negative} (ok)"], [],
            f"Castings of both classes, drawn at random from {len(pack.labels):,} images: {counts}",
        ),
        "brightness": (
            brightened(image, px=px), ["brightness"], [f"x {factor:g}" for factor in BRIGHTNESS],
            f"One casting at brightness factors {BRIGHTNESS[0]:g} to {BRIGHTNESS[-1]:g}; 1 is the image itself. "
            f"The toggle draws {low:g} to {high:g}.",
        ),
        "hue": (
            hued(image, px=px), ["a red patch", "the casting"], [f"hue + {turn:g}" for turn in HUE],
            f"Hue, turned by {HUE[0]:g} to {HUE[-1]:g} of the colour circle. {stays}",
        ),
        "augmentation": (
            draws, list(SETTINGS), [f"draw {column + 1}" for column in range(draws.shape[1])],
            f"One casting under the study's {len(SETTINGS)} augmentation settings, {draws.shape[1]} draws each. "
            "A column has the same draws all the way down: two rows differ by their toggles alone.",
        ),
    }  # fmt: skip
    return [
        _grid(tiles, folder / f"{name}.png", rows=rows, columns=columns, title=title)
        for name, (tiles, rows, columns, title) in grids.items()
    ]


def samples(pack: Pack, *, n: int, seed: int, px: int) -> NDArray[np.uint8]:
    """Return [2, n, px, px, 3]: castings drawn at random, defective above ok; fewer where a class has fewer than n."""
    draw = np.random.default_rng(seed).permutation
    drawn = [draw(np.flatnonzero(pack.labels == label)) for label in (1, 0)]
    n = min(n, *(len(rows) for rows in drawn))
    return np.stack([_shown(pack.images[rows[:n]], augment.Draws(), px=px) for rows in drawn])


def brightened(image: NDArray[np.uint8], *, px: int) -> NDArray[np.uint8]:
    """Return [1, len(BRIGHTNESS), px, px, 3] of one [h, w] or [3, h, w] image."""
    return _turned(image, "brightness", BRIGHTNESS, px=px)[None]


def hued(image: NDArray[np.uint8], *, px: int) -> NDArray[np.uint8]:
    """Return [2, len(HUE), px, px, 3]: a red patch, and one [h, w] or [3, h, w] image, as the hue turns.

    A gray image gets three channels here, so that its hue is really turned; training skips that, as it changes nothing.
    """
    red = np.zeros((3, *image.shape[-2:]), np.uint8)
    red[0], red[1:] = 200, 40
    colour = np.broadcast_to(image, (3, *image.shape[-2:]))
    return np.stack([_turned(red, "hue", HUE, px=px), _turned(colour, "hue", HUE, px=px)])


def augmented(image: NDArray[np.uint8], *, n: int, seed: int, px: int) -> NDArray[np.uint8]:
    """Return [11, n, px, px, 3]: n draws of one [h, w] or [3, h, w] image under each of SETTINGS, of epoch 1."""
    import torch

    copies = np.repeat(image[None], n, axis=0)
    drawn = [
        augment.draw(augment.parse(setting), n, seed=seed, epoch=1, device=torch.device("cpu")) for setting in SETTINGS
    ]
    return np.stack([_shown(copies, draws, px=px) for draws in drawn])


def _turned(image: NDArray[np.uint8], parameter: str, values: Sequence[float], *, px: int) -> NDArray[np.uint8]:
    import torch

    given = {parameter: torch.tensor(values, dtype=torch.float64)}
    draws = augment.prepare(given, constant_fill=False, device=torch.device("cpu"))
    return _shown(np.repeat(image[None], len(values), axis=0), draws, px=px)


def _shown(images: NDArray[np.uint8], draws: augment.Draws, *, px: int) -> NDArray[np.uint8]:
    """Return [n, px, px, 3] of [n, h, w] or [n, 3, h, w] images, through the pipeline that trains."""
    import torch

    n, *_, height, width = images.shape
    inputs = augment.apply(torch.from_numpy(np.array(images)).reshape(n, -1, height, width), draws, px=px)
    pixels = inputs.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def _grid(tiles: NDArray[np.uint8], file: Path, *, rows: Sequence[str], columns: Sequence[str], title: str) -> Path:
    """Draw tiles, [rows, columns, px, px, 3], pixel by pixel, with words around them."""
    from matplotlib.figure import Figure

    n_rows, n_columns, px = tiles.shape[:3]
    size = max(11, round(px * 0.085))  # of the letters, in pixels
    gap = max(2, px // 50)
    with _style():
        left = 2 * size + round(max(_width(_name(row), size) for row in rows))
        width = max(left + n_columns * (px + gap) + size, 40 * size)
        lines = textwrap.wrap(_plain(title), int((width - 2 * size) / (0.62 * size)))
        top = round(size * (1.5 * len(lines) + 1.4 + 1.6 * bool(columns)))
        height = top + n_rows * (px + gap) + size
        canvas = np.full((height, width, 3), 255, np.uint8)
        for row, column in np.ndindex(n_rows, n_columns):
            y, x = top + row * (px + gap), left + column * (px + gap)
            canvas[y : y + px, x : x + px] = tiles[row, column]
        figure = Figure(figsize=((width + 0.1) / 100, (height + 0.1) / 100), dpi=100, facecolor="white")
        figure.figimage(canvas)

        def write(x: float, y: float, text: str, **look: Any) -> None:
            figure.text(x / width, 1 - y / height, text, **{"fontsize": size * 0.72, "va": "center"} | look)

        write(size, size * 0.8, "\n".join(lines), va="top", fontsize=size * 0.8, linespacing=1.25)
        for column, name in enumerate(columns):
            write(left + column * (px + gap) + px / 2, top - 0.9 * size, _name(name), ha="center")
        for row, name in enumerate(rows):
            write(left - size * 0.8, top + row * (px + gap) + px / 2, _name(name), ha="right")
        return _save(figure, file)


def plot_images(pack: Pack, file: Path) -> Path:
    """Draw bars of the images by split and class."""
    with _style():
        figure = _figure(7, 4.2)
        axes = figure.add_subplot()
        shift = 0.2
        for label, name, color in ((1, f"defective: {pack.positive}", _ORANGE), (0, f"ok: {pack.negative}", _BLUE)):
            n = [int(np.sum((pack.splits == split) & (pack.labels == label))) for split in ("train", "test")]
            bars = axes.bar([0 - shift, 1 - shift], n, 0.38, color=color, label=_name(name))
            axes.bar_label(bars, [f"{count:,}" for count in n], padding=3)
            shift = -shift
        axes.set_xticks([0, 1], ["train", "test"])
        axes.set_ylabel("images")
        axes.margins(y=0.12)
        return _finish(figure, axes, file, title=f"{len(pack.labels):,} images by split and class")


def plot_metrics(frame: pd.DataFrame, file: Path, *, title: str) -> Path:
    """Draw accuracy, recall and F1 of each row as dots, the rows from the top.

    Args:
        frame: row, accuracy, recall, f1, accuracy_sd in 0..1, n trainings; where there is a study, study_accuracy in
            per cent. What is missing is not drawn.
        file: a PNG.
        title: what the rows are.
    """
    ys = np.arange(len(frame), dtype=float)
    accuracy, sd = (100 * _column(frame, name) for name in ("accuracy", "accuracy_sd"))
    study = _column(frame, "study_accuracy")
    with _style():
        figure = _figure(10, 1.9 + 0.42 * len(frame))
        axes = figure.add_subplot()
        _rows(axes, [_name(row) for row in frame["row"]])
        for (column, (name, color, marker)), dy in zip(_METRICS.items(), (-0.22, 0, 0.22), strict=True):
            axes.plot(100 * _column(frame, column), ys + dy, marker, color=color, ms=6, label=name)
        ends = np.stack([sd, np.minimum(sd, 100 - accuracy)])
        axes.errorbar(accuracy, ys - 0.22, xerr=ends, fmt="none", ecolor=_BLUE, lw=1.3, capsize=2.5)
        if np.isfinite(study).any():
            axes.plot(study, ys - 0.22, "D", mfc="none", mec="#222222", ms=9, label="accuracy in the study")
        _beside(axes, ["" if number else "no result" for number in np.isfinite(accuracy)], x=0.01)
        shown = [accuracy - np.nan_to_num(sd), study, *(100 * _column(frame, name) for name in ("recall", "f1"))]
        axes.set_xlim(*axis_range(np.concatenate(shown)))
        axes.set_xlabel(f"per cent {_says(axes.get_xlim())}")
        n = [int(count) for count in frame["n"]]
        same = len(set(n)) == 1
        _beside(axes, [] if same else [f"n = {count}" for count in n], x=1.01)
        trainings = f"n = {n[0]} training{'s' * (n[0] != 1)} a row" if same else "n trainings a row"
        bars = "; bars: one sd of the accuracy, cut at 100" if np.isfinite(sd).any() else ""
        return _finish(figure, axes, file, title=title, note=f"mean of {trainings}{bars}")


def plot_times(frame: pd.DataFrame, file: Path) -> Path:
    """Draw the seconds an epoch and the seconds a step by backbone and batch size, on logarithmic axes.

    Args:
        frame: backbone, batch, epoch_s, step_s; of the study, study_epoch_s, study_step_s. What lacks is not drawn.
        file: a PNG.
    """
    import matplotlib

    backbones = list(dict.fromkeys(frame["backbone"]))
    batches = sorted(set(frame["batch"]))
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(batches)))
    study = bool(np.isfinite(_column(frame, "study_epoch_s")).any())
    with _style():
        figure = _figure(11, 2.2 + 0.4 * len(backbones))
        both = figure.subplots(1, 2, sharey=True)
        for axes, (name, what) in zip(both, (("epoch_s", "an epoch"), ("step_s", "a step")), strict=True):
            _rows(axes, [_name(backbone) for backbone in backbones])
            axes.set_xscale("log")
            measured = set(frame["backbone"][np.isfinite(_column(frame, name))])
            _beside(axes, ["" if backbone in measured else "not measured" for backbone in backbones], x=0.02)
            for k, batch in enumerate(batches):
                part = frame[frame["batch"] == batch]
                ys = np.array([backbones.index(backbone) for backbone in part["backbone"]])
                ys = ys + 0.5 * ((k + 0.5) / len(batches) - 0.5)
                marker = _MARKERS[k % len(_MARKERS)]
                axes.plot(_column(part, name), ys, marker, color=colors[k], ms=6.5, label=f"batch size {batch}")
                if study:
                    axes.plot(_column(part, f"study_{name}"), ys, marker, mfc="none", mec=colors[k], ms=9)
            low, high = axes.get_xlim()
            subs = (1, 2, 5) if high > 12 * low else (1, 1.5, 2, 3, 4, 5, 7)
            axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            axes.set_xlabel(f"seconds {what} (logarithmic)")
        hollow = "hollow: the study; its epochs saw 1/2, 1/4, 1/8 of the images at batch 2, 4, 8, so compare steps"
        title = "Training time by backbone and batch size"
        return _finish(figure, both[0], file, title=title, note=hollow if study else "")


def plot_thresholds(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw threshold_accuracy.png, threshold_recall.png and threshold_f1.png: a mean over trainings and its sd.

    Args:
        frame: of one row of a sweep: threshold; accuracy, recall and f1 in 0..1, each with its _sd; n trainings, where
            it is known.
        folder: made if need be.
    """
    frame = frame.sort_values("threshold")
    x = _column(frame, "threshold")
    n = "{:.0f} trainings".format(frame["n"].iloc[0]) if "n" in frame and len(frame) else "trainings"
    files = []
    for column, (name, color, marker) in _METRICS.items():
        mean, sd = 100 * _column(frame, column), np.nan_to_num(100 * _column(frame, f"{column}_sd"))
        with _style():
            figure = _figure(7.5, 4.4)
            axes = figure.add_subplot()
            axes.fill_between(
                x, mean - sd, np.minimum(mean + sd, 100), color=color, alpha=0.2, lw=0, label="one sd, cut at 100"
            )
            axes.plot(x, mean, marker + "-", color=color, label=f"mean {name}")
            axes.set_ylim(*axis_range(mean - sd))
            axes.grid(axis="y")
            axes.set_xlabel("threshold")
            axes.set_ylabel(f"{name}, per cent\n{_says(axes.get_ylim())}")
            if len(frame) <= 12:
                axes.set_xticks(x)
            title = f"{name[0].upper()}{name[1:]} by threshold: mean and sd of {n}"
            files.append(_finish(figure, axes, folder / f"threshold_{column}.png", title=title))
    return files


def axis_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends of an axis in per cent: to 100, from the highest of a few round numbers that hides nothing."""
    least = np.min(values, initial=100, where=np.isfinite(values))
    low = max(end for end in (0, 50, 80, 90, 95) if end <= max(least, 0))
    return low, 100 + (100 - low) * 0.025


def _column(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Return a column as numbers, NaN for what is missing; a missing column is all NaN."""
    return frame[name].to_numpy(np.float64, na_value=np.nan) if name in frame else np.full(len(frame), np.nan)


def _says(limits: tuple[float, float]) -> str:
    return "(the axis starts at 0)" if limits[0] == 0 else f"(the axis shows {limits[0]:g} to 100, not 0 to 100)"


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows from the top, each on a stripe."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for y in range(0, len(names), 2):
        axes.axhspan(y - 0.5, y + 0.5, color="#f3f3f3", lw=0, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _beside(axes: Axes, texts: Sequence[str], *, x: float) -> None:
    """Write a text beside each row, at a share of the width of the axes."""
    for y, text in enumerate(texts):
        axes.text(x, y, text, transform=axes.get_yaxis_transform(), va="center", color="#666666")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(
        figsize=(width, height), dpi=min(_DPI, int(_MOST_PX / height)), facecolor="white", layout="constrained"
    )


def _finish(figure: Figure, axes: Axes, file: Path, *, title: str, note: str = "") -> Path:
    """Put the title over the axes and the legend under them, and write the file."""
    letters = int(8.6 * figure.get_figwidth())  # of 13 points, a line
    figure.suptitle(textwrap.fill(_plain(title), letters), x=0.012, ha="left", fontsize=13, fontweight="bold")
    axes.set_title(note, fontsize=10, color="#555555", pad=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return _save(figure, file)


@contextmanager
def _style() -> Iterator[None]:
    """Draw as if there were no matplotlibrc, and leave the settings as they were."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _save(figure: Figure, file: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi="figure", metadata={"Software": None})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(buffer.getvalue())
    except OSError as error:
        raise UsageError(f"Cannot write '{file}': {error.strerror}. Name another folder.") from error
    return file


def _width(text: str, size: float) -> float:
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=size).get_extents().width) if text.strip() else 0.0


def _name(text: object) -> str:
    """Return a name to be drawn on one line: what is over 44 characters loses its middle."""
    plain = _plain(str(text))
    return plain if len(plain) <= 44 else f"{plain[:26]} … {plain[-15:]}"


def _plain(text: str) -> str:
    """Return text without what the font cannot draw: names come from files, and a missing glyph is a warning."""
    import matplotlib
    from matplotlib.font_manager import get_font

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    plain, bold = (get_font(fonts / f"DejaVuSans{face}.ttf").get_charmap() for face in ("", "-Bold"))
    return "".join(c if c.isprintable() and ord(c) in plain and ord(c) in bold else "?" for c in text)
