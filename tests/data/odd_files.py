"""Writes TIFF, PNG and PNM files that Pillow reads and cannot write."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def tiff(
    levels: np.ndarray, *, photometric: int = 1, bits: int | None = None, deflate: bool = False
) -> bytes:
    """Return a TIFF of [h, w] or [h, w, c] levels, in the byte order of their dtype.

    Args:
        levels: one strip of samples; with `bits`, packed bytes [h, row].
        photometric: 0 WhiteIsZero, 1 BlackIsZero, 2 RGB.
        bits: of a sample, if it is not that of the dtype.
        deflate: compress the strip.
    """
    order = ">" if levels.dtype.byteorder == ">" else "<"
    height, width = levels.shape[:2]
    n = 1 if levels.ndim == 2 else levels.shape[2]
    width = width if bits is None else width * 8 // bits
    strip = zlib.compress(levels.tobytes()) if deflate else levels.tobytes()
    depth = [bits or levels.dtype.itemsize * 8] * n
    start = 8 + 2 + 12 * 10 + 4  # of what does not fit into an entry: at most one, the depths
    depths = struct.pack(f"{order}{n}H", *depth)
    tags = [
        (256, 3, [width]), (257, 3, [height]), (258, 3, depth), (259, 3, [8 if deflate else 1]),
        (262, 3, [photometric]), (273, 4, [start + len(depths)]), (277, 3, [n]),
        (278, 3, [height]), (279, 4, [len(strip)]), (284, 3, [1]),
    ]  # fmt: skip
    made = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    for tag, kind, values in tags:
        value = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        field = struct.pack(f"{order}I", start) if len(value) > 4 else value.ljust(4, b"\0")
        made += struct.pack(f"{order}HHI", tag, kind, len(values)) + field
    return made + struct.pack(f"{order}I", 0) + depths + strip


def png16(levels: np.ndarray) -> bytes:
    """Return a 16-bit PNG of [h, w], [h, w, 2] with alpha, [h, w, 3] or [h, w, 4] with alpha."""
    height, width = levels.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[1 if levels.ndim == 2 else levels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)),
         chunk(b"IEND", b""))
    )  # fmt: skip


def pnm(levels: np.ndarray, largest: int) -> bytes:
    """Return a PGM of [h, w] or a PPM of [h, w, 3] levels whose header names `largest`."""
    height, width = levels.shape[:2]
    kind = "P5" if levels.ndim == 2 else "P6"
    form = "u1" if largest < 256 else ">u2"
    return (
        f"{kind}\n# a comment\n{width} {height}\n{largest}\n".encode()
        + levels.astype(form).tobytes()
    )
