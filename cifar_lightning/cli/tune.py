"""Search the settings of a training run for the best validation accuracy.

    python tune.py model=mobilenetv3 n_trials=20

The space is in ``conf/tune.yaml``; everything that ``train.py`` takes can be given, too. Each trial
is an ordinary run. Killed and given again, it goes on.

    python tune.py search=front variant=onnx

searches networks instead: those that no other one is both faster and more accurate than.
"""

from omegaconf import DictConfig

from cifar_lightning.cli.command import entry_point
from cifar_lightning.config.schema import TuneConfig


def _tune(config: DictConfig) -> None:
    """Run trials until there are ``n_trials`` of them."""
    if config.variant is None and config.rungs is None:
        from cifar_lightning.sweeps.search import search

        search(config)
    else:
        from cifar_lightning.sweeps.front import search_front

        search_front(config)


main = entry_point("tune", TuneConfig, _tune)
