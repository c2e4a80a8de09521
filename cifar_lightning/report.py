"""``python -m cifar_lightning.report``; the command is `cli.report`."""

from cifar_lightning.cli.start import report

if __name__ == "__main__":
    report()
