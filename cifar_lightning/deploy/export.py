"""Exporting a trained network as the files that a variant runs, checked against the network."""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.evaluate import evenly
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.deploy.board import for_boards
from cifar_lightning.deploy.card import Exported, card
from cifar_lightning.deploy.classifier import load
from cifar_lightning.deploy.evaluated import evaluated
from cifar_lightning.deploy.wanted import CPU, WEIGHTS, Wanted
from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.runs.views import replace_views
from cifar_lightning.system.cores import torch_threads
from cifar_lightning.variants import registry
from cifar_lightning.variants.agreement import Disagrees, agreement
from cifar_lightning.variants.context import Forward, Unsupported, example_images, on_arrays

CHECKED_IMAGES = 1000


def export(source: Source, wanted: Wanted, to: Path, data: RunData) -> Path:
    """Write a trained network, with its model card where a folder is given.

    Args:
        source: The network.
        wanted: As what.
        to: A folder, or a file with the format's ending.
        data: Of runs. Where the run's are not here, random images are compared.

    Returns:
        The path of the file that is loaded.

    Raises:
        UserError: If it can't be made here, or the run's files are damaged.
        RunFailed: If the exported network does not agree; nothing is written then.
    """
    folder, is_file = wanted.target(to)
    with ExitStack() as stack:
        try:
            made = _make(stack, source, wanted, data)
            images, images_are = _compared(source, data)
            found = agreement(source.build(), made.forward, images.split(250), exact=made.exact)
            known = evaluated(source, wanted.variant, made.digests, made.forward, data)
        except Unsupported as error:
            raise UserError(f"format={wanted.name}: {error}") from error
        except Disagrees as error:
            said = f"the exported network is another one: {error}"
            raise RunFailed(f"{source.candidate.run}: {said}") from error
        contents = {path.name: path.read_bytes() for path in made.files}
    if is_file:
        named = {_renamed(name, to.stem): content for name, content in contents.items()}
        replace_views(folder, named, f".{to.name}.sha256")
        return to
    size = sum(map(len, contents.values()))
    exported = Exported(
        wanted.name,
        [*contents],
        made.example,
        found,
        images_are,
        made.digests,
        size,
        () if wanted.name == WEIGHTS else wanted.form.packages,
        known,
        made.notes,
    )
    views: dict[str, str | bytes] = {**contents}
    views[f"model-{wanted.name}.md"] = card(source, exported)
    if wanted.name != WEIGHTS:
        views |= for_boards(source, wanted, exported, data)
    replace_views(folder, views, f".model-{wanted.name}.sha256")
    return folder / wanted.files[0]


def _renamed(name: str, stem: str) -> str:
    return stem + Path(name).suffix


def _compared(source: Source, data: RunData) -> tuple[Tensor, str]:
    """Take normalised images to compare logits of, and what they are."""
    found = None if source.folder is None else data(source.folder)
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
        notes: Facts that are worth recording.
    """

    files: list[Path]
    digests: Mapping[str, str]
    forward: Forward
    exact: bool
    example: str
    notes: Mapping[str, float | str]


def _make(stack: ExitStack, source: Source, wanted: Wanted, data: RunData) -> _Made:
    """Make a format's files; they are gone with the stack."""
    if wanted.name == WEIGHTS:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / wanted.files[0]
        path.write_bytes(source.content())
        example = (
            "import cifar_lightning\n"
            f'network = cifar_lightning.load("{path.name}").network\n'
            "logits = network(images)  # a tensor"
        )
        return _Made([path], {}, load(path).network, True, example, {})
    form, threads = wanted.form, torch.get_num_threads()
    stack.enter_context(torch_threads(threads))  # loading may set it
    calibration = partial(source.calibration, data.calibration)
    prepared = stack.enter_context(
        registry.prepare(
            wanted.name, source.build(), CPU, calibration, source.metadata, wanted.opset
        )
    )
    call = form.load(str(prepared.files[0]), threads)
    example = f'{form.source}\nlogits = {form.load.__name__}("{form.files[0]}", threads=1)(images)'
    return _Made(
        prepared.files, prepared.digests, on_arrays(call), prepared.exact, example, prepared.notes
    )
