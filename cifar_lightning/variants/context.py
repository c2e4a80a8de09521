"""What a variant is made of, and what it gives."""

import inspect
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lightning.system.environment import installation

Forward = Callable[[Tensor], Tensor]
Switch = Callable[[], AbstractContextManager[object]]  # sets something, and puts it back
Array = Any  # of numpy
Call = Callable[[Array], Array]


class Unsupported(Exception):
    """This device or installation can't run the variant; the text says why, in one line."""


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import meanwhile what an extra installs.

    Raises:
        Unsupported: If a package is missing.
    """
    try:
        yield
    except ImportError as error:
        raise Unsupported(f"needs {error.name}: {installation(extra)}") from error


@dataclass(frozen=True)
class Format:
    """The files that an engine executes, and how they are loaded where this project is not.

    Attributes:
        files: Their names. The first one is what is loaded; others are found beside it, by the same
            stem.
        load: Makes of the first one's path, and a number of CPU threads, a function of normalised
            float32 arrays (N, 3, 32, 32) that gives logits (N, classes). Model cards and
            ``bench.py`` hold its source, so it imports for itself what it needs: numpy and the
            engine alone.
        packages: What to install for it, beside numpy.
    """

    files: tuple[str, ...]
    load: Callable[[str, int], Call]
    packages: tuple[str, ...]

    @property
    def source(self) -> str:
        """The lines of ``load``, without types of ours."""
        return re.sub(r": Array|\s-> (Array|Call)(?=:)", "", inspect.getsource(self.load))


@dataclass
class VariantContext:
    """A network on which the parts work one after the other, until it is ready to be called.

    Attributes:
        network: Holds the weights that are shipped.
        forward: At first the network itself. Maps normalised fp32 images (B, 3, 32, 32) on the
            device to fp32 logits (B, classes) there, while `switched`; the next call may overwrite
            them.
        device: Where it is called.
        calibration: Gives normalised training images (N, 3, 32, 32) on the CPU.
        stack: Ends with the variant.
        preparing: Ends with its preparation.
        eager: Whether torch calls the network's operations one by one.
        subnormals: Number of weights so small that some processors are slow with them.
        exact: Whether it computes in fp32: then its logits are the network's but for rounding.
        metadata: What files that are shipped say of themselves, where they can.
        opset: Of ONNX, if not the exporter's own.
        kept: A folder where another process keeps what is shipped, or where this one is to.
        files: What is shipped; none where that is the weights.
        size_bytes: Of what is shipped.
        delegated: The fraction of operations that a delegate takes, where an engine has one.
        preparation_s: How long that took: what happens once, before the first call.
        notes: Facts worth recording.
        switches: What has to be set whenever it is called.
    """

    network: nn.Module
    forward: Forward
    device: torch.device
    calibration: Callable[[], Tensor]
    stack: ExitStack
    preparing: ExitStack
    eager: bool
    subnormals: int
    exact: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    opset: int | None = None
    kept: Path | None = None
    files: list[Path] = field(default_factory=list)
    size_bytes: int = 0
    delegated: float | None = None
    preparation_s: float = 0.0
    notes: dict[str, float | str] = field(default_factory=dict)
    switches: list[Switch] = field(default_factory=list)

    def switch(self, switch: Switch) -> None:
        """Set something for the rest of the preparation, and whenever the variant is called."""
        self.switches.append(switch)
        self.preparing.enter_context(switch())

    @contextmanager
    def switched(self) -> Iterator[None]:
        """Set what the variant needs meanwhile; other variants' calls have to be outside."""
        with ExitStack() as stack:
            for switch in self.switches:
                stack.enter_context(switch())
            yield

    def build_by_shape(self, build: Callable[[Tensor], Forward]) -> None:
        """Call what is built for the images' shape: for one image now, for others as they come.

        Args:
            build: Makes it, given images of the shape.
        """
        built: dict[torch.Size, Forward] = {}

        def forward(images: Tensor) -> Tensor:
            if images.shape not in built:
                built[images.shape] = build(images)
            return built[images.shape](images)

        self.forward = forward
        self.stack.callback(built.clear)
        self.first_calls()

    def first_calls(self) -> None:
        """Make the calls that compile, record or capture, in the mode of all later ones.

        CUDA graphs of compiled networks are recorded by the second call and replayed by the third.
        """
        images = example_images(1, self.device)
        with torch.inference_mode():
            for _ in range(3):
                self.forward(images)

    def folder(self) -> Path:
        """Make a folder that ends with the variant."""
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory()))

    def ship(self, form: Format, write: Callable[..., None]) -> list[Path]:
        """Have files written that are shipped, unless they are kept; return them to be run.

        Args:
            form: Names them.
            write: Writes them where it is told.
        """
        folder = self.kept
        if folder is None or not folder.exists():
            folder = self.folder()
            write(*(folder / name for name in form.files))
            if self.kept is not None:
                shutil.copytree(folder, self.kept)
        self.files = [folder / name for name in form.files]
        return self.files

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file that is shipped, by its name."""
        return {path.name: sha256(path.read_bytes()).hexdigest() for path in self.files}

    def need_gpu(self) -> None:
        if self.device.type != "cuda":
            raise Unsupported("needs a GPU")

    def need_cpu(self) -> None:
        if self.device.type != "cpu":
            raise Unsupported("needs a CPU: device=cpu")


class Kind(IntEnum):
    """What a part is about, in the order in which parts work."""

    GRAPH = 0  # rewrites the network
    PRECISION = 1  # decides what it computes with
    MEMORY_FORMAT = 2  # decides how tensors lie
    RUNTIME = 3  # decides what calls it


def on_arrays(call: Call) -> Forward:
    """Make a function of CPU tensors out of one of arrays, as `Format.load` gives it."""
    return lambda images: torch.from_numpy(call(images.numpy()))


def example_images(count: int, device: torch.device | None = None) -> Tensor:
    """Make images to export, compile, check and time with: the same noise each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 32, 32, generator=generator).to(device)
