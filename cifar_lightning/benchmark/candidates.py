"""What a benchmark times: each distinct candidate of the runs once, and the references."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from cifar_lightning.benchmark.network import build_network, check_size, load_backbone
from cifar_lightning.config import components, options
from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.models.floor import floor
from cifar_lightning.models.interfaces import reparameterized
from cifar_lightning.runs.candidate import Candidate, Role, recipe
from cifar_lightning.runs.find import find_run, is_weights, load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Network
from cifar_lightning.runs.weights import read_network, read_weights
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.variants import registry
from cifar_lightning.variants.context import Unsupported

REFERENCE, SECOND_REFERENCE = "resnet8", "mobilenetv3"  # of `conf/model`
NUM_CLASSES = 10  # of a network that belongs to no run


@dataclass(frozen=True)
class BenchmarkSpec:
    """What to measure: every variant with every number of threads, by one protocol.

    Attributes:
        variants: Names that `registry.check` accepts.
        threads: CPU threads; on a GPU the first number alone counts.
        protocol: ``full`` or ``quick``.
    """

    variants: list[str]
    threads: list[int]
    protocol: str

    def checked(self, prefix: str = "", may_be_empty: bool = False) -> Self:
        """See that all of it exists; return it with each variant's name as it is recorded.

        Raises:
            UserError: With the key that is wrong, behind ``prefix``.
        """
        names = [registry.check(name, f"{prefix}variants") for name in self.variants]
        if self.protocol not in PROTOCOLS:
            raise bad_value(f"{prefix}protocol", self.protocol, ", ".join(PROTOCOLS))
        if not names and not may_be_empty:
            raise bad_value(f"{prefix}variants", "[]", "at least one variant")
        cores = usable_cores()
        if not self.threads or not all(1 <= count <= cores for count in self.threads):
            allowed = f"numbers from 1 to {cores}, the cores that can be used here"
            raise bad_value(f"{prefix}threads", self.threads, allowed)
        return replace(
            self,
            variants=list(dict.fromkeys(names)),
            threads=list(dict.fromkeys(self.threads)),
        )

    def combinations(self, device: torch.device) -> Iterator[tuple[str, int]]:
        """Yield each variant with each number of threads."""
        for name in self.variants:
            for count in self.threads if device.type == "cpu" else self.threads[:1]:
                yield name, count


@dataclass(frozen=True)
class Source:
    """A candidate, and where its network comes from.

    Attributes:
        folder: The run's whose weights it has; None for others.
        weights: A file of weights by itself; where there is neither, they are random.
    """

    candidate: Candidate
    folder: Path | None = None
    weights: Path | None = None

    @property
    def title(self) -> str:
        """What it is called where others have the same ID."""
        return f"{self.candidate.run or self.candidate.label}, {self.candidate.variant}"

    @property
    def has_weights(self) -> bool:
        """Whether a run's weights are here."""
        return self.folder is not None and RunFolder(self.folder).weights.exists()

    @property
    def network(self) -> Network | None:
        """What is known of a trained network; None for random weights."""
        if self.folder is not None:
            return Network.of(load_run(self.folder))
        return None if self.weights is None else read_network(self.weights)[0]

    def content(self) -> bytes:
        """Read the file of its weights; errors as `read_weights` and `read_network`."""
        if self.folder is not None:
            return read_weights(self.folder, load_run(self.folder))
        assert self.weights is not None
        return read_network(self.weights)[1]

    @property
    def metadata(self) -> dict[str, str]:
        """What files made of the network say of themselves."""
        return {} if (network := self.network) is None else network.description

    def calibration(self, of_run: Callable[[Path | None], Tensor]) -> Tensor:
        """Give images to calibrate with.

        Args:
            of_run: Gives a run's; noise where it is given none.

        Raises:
            Unsupported: If its training images are not here.
        """
        if self.weights is not None:
            needed = "needs training images to calibrate"
            raise Unsupported(f"{needed}, and weights by themselves have none: give the run")
        return of_run(self.folder)

    def build(self) -> nn.Module:
        """Build the network as it is executed, on the CPU."""
        if self.folder is not None:
            return load_backbone(self.folder)
        if self.weights is not None:
            return build_network(*read_network(self.weights), self.weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.candidate.role == "floor":
                return floor(NUM_CLASSES).eval()
            network: nn.Module = components.construct("model", self.candidate.model)
        return reparameterized(network.eval())


def _candidate(
    role: Role, label: str, network: str, model: dict[str, Any], variant: str, threads: int
) -> Candidate:
    return Candidate(
        role, label, network, model, variant, recipe(variant), registry.engines(variant), threads
    )


def of_run(folder: Path, variant: str, threads: int) -> Source:
    """Make a candidate of a finished run.

    Raises:
        UserError: If its record is missing or damaged.
    """
    run = load_run(folder)
    network, model = run.choices["model"], run.config["model"]
    made = _candidate("candidate", run.label, network, model, variant, threads)
    return Source(replace(made, run=run.name, weights=run.weights), folder)


def of_weights(path: Path, variant: str, threads: int) -> Source:
    """Make a candidate of a file of weights by itself.

    Raises:
        UserError: If it is none that was written here.
    """
    network, content = read_network(path)
    option, _, label = network.run.partition("-")
    label = label.rpartition("-")[2] or option
    made = _candidate("candidate", label, option, network.model, variant, threads)
    digest = sha256(content).hexdigest()
    return Source(replace(made, run=network.run, weights=digest), weights=path)


def of_query(outputs: Path, query: str, variant: str, threads: int) -> Source:
    """Make a candidate of what `find_run` finds, or of a file of weights; errors as theirs."""
    if is_weights(query):
        return of_weights(Path(query), variant, threads)
    return of_run(find_run(outputs, query), variant, threads)


def check_named(name: str) -> None:
    """See that an option of ``conf/model`` is a network by itself, before any is prepared.

    Raises:
        UserError: If it is not, or its package is not installed.
    """
    model = options.option("model", name, {"data": {"num_classes": NUM_CLASSES}})
    if missing := [key for key, value in model.items() if value == "???"]:
        how = "measure a run of it, or give it in a file of your own in conf/model"
        raise UserError(f"model={name}: model.{missing[0]} has no value there; {how}")
    check_size(f"model={name}", partial(components.construct, "model", model))


def of_network(name: str, variant: str, threads: int, role: Role = "candidate") -> Source:
    """Make a candidate of an option of ``conf/model``, with fixed random weights.

    Raises:
        UserError: If there is no such option.
    """
    model = options.option("model", name, {"data": {"num_classes": NUM_CLASSES}})
    return of_model(name, name, model, variant, threads, role)


def of_model(
    label: str,
    network: str,
    model: dict[str, Any],
    variant: str,
    threads: int,
    role: Role = "candidate",
) -> Source:
    """Make a candidate of a resolved ``model`` node, with fixed random weights."""
    return Source(_candidate(role, label, network, model, variant, threads))


def references(device: torch.device) -> list[Source]:
    """Make what every benchmark has beside what is ranked.

    On a GPU a captured graph: eager, the launching by the CPU would be what is timed.
    """
    variant = "cuda_graph" if device.type == "cuda" else "fp32"
    return [
        of_network(REFERENCE, variant, 1, "reference"),
        of_network(REFERENCE, variant, 1, "double"),
        of_network(SECOND_REFERENCE, variant, 1, "second_reference"),
    ]
