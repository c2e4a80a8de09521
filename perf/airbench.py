"""Images a second of a preset against airbench's recipe in plain PyTorch and the usual recipe.

    python -m perf.airbench [experiment=fast85 "experiment=fast93 optim=sgd ~optim.muon_lr" ...]

Each argument is what `train.py` is told. Airbench's side is a rewrite for a CPU of the training
loop that Jordan describes in "94% on CIFAR-10 in 3.29 Seconds" (2024), section 3, at the network
and the batch size that the configuration says: images in memory, flipped once and then alternately,
crops out of a reflected border of 2 pixels, label smoothing 0.2, SGD with Nesterov momentum, a
triangular rate, 64 times the rate for BatchNorms' biases, and lookahead. Nothing is logged, kept or
looked at. `perf/baseline.py` says what the usual recipe is. Both are in fp32. All train an epoch of
the same number of random images in turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_lightning.runs import resolve
from perf import throughput
from perf.baseline import MEAN, STD, prepare, random_images
from perf.interleaved import conditions, interleave, table

ROUNDS = 5
PRESETS = ("experiment=fast85", "experiment=fast90", "experiment=fast93")
LR, MOMENTUM, WEIGHT_DECAY = 11.5, 0.85, 0.0153  # rate and decay for KILOSTEP examples
KILOSTEP = 1024 * (1 + 1 / (1 - MOMENTUM))  # so that momentum can change and the rate stay
BIAS_SCALER = 64.0
LOOKAHEAD_EVERY = 5  # steps


class Lookahead:
    """Slow weights that move towards the fast ones now and then, and the fast ones onto them."""

    def __init__(self, network: nn.Module) -> None:
        self.slow = {key: value.clone() for key, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float) -> None:
        for key, fast in network.state_dict().items():
            if fast.is_floating_point():
                self.slow[key].lerp_(fast, 1 - decay)
                fast.copy_(self.slow[key])


def augmented(images: Tensor, epoch: int) -> Tensor:
    """Mirror all images in odd epochs and crop each: pixels (N, C, H, W), normalised."""
    count, _, height, width = images.shape
    if epoch % 2:
        images = images.flip(3)
    padded = functional.pad(images, (2, 2, 2, 2), "reflect")
    cut = torch.empty_like(images)
    shifts = torch.randint(5, (2, count))
    for down in range(5):
        for right in range(5):
            chosen = (shifts[0] == down) & (shifts[1] == right)
            cut[chosen] = padded[chosen, :, down : down + height, right : right + width]
    return cut


def groups(network: nn.Module, batch_size: int) -> list[dict[str, Any]]:
    """Divide the parameters; rates are for sums over a batch, decay is not scaled by the rate."""
    rate, decay = LR / KILOSTEP, WEIGHT_DECAY * batch_size / KILOSTEP
    biases = {one.bias for one in network.modules() if isinstance(one, nn.BatchNorm2d)}
    learnable = [one for one in network.parameters() if one.requires_grad]
    others = [one for one in learnable if one not in biases]
    fast = rate * BIAS_SCALER
    return [
        {"params": list(biases), "lr": fast, "weight_decay": decay / fast},
        {"params": others, "lr": rate, "weight_decay": decay / rate},
    ]


class Airbench:
    """The plain loop; its network, optimizer and averages live on from epoch to epoch.

    Args:
        network: Trained in place.
        images: Pixels (N, 3, 32, 32), uint8.
        labels: Shape (N,).
        batch_size: Images a step.
        epochs: Of the whole schedule.
    """

    def __init__(
        self, network: nn.Module, images: Tensor, labels: Tensor, batch_size: int, epochs: int
    ) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        pixels = (images.float() / 255 - mean) / std
        mirrored = torch.rand(len(pixels)) < 0.5
        self.images = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
        self.labels, self.batch_size = labels, batch_size
        self.optimizer = torch.optim.SGD(
            groups(network, batch_size), momentum=MOMENTUM, nesterov=True
        )
        steps = self.total = epochs * (len(images) // batch_size)

        def triangle(step: int) -> float:
            """From 0.2 up to 1 at 23 % of the steps, and down to 0.07."""
            done, peak = step / steps, 0.23
            return 0.2 + 0.8 * done / peak if done < peak else 1 - 0.93 * (done - peak) / (1 - peak)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, triangle)
        self.lookahead = Lookahead(network)
        self.epoch = self.step = 0

    def train_epoch(self) -> None:
        self.network.train()
        images = augmented(self.images, self.epoch)
        order = torch.randperm(len(images)).split(self.batch_size)
        for chosen in order[: len(images) // self.batch_size]:
            logits = self.network(images[chosen].contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(
                logits, self.labels[chosen], label_smoothing=0.2, reduction="sum"
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            if self.step % LOOKAHEAD_EVERY == 0:
                decay = 0.95**5 * (self.step / self.total) ** 3
                self.lookahead.update(self.network, decay)
        self.epoch += 1
        if self.step == self.total:
            self.lookahead.update(self.network, decay=1.0)


def airbench(preset: str, batch_size: int) -> Callable[[], float]:
    """Prepare the plain loop; it gives an epoch's images per second."""
    with tempfile.TemporaryDirectory() as folder:
        experiment, _ = throughput.prepared(preset, folder, batch_size)
    images, labels = random_images(throughput.IMAGES)
    network = experiment.classifier.backbone
    # One epoch a call: its schedule begins anew, as ours does, and the speed is the same.
    loop = Airbench(network, images, labels, batch_size, epochs=ROUNDS + 1)

    def rate() -> float:
        begin = time.perf_counter()
        loop.train_epoch()
        return len(images) / (time.perf_counter() - begin)

    return rate


def main() -> None:
    """Print a table for each preset."""
    resolve.register()
    for preset in sys.argv[1:] or PRESETS:
        with tempfile.TemporaryDirectory() as folder:
            own = prepare(preset.split(), folder)[1]
        batch_size, precision = own["batch_size"], own["precision"]
        fp32 = f"{preset} precision=32-true"
        sides: dict[str, Callable[[], float]] = {
            "usual recipe": partial(throughput.baseline, fp32, batch_size),
            "airbench's recipe": airbench(fp32, batch_size),
            "ours, 32-true": partial(throughput.ours, fp32, batch_size),
        }
        if precision != "32-true":
            sides[f"ours, {precision}"] = partial(throughput.ours, preset, batch_size)
        figures = interleave(sides, ROUNDS)
        print(f"## An epoch of {preset}, {batch_size} images a step\n")
        print(table(figures, "images/s", 0, "airbench's recipe"))
        print(conditions(ROUNDS), flush=True)


if __name__ == "__main__":
    main()
