"""``python -m cifar_lightning.export``; the command is `cli.export`."""

from cifar_lightning.cli.start import export

if __name__ == "__main__":
    export()
