"""``python -m cifar_lightning.predict``; the command is `cli.predict`."""

from cifar_lightning.cli.predict import main

if __name__ == "__main__":
    main()
