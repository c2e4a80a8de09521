"""``python -m cifar_lightning.measure``; the command is `cli.measure`."""

from cifar_lightning.cli.start import measure

if __name__ == "__main__":
    measure()
