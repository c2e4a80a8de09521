"""``python -m cifar_lightning.train``; the command is `cli.train`."""

from cifar_lightning.cli.start import train

if __name__ == "__main__":
    train()
