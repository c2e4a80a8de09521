"""CUDA graphs: the whole forward pass launched at once."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cifar_lightning.variants.context import Forward, VariantContext


def use_cuda_graph(variant: VariantContext) -> None:
    """Capture the forward pass once for each shape of its input and replay it."""
    variant.need_gpu()
    variant.build_by_shape(partial(capture, variant.forward))


@dataclass(frozen=True)
class CapturedGraph:
    """A captured forward pass for one shape of input.

    It holds all that a replay reads and writes: the memory that the graph knows by address only.
    """

    graph: torch.cuda.CUDAGraph
    network: Forward
    images: Tensor
    logits: Tensor

    def replay(self) -> None:
        """Compute the logits of the images that are in its memory."""
        self.graph.replay()

    def __call__(self, images: Tensor) -> Tensor:
        self.images.copy_(images)
        self.replay()
        return self.logits


def capture(forward: Forward, images: Tensor) -> CapturedGraph:
    """Capture a forward pass for one shape of input.

    Raises:
        RuntimeError: If it does what can't be captured, such as waiting for the device.
    """
    with torch.cuda.device(images.device):
        images, stream, graph = images.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        # NOTE: where capturing fails, `torch.cuda.graph` leaves its stream the current one, and the
        # allocator as if it went on. So this stream is left in any case, and what waits for the
        # device is found before anything is captured.
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries set themselves up in the first calls
                forward(images)
            with _waiting_refused():
                forward(images)
            with torch.cuda.graph(graph, stream=stream), _waiting_refused():
                logits = forward(images)
        torch.cuda.current_stream().wait_stream(stream)
    return CapturedGraph(graph, forward, images, logits)


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Let torch's operations raise an error where they would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(action="ignore"):  # that it does not find every case yet
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
