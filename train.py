"""``python train.py``; the command is `cifar_lightning.cli.train`."""

from cifar_lightning.cli.start import train as main

if __name__ == "__main__":
    main()
