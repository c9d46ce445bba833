"""Reads batches of packed images ahead of the training, for sets that do not fit on the device.

Input: a pack's array, and the image indices of each batch. Output: the pixels of each batch on the
device, the same bits as `batches.put` would give. One thread reads the next batches and, on a GPU,
copies them there while it trains. Knows no toggles, networks or trials.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from casting_tune.data import batches
from casting_tune.data.pixel_source import PixelSource

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

AHEAD_BYTES = 64 * 2**20
"""Pixels that wait for the network at most, but at least one batch."""
MOST_AHEAD = 8
"""Batches that wait for the network at most."""


class ReadAhead:
    """Batches of a pack, read ahead by one thread; the thread ends with the context.

    The memory is allocated once. It does not grow with the number of images.
    """

    def __init__(
        self, images: NDArray[np.uint8], *, batch_size: int, px: int, device: torch.device
    ) -> None:
        """Open the images and allocate the buffers.

        Args:
            images: [n, h, w] gray or [n, 3, h, w] colour, uint8.
            batch_size: most images of a batch.
            px: side of the network's input; larger images are reduced to it.
            device: of the batches.
        """
        import torch

        channels = 1 if images.ndim == 3 else images.shape[1]
        shape = (batch_size, channels, *images.shape[-2:])
        n_waiting = min(MOST_AHEAD, max(1, AHEAD_BYTES // math.prod(shape)))
        self._shape, self._px = images.shape[1:], px
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._copies is not None:  # the buffers' memory may be in use by earlier kernels
            self._copies.wait_stream(torch.cuda.current_stream(device))
        self._source = PixelSource(images)
        self._free = deque(
            _Buffer(shape, device, self._copies) for _ in range(n_waiting + 1)
        )  # one is with the network
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="casting-tune-images")

    def batches(self, parts: Iterable[NDArray[np.int64]]) -> Generator[torch.Tensor]:
        """Yield the pixels of each part [b] of image indices: [b, c, h', w'] uint8, see `put`.

        A batch is valid until the next one is taken. An error of the disk is raised at its batch.
        """
        todo, ahead = iter(parts), deque[tuple[_Buffer, Future[int]]]()
        try:
            while True:
                while self._free and (part := next(todo, None)) is not None:
                    buffer = self._free.popleft()
                    ahead.append((buffer, self._thread.submit(self._fill, buffer, part)))
                if not ahead:
                    return
                buffer, filled = ahead.popleft()
                try:
                    yield batches.reduced(buffer.take(filled.result()), px=self._px)
                finally:
                    buffer.release()
                    self._free.append(buffer)
        finally:
            for buffer, filled in ahead:
                if not filled.cancel():
                    wait([filled])
                self._free.append(buffer)

    def _fill(self, buffer: _Buffer, part: NDArray[np.int64]) -> int:
        """Read a batch into a buffer, in the thread; return the number of its images."""
        buffer.begin()
        pixels = buffer.host.numpy()[: len(part)]
        self._source.read(part, pixels.reshape(len(part), *self._shape))
        buffer.send(len(part))
        return len(part)

    def close(self) -> None:
        """End the thread and close the images."""
        self._thread.shutdown(cancel_futures=True)
        if self._copies is not None:
            self._copies.synchronize()
        self._source.close()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class _Buffer:
    """Memory for one batch: on the host, and on a GPU the copy of it.

    On a GPU, `_sent` says when the copy is complete and `_used` when the network has read it, so
    that neither the thread nor the host waits for a training step.
    """

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, copies: torch.cuda.Stream | None
    ) -> None:
        import torch

        self._copies = copies
        self.host = torch.empty(shape, dtype=torch.uint8, pin_memory=copies is not None)
        self._on_device = self.host
        if copies is not None:
            self._on_device = torch.empty(shape, dtype=torch.uint8, device=device)
            self._sent, self._used = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Wait until the last content has left the host; in the thread."""
        if self._copies is not None:
            self._sent.synchronize()

    def send(self, n: int) -> None:
        """Start to copy the first `n` images to the device; in the thread."""
        if self._copies is None:
            return
        import torch

        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._used)
            self._on_device[:n].copy_(self.host[:n], non_blocking=True)
            self._sent.record(self._copies)

    def take(self, n: int) -> torch.Tensor:
        """Return the first `n` images; the kernels of the caller wait for the copy."""
        if self._copies is not None:
            import torch

            torch.cuda.current_stream().wait_event(self._sent)
        return self._on_device[:n]

    def release(self) -> None:
        """Say that the kernels launched so far are the last ones that read the images."""
        if self._copies is not None:
            import torch

            self._used.record(torch.cuda.current_stream())
