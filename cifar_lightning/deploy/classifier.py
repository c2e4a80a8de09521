"""A trained network, out of a run or a file of weights, that classifies images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from cifar_lightning.benchmark.evaluate import check_finite
from cifar_lightning.benchmark.network import build_network, load_backbone
from cifar_lightning.data.image_files import decode_files, read_image
from cifar_lightning.data.images import IMAGE_SIZE, Normalize
from cifar_lightning.errors import NotFinite, UserError
from cifar_lightning.runs.find import find_run, is_weights, load_run
from cifar_lightning.runs.run import Network
from cifar_lightning.runs.weights import read_network
from cifar_lightning.system.devices import find_device

Images = Tensor | Sequence[Image.Image | str | Path]
BATCH_SIZE = 256


@dataclass(frozen=True)
class Classifier:
    """A trained network with what it needs to classify images.

    Attributes:
        network: Maps normalised images (N, 3, 32, 32) to logits (N, classes).
        classes: Their names, in the order of the logits.
        run: The name of the run that trained it.
        normalize: Of uint8 pixels, as in training.
        device: Where the network is.
    """

    network: nn.Module
    classes: list[str]
    run: str
    normalize: Normalize
    device: torch.device

    def preprocess(self, images: Images) -> Tensor:
        """Bring images to the network's device and input.

        Args:
            images: Files, PIL images of any size, or a tensor (N, 3, 32, 32), uint8, RGB.

        Returns:
            Shape (N, 3, 32, 32), float32, normalised.

        Raises:
            ValueError: If a file can't be read, or a tensor has another shape or type.
        """
        if not isinstance(images, Tensor):
            found = (one if isinstance(one, Image.Image) else Path(one) for one in images)
            images = torch.stack([read_image(one) for one in found])
        shape = (len(images), 3, IMAGE_SIZE, IMAGE_SIZE)
        if images.shape != shape or images.dtype != torch.uint8:
            given = f"{tuple(images.shape)}, {images.dtype}"
            raise ValueError(f"images: {given}; must be (N, 3, 32, 32), torch.uint8")
        return self.normalize(images.to(self.device))

    @torch.inference_mode()
    def __call__(self, images: Images) -> Tensor:
        """Classify images.

        Args:
            images: As for `preprocess`.

        Returns:
            Probabilities (N, classes), on the CPU.

        Raises:
            UserError: If the logits are NaN or infinite, as damaged weights give them.
            ValueError: As for `preprocess`.
        """
        try:
            logits = check_finite(self.network(self.preprocess(images)))
        except NotFinite as error:
            raise UserError(f"{self.run}: {error}; the run is damaged") from error
        return logits.softmax(1).cpu()


def load(source: str | Path, outputs: str | Path = "outputs", device: str = "cpu") -> Classifier:
    """Load a trained network; see `cifar_lightning.load`."""
    place = find_device(device)
    path = Path(source)
    if is_weights(source):
        record, content = read_network(path)
        network = build_network(record, content, path)
    else:
        folder = find_run(Path(outputs), str(source))
        record, network = Network.of(load_run(folder)), load_backbone(folder)
    normalize = Normalize(record.mean, record.std)
    return Classifier(network.to(place), record.classes, record.run, normalize, place)


@dataclass(frozen=True)
class Prediction:
    """An image with its likeliest classes' probabilities, the first one first."""

    image: str
    classes: list[tuple[str, float]]


def predict(
    classifier: Classifier, paths: Sequence[Path], top: int
) -> Iterator[Prediction | ValueError]:
    """Classify image files batch by batch; what can't be read gives an error instead."""
    for start in range(0, len(paths), BATCH_SIZE):
        batch = paths[start : start + BATCH_SIZE]
        decoded = decode_files(batch, resize=True)
        for index, reason in decoded.errors.items():
            yield ValueError(f"{batch[index]}: {reason}")
        if used := [index for index in range(len(batch)) if index not in decoded.errors]:
            best = classifier(torch.from_numpy(decoded.images[used])).topk(top)
            for index, probabilities, labels in zip(
                used, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                names = [classifier.classes[label] for label in labels]
                yield Prediction(str(batch[index]), list(zip(names, probabilities, strict=True)))
