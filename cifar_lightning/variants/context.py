"""What a variant is made of, and what it gives."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]
Switch = Callable[[], AbstractContextManager[object]]  # sets something, and puts it back


class Unsupported(Exception):
    """This device or installation can't run the variant; the text says why, in one line."""


@dataclass
class PreparedModel:
    """A network that is ready to be called.

    Attributes:
        forward: Maps normalised fp32 images (B, 3, 32, 32) on the device to fp32 logits
            (B, classes) there, while `switched`. The next call may overwrite them.
        size_bytes: Of the file that this variant ships.
        preparation_s: What happened once: compiling, capturing, exporting, calibrating.
        notes: Facts worth recording.
        eager: Whether torch calls the network's operations one by one.
        subnormals: Number of weights so small that some processors are slow with them.
    """

    forward: Forward
    size_bytes: int
    preparation_s: float | None
    notes: dict[str, float | str]
    eager: bool
    subnormals: int
    switches: Sequence[Switch]

    @contextmanager
    def switched(self) -> Iterator[None]:
        """Set what the variant needs meanwhile; other variants' calls have to be outside."""
        with ExitStack() as stack:
            for switch in self.switches:
                stack.enter_context(switch())
            yield


@dataclass
class VariantContext:
    """What the parts work on, one after the other.

    Attributes:
        network: Holds the weights that are shipped.
        forward: What is called; at first the network itself.
        device: Where it is called.
        calibration: Gives normalised training images (N, 3, 32, 32) on the CPU.
        stack: Ends with the variant.
        preparing: Ends with its preparation.
        switches: What has to be set whenever it is called.
        size_bytes: Set by a part that ships something else than the network's weights.
        preparation_s: See `PreparedModel`.
        notes: See `PreparedModel`.
    """

    network: nn.Module
    forward: Forward
    device: torch.device
    calibration: Callable[[], Tensor]
    stack: ExitStack
    preparing: ExitStack
    switches: list[Switch] = field(default_factory=list)
    size_bytes: int | None = None
    preparation_s: float | None = None
    notes: dict[str, float | str] = field(default_factory=dict)

    def switch(self, switch: Switch) -> None:
        """Set something for the rest of the preparation, and whenever the variant is called."""
        self.switches.append(switch)
        self.preparing.enter_context(switch())

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


def example_images(count: int, device: torch.device | None = None) -> Tensor:
    """Make images to export, compile, check and time with: the same noise each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 32, 32, generator=generator).to(device)


def try_forward(variant: VariantContext) -> None:
    """Call the network once: whether a device computes in a type is best asked by doing it."""
    try:
        with torch.inference_mode():
            variant.forward(example_images(1, variant.device))
    except RuntimeError as error:
        if "not implemented" in str(error) or "not supported" in str(error):
            raise Unsupported(str(error).splitlines()[0]) from error
        raise


def first_call(variant: VariantContext) -> None:
    """Make and time the call that compiles or captures, in the mode of all later ones."""
    images = example_images(1, variant.device)
    start = time.perf_counter()
    with torch.inference_mode():
        variant.forward(images)
        if variant.device.type == "cuda":
            torch.cuda.synchronize(variant.device)
    variant.preparation_s = time.perf_counter() - start


def weights_size(network: nn.Module) -> int:
    """Tell the size in bytes of a network's weights as a file."""
    return len(save({key: value.contiguous() for key, value in network.state_dict().items()}))


def count_subnormals(network: nn.Module) -> int:
    """Count the weights that are smaller than a normal number, and not 0."""
    numbers = [one for one in network.state_dict().values() if one.is_floating_point()]
    return sum(
        int(((one != 0) & (one.abs() < torch.finfo(one.dtype).tiny)).sum()) for one in numbers
    )
