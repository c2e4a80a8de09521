"""Search the settings of a training run for the best validation accuracy.

    python tune.py model=mobilenetv3 n_trials=20

The command is in `cifar_lightning.cli.tune`.
"""

from cifar_lightning.cli.start import tune as main

if __name__ == "__main__":
    main()
