"""Train one light network on CIFAR-10 and add its row to the results table.

    python train.py model=mobilenetv3 optim=sgd

``python train.py --help`` lists every setting.
"""

from omegaconf import DictConfig

from cifar_lightning.cli.command import entry_point
from cifar_lightning.comparison.publish import publish_finished
from cifar_lightning.config.schema import TrainConfig


def _train(config: DictConfig) -> None:
    """Bring the configured run to its row of the results table."""
    if publish_finished(config):
        return
    from cifar_lightning.training.run import run  # imports torch: only when there is work

    run(config)


main = entry_point("train", TrainConfig, _train, sweeps=True)
