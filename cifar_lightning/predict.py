"""``python -m cifar_lightning.predict``; the command is `cli.predict`."""

from cifar_lightning.cli.start import predict

if __name__ == "__main__":
    predict()
