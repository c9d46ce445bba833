"""Commands about networks: a few lines into a room each.

Comes in: what a person typed. Goes out: lines, grids and files. Heavy libraries load inside the commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

from casting_tune import completion, terminal
from casting_tune.options import Head, Json


def backbones(head: Head = "", *, as_json: Json = False) -> None:
    """List the backbones: timm's name, parameters without and with a head, sizes, weights."""
    from casting_tune import backbones as room
    from casting_tune import summary as heads

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
    terminal.grid(list(columns.values()), [[terminal.cell(row[key]) for key in columns] for row in rows])


def summary(
    backbone: Annotated[
        str,
        typer.Argument(
            help="A name that `casting-tune backbones` lists, or timm:NAME.", autocompletion=completion.backbones
        ),
    ],
    head: Head = "",
    image_px: Annotated[int, typer.Option("--px", help="Side of the input in pixels.")] = 512,
    as_json: Json = False,
) -> None:
    """Print a network's layer table as Keras does: shapes, parameters, totals."""
    from casting_tune import summary as room

    found = room.summarise(backbone, head=head, image_px=image_px)
    if as_json:
        terminal.write_json(found)
        return
    rows = [[layer.name, f"({', '.join(map(str, layer.shape))})", f"{layer.n_parameters:,}"] for layer in found.layers]
    terminal.grid(["layer", "output shape", "parameters"], rows)
    total = found.n_trainable + found.n_statistics
    out = terminal.console()
    terminal.say(out, f"Total {total:,}; trainable {found.n_trainable:,}; not trainable {found.n_statistics:,}")
