"""Commands for trained cells: `export`, `predict`, `explain`, `reproduce`.

Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casting_tune.cli import completion, console
from casting_tune.cli.params import (
    RESULTS,
    CellData,
    CellName,
    CostEscape,
    CostOverkill,
    Json,
    MaxEscape,
    OfSweep,
    PackSize,
    Prevalence,
    Results,
    Run,
    SkipBad,
    WeightsDir,
    on_command_line,
)
from casting_tune.errors import DEFECT_FOUND, CastingTuneError, ImagesError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from casting_tune.config import Epoch
    from casting_tune.store.completed import Cell
    from casting_tune.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class _CellFiles:
    """Options that say where the images and the initial weights of a cell are."""

    data: Path | None
    weights_dir: Path | None
    pack_size: int | None
    skip_bad: bool

    def load(self, out: Console, store: Store, cell: str) -> Cell:
        """Load a completed cell with a progress bar."""
        from casting_tune.store import completed

        with console.progress(out) as on_progress:
            return completed.load(
                store,
                cell,
                images=completed.image_source(
                    self.data, pack_size=self.pack_size, skip_bad=self.skip_bad
                ),
                weights_dir=self.weights_dir,
                on_progress=on_progress,
            )


@contextmanager
def _training_progress(out: Console, cell: Cell) -> Iterator[Callable[[Epoch], None]]:
    """Yield a function that shows the epochs of a repeated training as a bar."""
    with console.progress(out) as on_progress:
        yield lambda epoch: on_progress("training again", epoch.epoch, cell.config.epochs)


def export(
    cell: CellName,
    out: Annotated[Path, typer.Option("--out", help="New or empty folder for the export.")],
    *,
    results: Results = RESULTS,
    data: CellData = None,
    weights_dir: WeightsDir = None,
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    sweep: OfSweep = None,
    run: Run = None,
    max_escape: MaxEscape = None,
    cost_escape: CostEscape = None,
    cost_overkill: CostOverkill = None,
    prevalence: Prevalence = None,
    licence: Annotated[
        str, typer.Option("--data-licence", help="Licence of the images, for the model card.")
    ] = "not stated",
    as_json: Json = False,
) -> None:
    """Export a trained network that runs without torch: ONNX, weights, threshold, model card."""
    from casting_tune.analysis import cell_names, selection
    from casting_tune.data import image_folder
    from casting_tune.deploy import export as exports
    from casting_tune.deploy import onnx_graph
    from casting_tune.deploy.checks import Checked, Rule
    from casting_tune.store.store import Store

    image_folder.check_outside(data, out, "--out")
    onnx_graph.check_libraries()
    messages, store = console.console(as_json), Store(results)
    scope = cell_names.Scope(sweep=sweep, run_id=run, completed=True)
    cell, selected = selection.named(store, cell, scope)
    for sentence in selected:
        console.say(messages, sentence)
    files = _CellFiles(data=data, weights_dir=weights_dir, pack_size=pack_size, skip_bad=skip_bad)
    loaded = files.load(messages, store, cell)
    rule = Rule(
        max_escape=max_escape,
        cost_escape=cost_escape,
        cost_overkill=cost_overkill,
        prevalence=prevalence,
    )
    with _training_progress(messages, loaded) as on_epoch:
        checked: Checked = exports.export(
            loaded,
            store,
            out,
            rule=rule,
            card=exports.CardText(licence=licence, selection=selected),
            on_epoch=on_epoch,
        )
    if as_json:
        cell_id = loaded.row["cell_id"]
        console.write_json(
            {"folder": out, "cell_id": cell_id, "best": selected, "checked": checked}
        )
        return
    for sentence in checked.point.sentences:
        console.say(messages, sentence)
    console.say(
        messages,
        f"{out}: checked on {checked.n_images:,} images. "
        f"Largest difference of a score: {checked.largest_stored:.2g} from the stored score, "
        f"{checked.largest_onnx:.2g} between onnxruntime and torch. All decisions are equal.",
    )


def predict(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that `casting-tune export` wrote.")
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="New .csv or .parquet file for the results.")
    ] = None,
    fail_on_defect: Annotated[
        bool, typer.Option("--fail-on-defect", help="Exit with code 20 if a defect is found.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Wait for new images in the folders until Ctrl-C.")
    ] = False,
    idle: Annotated[
        float | None,
        typer.Option("--idle", help="With --watch: stop after so many seconds without new images."),
    ] = None,
    max_megapixels: Annotated[
        int | None,
        typer.Option(
            "--max-megapixels", help="Larger images get no decision. Default: as in training."
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="CPU threads; 0: all cores.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Classify images with an exported model (needs only onnxruntime)."""
    import time

    from casting_tune.deploy import decisions as decision_rows
    from casting_tune.deploy import image_files
    from casting_tune.deploy import predict as predictor

    _check_watch(images, watch=watch, idle=idle, fail_on_defect=fail_on_defect)
    decision_rows.check_out(out, watched=watch)
    network = predictor.open_network(folder, n_threads=threads, max_megapixels=max_megapixels)
    messages, tally = console.console(as_json), decision_rows.Tally()
    decisions = (
        predictor.watch(network, images, idle_s=idle)
        if watch
        else predictor.decide_all(
            network, image_files.find(images, say=lambda line: console.say(messages, line))
        )
    )
    started, interrupted, kept = time.perf_counter(), False, []
    with decision_rows.writer(out) as write:
        try:
            for decision in decisions:
                write(decision)
                tally.add(decision)
                console.say(messages, decision_rows.line(decision))
                if as_json:
                    kept.append(decision)
        except KeyboardInterrupt:
            interrupted = True
    console.say(messages, tally.sentence(took_s=time.perf_counter() - started, watched=watch))
    if as_json:
        console.write_json({"network": network.settings, "decisions": kept})
    if interrupted:
        raise typer.Exit(130)
    if fail_on_defect and tally.n_defective:
        raise typer.Exit(DEFECT_FOUND)
    if tally.n_bad:
        raise typer.Exit(ImagesError.exit_code)


