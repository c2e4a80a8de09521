"""``python -m cifar_lightning.report``; the command is `cli.report`."""

from cifar_lightning.cli.report import main

if __name__ == "__main__":
    main()
