"""A training step on a GPU as one launch: run normally at first, then recorded as a CUDA graph.

Input: a step, from tensors of a batch to one tensor, that changes weights. Output: the same step,
with the same kernels in the same order. A step of a network has a thousand launches or more; at
small batch sizes the host takes longer to launch them than the GPU to run them. Does not know
networks, batches or optimisers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Step = Callable[..., torch.Tensor]

WARM_STEPS = 3
"""Steps that run normally first, so that libraries, optimiser and autograd create their state
(https://docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA graphs").
"""

WAITS = "called a synchronizing CUDA operation"
"""The warning of torch's sync debug mode about an operation for which the host waits."""


class Recorder:
    """Records steps.

    `records` is whether the last step was recorded, and None before that is decided.
    """

    def __init__(self) -> None:
        self.records: bool | None = None

    def __call__(self, step: Step) -> Step:
        """Return a step that does what `step` does, recorded once for each shape of its tensors.

        A recording holds the addresses of everything that the step reads. Values that change
        between batches must be arguments, or be in a tensor that is filled in place, and all calls
        must come from one thread. A step for which the host waits (it reads a value of the device)
        cannot be recorded and runs normally. All recordings share one memory pool, because only one
        runs at a time.
        """
        import torch

        self.records = None
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        pool = torch.cuda.graph_pool_handle()
        recordings: dict[
            tuple[torch.Size, ...], tuple[Any, tuple[torch.Tensor, ...], torch.Tensor]
        ] = {}
        n_run = 0

        def run(*given: torch.Tensor) -> torch.Tensor:
            nonlocal n_run
            if n_run < WARM_STEPS:
                n_run += 1
                output, waits = _warm(step, given, stream)
                if n_run == WARM_STEPS:
                    self.records = not waits
                return output
            if not self.records:
                return step(*given)
            shapes = tuple(tensor.shape for tensor in given)
            if shapes not in recordings:
                recordings[shapes] = _record(step, given, stream, pool)
            graph, held, output = recordings[shapes]
            for kept, new in zip(held, given, strict=True):
                kept.copy_(new)
            graph.replay()
            return output.clone()  # the next replay writes over it

        return run


def _warm(
    step: Step, given: tuple[torch.Tensor, ...], stream: torch.cuda.Stream
) -> tuple[torch.Tensor, bool]:
    """Run a step normally on the recording stream; return its output and if the host waited."""
    import torch

    before = torch.cuda.get_sync_debug_mode()
    stream.wait_stream(torch.cuda.current_stream())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with torch.cuda.stream(stream):
                output = step(*given)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    torch.cuda.current_stream().wait_stream(stream)
    texts = [str(warning.message) for warning in seen]
    for warning, text in zip(seen, texts, strict=True):
        if (
            WAITS not in text and "Synchronization debug mode" not in text
        ):  # torch calls the mode a prototype, once
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return output, any(WAITS in text for text in texts)


def _record(
    step: Step, given: tuple[torch.Tensor, ...], stream: torch.cuda.Stream, pool: Any
) -> tuple[Any, tuple[torch.Tensor, ...], torch.Tensor]:
    """Return the graph of a step, the tensors that it reads, and the one that it writes.

    Nothing is computed yet.
    """
    import torch

    graph, held = torch.cuda.CUDAGraph(), tuple(tensor.clone() for tensor in given)
    # entering waits for the device and frees cached memory; "thread_local": other threads may use
    # the device
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        output = step(*held)
    return graph, held, output
