"""AOTInductor: compiled ahead of time into a package, which is loaded without compiling."""

import torch

from cifar_lightning.variants.compiled import needing_a_compiler
from cifar_lightning.variants.context import Call, Format, VariantContext, example_images
from cifar_lightning.variants.onnx import silenced
from cifar_lightning.variants.torch_export import Called


def load_aot(path: str, threads: int) -> Call:
    """Load a package of batch 1 with torch; nothing is compiled."""
    import numpy
    import torch

    torch.set_num_threads(threads)
    network = torch._inductor.aoti_load_package(path)

    def call(images: numpy.ndarray) -> numpy.ndarray:
        with torch.inference_mode():
            logits = [network(image) for image in torch.from_numpy(images).split(1)]
            return torch.cat(logits).numpy()

    return call


AOT = Format(("model.pt2",), load_aot, ("torch",))


def use_aot(variant: VariantContext) -> None:
    """Compile a package for one image, and call what is loaded of it.

    Constants are folded on a CPU, so weights lie as its convolutions like them.
    """
    (path,) = variant.ship(AOT)
    images = example_images(1, variant.device)
    settings = {
        "aot_inductor.metadata": dict(variant.metadata),
        "freezing": variant.device.type == "cpu",
    }
    with silenced(), needing_a_compiler(variant), torch.no_grad():
        program = torch.export.export(Called(variant).eval(), (images,))
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=settings
        )
    network = torch._inductor.aoti_load_package(str(path))
    variant.forward = lambda batch: (
        network(batch) if len(batch) == 1 else torch.cat([network(one) for one in batch.split(1)])
    )
    variant.first_calls()
