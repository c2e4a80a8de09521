"""Exporting a trained network as the files that a variant runs, checked against the network."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.evaluate import evenly
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.deploy.card import Exported, card
from cifar_lightning.deploy.classifier import load
from cifar_lightning.errors import RunFailed, UserError, bad_value, unknown_name
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.run import read_weights
from cifar_lightning.runs.views import replace_views
from cifar_lightning.system.cores import torch_threads
from cifar_lightning.variants import registry
from cifar_lightning.variants.agreement import Disagrees, agreement
from cifar_lightning.variants.context import Forward, Unsupported, example_images, on_arrays

WEIGHTS = "safetensors"  # the format that needs this project to be executed
FORMATS = (*registry.FORMATS, WEIGHTS)
CHECKED_IMAGES = 1000


def check_format(name: str) -> str:
    """See that a format exists: the weights alone, or a variant that ships files.

    Returns:
        The name as variants are recorded.

    Raises:
        UserError: If not.
    """
    if name == WEIGHTS:
        return name
    for part in name.split("+"):
        if part not in registry.PARTS:
            raise unknown_name(f"format={name}", "format", part, FORMATS)
    name = registry.check(name, "format")
    if registry.format_of(name) is None:
        raise bad_value("format", name, f"{', '.join(FORMATS)}: it ships no file but the weights")
    return name


def export(source: Source, name: str, to: Path, data: RunData) -> Path:
    """Write a run's network and its model card.

    Args:
        source: The run's network.
        name: As `check_format` returns it.
        to: Folder to write to.
        data: Of runs. Where the run's are not here, random images are compared.

    Returns:
        The path of the file that is loaded.

    Raises:
        UserError: If it can't be made here, or the run's files are damaged.
        RunFailed: If the exported network does not agree; nothing is written then.
    """
    assert source.folder is not None
    images, images_are = _compared(source.folder, data)
    with ExitStack() as stack:
        try:
            made = _made(stack, source, name, data)
            found = agreement(source.build(), made.forward, images.split(250), exact=made.exact)
        except Unsupported as error:
            raise UserError(f"format={name}: {error}") from error
        except Disagrees as error:
            said = f"the exported network is another one: {error}"
            raise RunFailed(f"{source.candidate.run}: {said}") from error
        contents: dict[str, str | bytes] = {path.name: path.read_bytes() for path in made.files}
    exported = Exported(name, [*contents], made.example, found, images_are)
    contents[f"model-{name}.md"] = card(source.folder, exported)
    replace_views(to, contents, f".model-{name}.sha256")
    return to / exported.files[0]


def _compared(folder: Path, data: RunData) -> tuple[Tensor, str]:
    """Take normalised images to compare logits of, and what they are."""
    found = data(folder)
    if found is None:
        return example_images(CHECKED_IMAGES), "random"
    test = found.images.test.images
    return found.normalize(test[evenly(len(test), CHECKED_IMAGES)]), "test"


@dataclass(frozen=True)
class _Made:
    """Files of a format, and what is called of them.

    Attributes:
        exact: Whether it computes in fp32.
        example: Lines that load and call it.
    """

    files: list[Path]
    forward: Forward
    exact: bool
    example: str


def _made(stack: ExitStack, source: Source, name: str, data: RunData) -> _Made:
    """Make a format's files; they are gone with the stack."""
    assert source.folder is not None
    if name == WEIGHTS:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.safetensors"
        path.write_bytes(read_weights(source.folder, load_run(source.folder)))
        example = (
            "import cifar_lightning\n"
            f'network = cifar_lightning.load("{path.name}").network\n'
            "logits = network(images)  # a tensor"
        )
        return _Made([path], load(path).network, True, example)
    form = registry.format_of(name)
    assert form is not None
    threads = torch.get_num_threads()
    stack.enter_context(torch_threads(threads))  # loading may set it
    calibration = partial(data.calibration, source.folder)
    prepared = stack.enter_context(
        registry.prepare(name, source.build(), torch.device("cpu"), calibration, source.metadata)
    )
    call = form.load(str(prepared.files[0]), threads)
    lines = f'{form.source}\nlogits = {form.load.__name__}("{form.files[0]}", threads=1)(images)'
    return _Made(prepared.files, on_arrays(call), prepared.exact, lines)
