"""Commands about networks: a few lines into a room each.

Comes in: what a person typed. Goes out: lines, grids and files. Heavy libraries load inside the
commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from casting_tune.cli import completion
from casting_tune.cli import console as terminal
from casting_tune.cli.params import (
    RESULTS,
    BestOf,
    CellData,
    CellOrBest,
    CostEscape,
    CostOverkill,
    Head,
    Json,
    MaxEscape,
    PackSize,
    Prevalence,
    Results,
    Run,
    SkipBad,
    WeightsDir,
    typed,
)
from casting_tune.errors import DEFECT_FOUND, CastingTuneError, ImagesError, UsageError


def backbones(head: Head = "", *, as_json: Json = False) -> None:
    """List the backbones: timm's name, parameters without and with a head, sizes, weights."""
    from casting_tune.models import layer_table as heads
    from casting_tune.models import registry as room

    dense, _ = heads.parse_head(head)
    columns = {
        "name": "name", "timm_name": "timm name", "n_parameters": "parameters", "n_with_head": "with head",
        "n_statistics": "statistics", "input_px": "px", "min_px": "min px", "weights": "weights",
        "likeness": "like Keras'",
    }  # fmt: skip
    rows = room.listing(dense=dense)
    if as_json:
        terminal.write_json(rows)
        return
    terminal.grid(
        list(columns.values()), [[terminal.cell(row[key]) for key in columns] for row in rows]
    )


def summary(
    backbone: Annotated[
        str,
        typer.Argument(
            help="A name that `casting-tune backbones` lists, or timm:NAME.",
            autocompletion=completion.backbones,
        ),
    ],
    head: Head = "",
    image_px: Annotated[int, typer.Option("--px", help="Side of the input in pixels.")] = 512,
    as_json: Json = False,
) -> None:
    """Print a network's layer table as Keras does: shapes, parameters, totals."""
    from casting_tune.models import layer_table as room

    found = room.summarise(backbone, head=head, image_px=image_px)
    if as_json:
        terminal.write_json(found)
        return
    rows = [
        [layer.name, f"({', '.join(map(str, layer.shape))})", f"{layer.n_parameters:,}"]
        for layer in found.layers
    ]
    terminal.grid(["layer", "output shape", "parameters"], rows)
    total = found.n_trainable + found.n_statistics
    out = terminal.console()
    terminal.say(
        out,
        f"Total {total:,}; trainable {found.n_trainable:,}; not trainable {found.n_statistics:,}",
    )


def export(
    cell: CellOrBest,
    out: Annotated[
        Path, typer.Option("--out", help="The folder to write; a new one, or an empty one.")
    ],
    *,
    results: Results = RESULTS,
    data: CellData = None,
    weights_dir: WeightsDir = None,
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    sweep: BestOf = None,
    run: Run = None,
    max_escape: MaxEscape = None,
    cost_escape: CostEscape = None,
    cost_overkill: CostOverkill = None,
    prevalence: Prevalence = None,
    licence: Annotated[
        str, typer.Option("--data-licence", help="Licence of the images, for the card.")
    ] = "not stated",
    as_json: Json = False,
) -> None:
    """Write a cell's network as a folder that runs without torch: ONNX, weights, threshold, model card."""
    from casting_tune.analysis import selection
    from casting_tune.data import image_folder
    from casting_tune.deploy import export as room
    from casting_tune.deploy import onnx_graph
    from casting_tune.store import completed
    from casting_tune.store.store import Store

    image_folder.check_outside(data, out, "--out")
    onnx_graph.check_libraries()
    console, store = terminal.console(as_json), Store(results)
    cell, said = selection.named(store, cell, sweep, run)
    for sentence in said:
        terminal.say(console, sentence)
    with terminal.progress(console) as on_progress:
        loaded = completed.load(
            store,
            cell,
            images=completed.image_source(data, pack_size=pack_size, skip_bad=skip_bad),
            weights_dir=weights_dir,
            on_progress=on_progress,
        )
        checked = room.export(
            loaded,
            store,
            out,
            max_escape=max_escape,
            cost_escape=cost_escape,
            cost_overkill=cost_overkill,
            prevalence=prevalence,
            licence=licence,
            chosen_how=said,
            on_epoch=lambda epoch: on_progress("training again", epoch.epoch, loaded.config.epochs),
        )
    if as_json:
        terminal.write_json(
            {"folder": out, "cell_id": loaded.row["cell_id"], "best": said, "checked": checked}
        )
        return
    for sentence in checked.point.sentences:
        terminal.say(console, sentence)
    terminal.say(
        console,
        f"{out}: checked on {checked.n_images:,} images; the weights score them as the store says within "
        f"{checked.largest_stored:.2g}, onnxruntime as torch within {checked.largest_onnx:.2g}, with equal decisions.",
    )


