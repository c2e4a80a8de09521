"""``python -m cifar_lightning.export``; the command is `cli.export`."""

from cifar_lightning.cli.export import main

if __name__ == "__main__":
    main()
