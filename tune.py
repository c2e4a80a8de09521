"""``python tune.py``; the command is `cifar_lightning.cli.tune`."""

from cifar_lightning.cli.start import tune as main

if __name__ == "__main__":
    main()
