"""What a variant is made of, and what it gives."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]
EXAMPLE_SHAPE = (1, 3, 32, 32)


class Unsupported(Exception):
    """This device or installation can't run the variant; the text says why, in one line."""


@dataclass
class PreparedModel:
    """A network that is ready to be called.

    Attributes:
        forward: Maps normalised fp32 images (B, 3, 32, 32) on the device to fp32 logits
            (B, classes) there. The next call may overwrite them.
        size_bytes: Of the file that this variant ships.
        preparation_s: What happened once: compiling, capturing, exporting, calibrating.
        notes: Facts worth recording.
        eager: Whether torch calls the network's operations one by one.
    """

    forward: Forward
    size_bytes: int
    preparation_s: float | None
    notes: dict[str, Any]
    eager: bool


@dataclass
class Build:
    """What the parts work on, one after the other.

    Attributes:
        network: Holds the weights that are shipped.
        forward: What is called; at first the network itself.
        device: Where it is called.
        calibration: Gives normalised training images (N, 3, 32, 32) on the CPU.
        stack: Ends with the variant.
        size_bytes: Set by a part that ships something else than the network's weights.
        preparation_s: See `PreparedModel`.
        notes: See `PreparedModel`.
    """

    network: nn.Module
    forward: Forward
    device: torch.device
    calibration: Callable[[], Tensor]
    stack: ExitStack
    size_bytes: int | None = None
    preparation_s: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def folder(self) -> Path:
        """Make a folder that ends with the variant."""
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory()))

    def need_gpu(self) -> None:
        if self.device.type != "cuda":
            raise Unsupported("needs a GPU")


class Kind(IntEnum):
    """What a part is about, in the order in which parts work."""

    GRAPH = 0  # rewrites the network
    PRECISION = 1  # decides what it computes with
    MEMORY_FORMAT = 2  # decides how tensors lie
    RUNTIME = 3  # decides what calls it


def _example(build: Build) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(EXAMPLE_SHAPE, generator=generator).to(build.device)


def try_forward(build: Build) -> None:
    """Call the network once: whether a device computes in a type is best asked by doing it."""
    try:
        with torch.inference_mode():
            build.forward(_example(build))
    except RuntimeError as error:
        if "not implemented" in str(error) or "not supported" in str(error):
            raise Unsupported(str(error).splitlines()[0]) from error
        raise


def first_call(build: Build) -> None:
    """Make and time the call that compiles or captures, in the mode of all later ones."""
    images = _example(build)
    start = time.perf_counter()
    with torch.inference_mode():
        build.forward(images)
        if build.device.type == "cuda":
            torch.cuda.synchronize(build.device)
    build.preparation_s = time.perf_counter() - start


def weights_size(network: nn.Module, folder: Path) -> int:
    """Tell the size in bytes of a network's weights as a file."""
    weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    return (folder / "weights.safetensors").stat().st_size
