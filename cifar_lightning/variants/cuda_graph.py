"""CUDA graphs: a forward pass captured once for each shape and replayed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cifar_lightning.variants.context import Forward, VariantContext, first_call


def use_cuda_graph(variant: VariantContext) -> None:
    """Capture the forward pass once for each shape of its input and replay it."""
    variant.need_gpu()
    inner = variant.forward
    captured: dict[torch.Size, CapturedGraph] = {}

    def forward(images: Tensor) -> Tensor:
        if images.shape not in captured:
            captured[images.shape] = capture(inner, images)
        return captured[images.shape](images)

    variant.forward = forward
    variant.stack.callback(captured.clear)
    first_call(variant)


@dataclass
class CapturedGraph:
    """A captured forward pass. Calling it copies the images in and replays it.

    Attributes:
        graph: Replays on what lies in ``images``.
        images: Where the input has to lie.
        logits: Where the output lies after a replay.
    """

    graph: torch.cuda.CUDAGraph
    images: Tensor
    logits: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        self.images.copy_(images)
        self.graph.replay()
        return self.logits


def capture(forward: Forward, images: Tensor) -> CapturedGraph:
    """Capture a forward pass for one shape of input.

    Raises:
        RuntimeError: If it does what can't be captured, such as waiting for the device.
    """
    with torch.cuda.device(images.device):
        static = images.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in the first calls
            for _ in range(3):
                forward(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = forward(static)
    return CapturedGraph(graph, static, logits)
