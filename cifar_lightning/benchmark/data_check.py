"""Whether data are those that a run was trained on, and what is different if not."""

import logging
from collections.abc import Collection

from cifar_lightning.data.images import ImageData
from cifar_lightning.runs.data import DataSummary
from cifar_lightning.runs.run import Run

log = logging.getLogger(__name__)

MAX_NAMED = 10


def summary(images: ImageData) -> DataSummary:
    """Say what is recorded of a data set, beside its fingerprint and classes."""
    val = 0 if images.val is None else len(images.val)
    train, test = len(images.train.labels), len(images.test.labels)
    return DataSummary(train, val, test, images.pixels, images.decoder)


def difference(run: Run, images: ImageData) -> str | None:
    """Tell how data differ from those that a run was trained on; None if they are the same.

    The same files may be decoded to other pixels here, by a grey level or so; that is only said.
    """
    before, now = run.data, summary(images)
    if images.fingerprint == run.data_fingerprint:
        if before is not None and before.pixels != now.pixels:
            log.warning(
                "%s: its images are decoded to slightly other pixels by %s than by %s",
                *(run.config["data"]["name"], now.decoder, before.decoder),
            )
        return None
    told = []
    if run.classes and run.classes != [*images.classes]:
        new, gone = {*images.classes} - {*run.classes}, {*run.classes} - {*images.classes}
        told += [f"new classes: {_named(new)}"] if new else []
        told += [f"missing classes: {_named(gone)}"] if gone else []
        told += [] if new or gone else ["the classes are in another order"]
    if before is not None:
        told += [
            f"{count} {name} images, were {earlier}"
            for name, count, earlier in (
                ("training", now.train, before.train),
                ("validation", now.val, before.val),
                ("test", now.test, before.test),
            )
            if count != earlier
        ]
        if now.decoder != before.decoder:
            told.append(f"decoded by {now.decoder}, were by {before.decoder}")
    return "; ".join(told) or "as many images of the same classes, but others"


def _named(classes: Collection[str]) -> str:
    more = [f"{len(classes) - MAX_NAMED} more"] if len(classes) > MAX_NAMED else []
    return ", ".join([*sorted(classes)[:MAX_NAMED], *more])
