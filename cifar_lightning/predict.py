"""Classify images with a finished run's network.

    python -m cifar_lightning.predict run=B1 cat.png photos/

takes images of any size and folders of them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from cifar_lightning import config as configuration
from cifar_lightning.backbones import INPUT_SIZE
from cifar_lightning.command import command
from cifar_lightning.data import Normalize
from cifar_lightning.errors import RunFailed, UserError, bad_value
from cifar_lightning.escaping import csv_cell, visible
from cifar_lightning.image_files import formats, open_image
from cifar_lightning.measure import find_device, load_backbone
from cifar_lightning.results import find_run, load_run
from cifar_lightning.waiting import computing

BATCH_SIZE = 256
FORMATS = ("text", "csv", "json")


@dataclass(frozen=True)
class Prediction:
    """An image with its likeliest classes and their probabilities, the first one first."""

    image: str
    classes: list[str]
    probabilities: list[float]


def find_images(given: Sequence[str]) -> list[Path]:
    """List files as given, and of folders every image below them.

    Raises:
        UserError: If one does not exist, or a folder holds no image.
    """
    known = formats()
    endings = {ending for ending, name in Image.registered_extensions().items() if name in known}
    images = []
    for path in map(Path, given):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings)
            if not found:
                raise UserError(f"{path}: no image in this folder")
            images += found
        elif path.exists():
            images.append(path)
        else:
            raise UserError(f"{path}: there is no such file or folder")
    return images


def read_image(path: Path) -> Tensor:
    """Read an image and cut the largest square out of its middle, made 32x32.

    Returns:
        Shape (3, 32, 32), uint8.

    Raises:
        ValueError: If it can't be read.
    """
    with open_image(path) as image:
        upright = _as_rgb(ImageOps.exif_transpose(image))
    pixels = transforms.pil_to_tensor(upright)
    square = transforms.center_crop(pixels, [min(pixels.shape[1:])] * 2)
    resized: Tensor = transforms.resize(square, [INPUT_SIZE, INPUT_SIZE], antialias=True)
    return resized


def _as_rgb(image: Image.Image) -> Image.Image:
    """Bring 16-bit greys to 8 bits, which Pillow would clip, and put what is clear on white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class Predictor:
    """A finished run's network, ready to classify.

    Args:
        folder: The run's.
        device: Where to compute.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.run = load_run(folder)
        data = self.run.config["data"]
        self.device = device
        self.backbone = load_backbone(folder).to(device)
        self.normalize = Normalize(data["mean"], data["std"])
        self.classes = self.run.class_names(data["num_classes"])

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: Shape (B, 3, 32, 32), uint8.

        Returns:
            Shape (B, classes), on the CPU.
        """
        probabilities: Tensor = self.backbone(self.normalize(images.to(self.device))).softmax(1)
        return probabilities.cpu()

    def predict(self, paths: Sequence[Path], top: int) -> Iterator[Prediction | ValueError]:
        """Classify image files batch by batch; what can't be read gives an error instead."""
        for start in range(0, len(paths), BATCH_SIZE):
            images = {}
            for path in paths[start : start + BATCH_SIZE]:
                try:
                    images[path] = read_image(path)
                except ValueError as error:
                    yield error
            if images:
                best = self.probabilities(torch.stack(list(images.values()))).topk(top)
                for path, shares, places in zip(
                    images, best.values.tolist(), best.indices.tolist(), strict=True
                ):
                    yield Prediction(str(path), [self.classes[place] for place in places], shares)


@command("predict", texts=("run", "outputs"), lists=("images",), sweeps=False, positional="images")
def main(cfg: DictConfig) -> None:
    """Print each image's likeliest classes."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    configuration.check(config)
    for key, example in (("run", "run=B1"), ("images", "the name of an image or a folder")):
        if OmegaConf.is_missing(cfg, key):
            raise UserError(f"{key}: needs a value, say {example}")
    if config["format"] not in FORMATS:
        raise bad_value("format", config["format"], ", ".join(FORMATS))
    paths = find_images(config["images"])
    folder = find_run(Path(config["outputs"]), config["run"])
    predictor = Predictor(folder, find_device(config["device"]))
    top, count = config["top"], len(predictor.classes)
    if top > count:
        raise bad_value("top", top, f"1 to {count}, the classes")
    predictions = []
    errors = []
    with computing():
        for found in predictor.predict(paths, top):
            if isinstance(found, ValueError):
                errors.append(str(found))
            else:
                predictions.append(found)
    if not predictions:
        raise UserError(
            "\n".join([*map(visible, errors), f"images: none of {len(paths)} can be read"])
        )
    _print(predictions, config["format"])
    if errors:
        raise RunFailed("\n".join(map(visible, errors)))


def _print(predictions: Sequence[Prediction], form: str) -> None:
    if form == "json":
        print(
            json.dumps(
                [
                    {
                        "image": one.image,
                        "classes": dict(
                            zip(one.classes, (round(p, 6) for p in one.probabilities), strict=True)
                        ),
                    }
                    for one in predictions
                ],
                indent=1,
            )
        )
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "rank", "class", "probability"])
        for one in predictions:
            for rank, (name, share) in enumerate(
                zip(one.classes, one.probabilities, strict=True), 1
            ):
                writer.writerow([csv_cell(one.image), rank, csv_cell(name), f"{share:.6f}"])
    else:
        width = max(len(visible(one.image)) for one in predictions)
        for one in predictions:
            named = zip(one.classes, one.probabilities, strict=True)
            shown = ", ".join(f"{visible(name)} {100 * share:.1f} %" for name, share in named)
            print(f"{visible(one.image):{width}}  {shown}")


if __name__ == "__main__":
    main()