def _check_watch(
    images: list[Path], *, watch: bool, idle: float | None, fail_on_defect: bool
) -> None:
    """Check that the options of --watch are consistent.

    Raises:
        UsageError: an option has no effect, or a path is not a folder.
    """
    if idle is not None and not watch:
        raise UsageError("--idle stops a watch: use it together with --watch.")
    if watch and fail_on_defect and idle is None:
        raise UsageError(
            "--fail-on-defect has no effect if Ctrl-C ends --watch (exit code 130): add --idle."
        )
    if watch and (wrong := [path for path in images if not path.is_dir()]):
        raise UsageError(f"--watch takes folders; '{wrong[0]}' is not a folder.")


def explain(
    context: typer.Context,
    network: Annotated[
        str,
        typer.Argument(
            metavar="DIR|CELL",
            help="Export folder, or a cell: its id, row label or a part of one; or 'best'.",
            autocompletion=completion.cells,
        ),
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the PNG files.")],
    *,
    results: Results = RESULTS,
    sweep: OfSweep = None,
    data: CellData = None,
    weights_dir: WeightsDir = None,
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Write Grad-CAM heat maps of the regions that point to a defect (needs torch)."""
    from casting_tune.analysis import cell_names, selection
    from casting_tune.data import image_folder
    from casting_tune.deploy import grad_cam, image_files
    from casting_tune.store.store import Store

    image_folder.check_outside(data, out, "--out")
    messages = console.console(as_json)
    paths = image_files.find(images, say=lambda line: console.say(messages, line))
    if Path(network).is_dir():
        for name in ("results", "sweep", "data", "weights_dir", "pack_size", "skip_bad"):
            if on_command_line(context, name):
                option = name.replace("_", "-")
                raise UsageError(
                    f"'{network}' is an export, which contains all settings: drop --{option}."
                )
        decider, settings = grad_cam.open_export(Path(network))
    else:
        store = Store(results)
        cell, _ = selection.named(store, network, cell_names.Scope(sweep=sweep, completed=True))
        files = _CellFiles(
            data=data, weights_dir=weights_dir, pack_size=pack_size, skip_bad=skip_bad
        )
        decider, settings = grad_cam.open_cell(files.load(messages, store, cell), store)
    done = []
    for explained in grad_cam.explain(decider, settings, paths, out):
        done.append(explained)
        result = (
            f"no picture: {explained.reason}"
            if explained.reason
            else f"{explained.score:.4f}  {explained.file}"
        )
        console.say(messages, f"{explained.image}: {result}")
    if as_json:
        console.write_json({"pictures": done})
    if any(explained.reason for explained in done):
        raise typer.Exit(ImagesError.exit_code)


def reproduce(
    cell: CellName,
    *,
    results: Results = RESULTS,
    sweep: OfSweep = None,
    data: CellData = None,
    weights_dir: WeightsDir = None,
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Train a cell again from its stored settings and compare all predictions.

    Exit code 1: a prediction differs.
    """
    from casting_tune.analysis import cell_names, selection
    from casting_tune.deploy import retrain
    from casting_tune.store.store import Store

    messages, store = console.console(as_json), Store(results)
    cell, _ = selection.named(store, cell, cell_names.Scope(sweep=sweep, completed=True))
    files = _CellFiles(data=data, weights_dir=weights_dir, pack_size=pack_size, skip_bad=skip_bad)
    loaded = files.load(messages, store, cell)
    with _training_progress(messages, loaded) as on_epoch:
        result = retrain.reproduce(loaded, on_epoch=on_epoch)
    for note in result.notes:
        console.say(messages, note)
    console.say(
        messages,
        f"Cell {loaded.row['cell_id']}: {result.n_identical:,} of {result.n:,} predictions are "
        f"identical; the largest difference is {result.largest:.3g}; "
        f"{result.n_decisions:,} decisions at threshold 0.5 differ.",
    )
    if as_json:
        console.write_json(result)
    if result.n_identical < result.n:
        raise typer.Exit(CastingTuneError.exit_code)
