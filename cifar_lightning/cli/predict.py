"""Classify images with a finished run's network.

    python -m cifar_lightning.predict run=B1 cat.png photos/

takes images of any size and folders of them.
"""

import csv
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from cifar_lightning.cli.command import command
from cifar_lightning.config.schema import PredictConfig
from cifar_lightning.data.found_files import find_images
from cifar_lightning.deploy.classifier import Prediction, load, predict
from cifar_lightning.errors import RunFailed, UserError, bad_value
from cifar_lightning.system.escaping import csv_cell, visible
from cifar_lightning.system.openmp_waiting import computing

FORMATS = ("text", "csv", "json")


@command("predict", PredictConfig, positional="images")
def main(config: PredictConfig) -> None:
    """Print each image's likeliest classes."""
    if config.format not in FORMATS:
        raise bad_value("format", config.format, ", ".join(FORMATS))
    predictions = []
    errors = []
    # What libraries and networks print is no part of the result, which programs read.
    with redirect_stdout(sys.stderr), computing():
        paths = find_images(config.images)
        classifier = load(config.run, config.outputs, config.device)
        if config.top > (count := len(classifier.classes)):
            raise bad_value("top", config.top, f"1 to {count}, the classes")
        for found in predict(classifier, paths, config.top):
            if isinstance(found, ValueError):
                errors.append(visible(found))
            else:
                predictions.append(found)
    if not predictions:
        raise UserError("\n".join([*errors, f"images: none of {len(paths)} can be read"]))
    _print(predictions, config.format)
    if errors:
        raise RunFailed("\n".join(errors))


def _print(predictions: Sequence[Prediction], form: str) -> None:
    if form == "json":
        found = [
            {"image": one.image, "classes": {name: round(p, 6) for name, p in one.classes}}
            for one in predictions
        ]
        print(json.dumps(found, indent=1))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "rank", "class", "probability"])
        for one in predictions:
            for rank, (name, p) in enumerate(one.classes, 1):
                writer.writerow([csv_cell(one.image), rank, csv_cell(name), f"{p:.6f}"])
    else:
        width = max(len(visible(one.image)) for one in predictions)
        for one in predictions:
            shown = ", ".join(f"{visible(name)} {100 * p:.1f} %" for name, p in one.classes)
            print(f"{visible(one.image):{width}}  {shown}")
