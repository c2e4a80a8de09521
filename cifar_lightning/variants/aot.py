"""AOTInductor: compiled ahead of time into a package, which is loaded without compiling."""

import re
import zipfile
from pathlib import Path

import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from cifar_lightning.variants.compiled import needing_a_compiler
from cifar_lightning.variants.context import Array, Call, Format, VariantContext, example_images
from cifar_lightning.variants.onnx import silenced
from cifar_lightning.variants.torch_export import Called


def load_aot(path: str, threads: int) -> Call:
    """Load a package for one image with torch; nothing is compiled."""
    import torch

    torch.set_num_threads(threads)
    network = torch._inductor.aoti_load_package(path)

    @torch.inference_mode()
    def call(images: Array) -> Array:
        return torch.cat([network(image) for image in torch.from_numpy(images).split(1)]).numpy()

    return call


AOT = Format(("model-aot.pt2",), load_aot, ("torch",))


def use_aot(variant: VariantContext) -> None:
    """Compile a package for one image, and call what is loaded of it."""

    def write(path: Path) -> None:
        images = example_images(1, variant.device)
        settings = {"aot_inductor.metadata": dict(variant.metadata)}
        with silenced(), needing_a_compiler(variant), torch.no_grad():
            program = torch.export.export(Called(variant).eval(), (images,))
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=settings
            )
        _forget_places(path)

    (path,) = variant.ship(AOT, write)
    network = torch._inductor.aoti_load_package(str(path))
    variant.forward = lambda batch: (
        network(batch) if len(batch) == 1 else torch.cat([network(one) for one in batch.split(1)])
    )
    variant.first_calls()


def _forget_places(path: Path) -> None:
    """Leave out of a package where on this machine it was made.

    Its C++ is not needed to run it; the library names sources in its own messages, in as many bytes
    as before.
    """
    places = cache_dir(), str(Path(torch.__file__).parents[1])
    named = re.compile(b"|".join(re.escape(place.encode()) + rb"(/tmp\w+)?" for place in places))
    with zipfile.ZipFile(path) as archive:
        parts = [
            (part, archive.read(part)) for part in archive.infolist() if ".cpp" not in part.filename
        ]
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts:
            archive.writestr(part, named.sub(lambda found: b"." * len(found[0]), content))
