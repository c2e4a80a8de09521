"""``python -m cifar_lightning.tune``; the command is `cli.tune`."""

from cifar_lightning.cli.start import tune

if __name__ == "__main__":
    tune()
