"""``python -m cifar_lightning.measure``; the command is `cli.measure`."""

from cifar_lightning.cli.measure import main

if __name__ == "__main__":
    main()
