"""Train one light network on CIFAR-10 and add its row to the results table.

    python train.py model=mobilenetv3 optim=sgd

``python train.py --help`` lists every setting; the command is in `cifar_lightning.cli.train`.
"""

from cifar_lightning.cli.start import train as main

if __name__ == "__main__":
    main()