def predict(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `casting-tune export` wrote.")
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="A new .csv or .parquet file for the rows.")
    ] = None,
    fail_on_defect: Annotated[
        bool, typer.Option("--fail-on-defect", help="End with exit code 20 if a defect is found.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with the images that come; Ctrl-C ends it.")
    ] = False,
    idle: Annotated[
        float | None,
        typer.Option("--idle", help="End a watch when nothing has come for so many seconds."),
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="CPU threads; 0 is every core.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Decide images with an exported network, by onnxruntime alone."""
    import time

    from casting_tune.deploy import predict as room

    if idle is not None and not watch:
        raise UsageError("--idle ends a watch: give it together with --watch.")
    if watch and fail_on_defect and idle is None:
        raise UsageError(
            "--fail-on-defect has no effect on a watch that only Ctrl-C ends (exit code 130): add --idle."
        )
    if watch and (wrong := [path for path in images if not path.is_dir()]):
        raise UsageError(f"--watch takes folders, and '{wrong[0]}' is none.")
    room.check_out(out, watched=watch)
    network = room.open_network(folder, n_threads=threads)
    console, tally = terminal.console(as_json), room.Tally()
    coming = (
        room.watch(network, images, idle_s=idle)
        if watch
        else room.decide_all(network, room.find(images))
    )
    started, interrupted, kept = time.perf_counter(), False, []
    with room.writer(out) as write:
        try:
            for decision in coming:
                write(decision)
                tally.add(decision)
                terminal.say(console, room.line(decision))
                if as_json:
                    kept.append(decision)
        except KeyboardInterrupt:
            interrupted = True
    terminal.say(console, tally.sentence(took_s=time.perf_counter() - started, watched=watch))
    if as_json:
        terminal.write_json({"network": network.told, "decisions": kept})
    if interrupted:
        raise typer.Exit(130)
    if fail_on_defect and tally.n_defective:
        raise typer.Exit(DEFECT_FOUND)
    if tally.n_bad:
        raise typer.Exit(ImagesError.exit_code)


def explain(
    context: typer.Context,
    network: Annotated[
        str,
        typer.Argument(
            metavar="DIR|CELL",
            help="An export's folder, or a cell's id.",
            autocompletion=completion.cells,
        ),
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Where the PNGs go.")],
    *,
    results: Results = RESULTS,
    data: CellData = None,
    weights_dir: WeightsDir = None,
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Write Grad-CAM pictures: where the network sees what speaks for a defect. Needs torch."""
    from casting_tune.data import image_folder
    from casting_tune.deploy import grad_cam as room
    from casting_tune.deploy import predict
    from casting_tune.store import completed
    from casting_tune.store.store import Store

    image_folder.check_outside(data, out, "--out")
    files = predict.find(images)
    if Path(network).is_dir():
        for name in ("results", "data", "weights_dir", "pack_size", "skip_bad"):
            if typed(context, name):
                word = name.replace("_", "-")
                raise UsageError(
                    f"'{network}' is an export, which holds all that is needed: drop --{word}."
                )
        decider, told = room.open_export(Path(network))
    else:
        store = Store(results)
        cell = completed.load(
            store,
            network,
            images=completed.image_source(data, pack_size=pack_size, skip_bad=skip_bad),
            weights_dir=weights_dir,
        )
        decider, told = room.open_cell(cell, store)
    console, done = terminal.console(as_json), []
    for explained in room.explain(decider, told, files, out):
        done.append(explained)
        made = (
            f"no picture: {explained.reason}"
            if explained.reason
            else f"{explained.score:.4f}  {explained.file}"
        )
        terminal.say(console, f"{explained.image}: {made}")
    if as_json:
        terminal.write_json({"pictures": done})
    if any(explained.reason for explained in done):
        raise typer.Exit(ImagesError.exit_code)


def reproduce(
    cell: Annotated[
        str,
        typer.Argument(
            help="A cell's id, or the beginning of one.", autocompletion=completion.cells
        ),
    ],
    *,
    results: Results = RESULTS,
    data: CellData = None,
    weights_dir: WeightsDir = None,
    pack_size: PackSize = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Train a cell again from its row alone, and compare every prediction with the stored one."""
    from casting_tune.deploy import retrain as room
    from casting_tune.store import completed
    from casting_tune.store.store import Store

    console = terminal.console(as_json)
    with terminal.progress(console) as on_progress:
        loaded = completed.load(
            Store(results),
            cell,
            images=completed.image_source(data, pack_size=pack_size, skip_bad=skip_bad),
            weights_dir=weights_dir,
            on_progress=on_progress,
        )
        found = room.reproduce(
            loaded,
            on_epoch=lambda epoch: on_progress("training again", epoch.epoch, loaded.config.epochs),
        )
    for note in found.notes:
        terminal.say(console, note)
    terminal.say(
        console,
        f"Cell {loaded.row['cell_id']}: {found.n_identical:,} of {found.n:,} predictions are identical; the largest "
        f"difference is {found.largest:.3g}; {found.n_decisions:,} decisions at threshold 0.5 differ.",
    )
    if as_json:
        terminal.write_json(found)
    if found.n_identical < found.n:
        raise typer.Exit(CastingTuneError.exit_code)
