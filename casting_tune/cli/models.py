"""Commands for networks: `backbones`, `summary`.

Heavy libraries are imported inside the commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

from casting_tune.cli import completion, console
from casting_tune.cli.params import Head, Json


def backbones(head: Head = "", *, as_json: Json = False) -> None:
    """List the backbones with timm name, parameters, image sizes and weights."""
    from casting_tune.models import layer_table, registry

    dense, _ = layer_table.parse_head(head)
    rows = registry.listing(dense=dense)
    if as_json:
        console.write_json(rows)
        return
    out = console.console()
    for columns in (
        {"name": "name", "timm_name": "timm name", "input_px": "px", "min_px": "min px",
         "weights": "weights"},
        {"name": "name", "n_parameters": "parameters", "n_with_head": "with head",
         "n_statistics": "statistics", "n_keras": "Keras'", "likeness": "like Keras'"},
    ):  # fmt: skip
        console.grid(
            list(columns.values()), [[console.cell(row[key]) for key in columns] for row in rows]
        )
    for row in rows:
        if row["reason"]:
            console.say(out, f"{row['name']} differs from Keras: {row['reason']}.")


def summary(
    backbone: Annotated[
        str,
        typer.Argument(
            help="Name from `casting-tune backbones`, or timm:NAME.",
            autocompletion=completion.backbones,
        ),
    ],
    head: Head = "",
    image_px: Annotated[int, typer.Option("--px", help="Side of the input in pixels.")] = 512,
    as_json: Json = False,
) -> None:
    """Print the layers of a network as Keras does: shapes, parameters, totals."""
    from casting_tune.models import layer_table

    table = layer_table.summarise(backbone, head=head, image_px=image_px)
    if as_json:
        console.write_json(table)
        return
    rows = [
        [layer.name, f"({', '.join(map(str, layer.shape))})", f"{layer.n_parameters:,}"]
        for layer in table.layers
    ]
    console.grid(["layer", "output shape", "parameters"], rows)
    total = table.n_trainable + table.n_statistics
    console.say(
        console.console(),
        f"Total {total:,}; trainable {table.n_trainable:,}; not trainable {table.n_statistics:,}",
    )
