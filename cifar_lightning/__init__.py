"""Train light networks on CIFAR-10 from scratch and measure how fast they answer."""
