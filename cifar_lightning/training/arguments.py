"""Which arguments of Lightning's Trainer work here, and which devices are there."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from cifar_lightning.config.components import check_component
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.system.cores import usable_cores

# Arguments that a configuration has no say in, each with the reason. Every other one has its
# effect; a test holds both against the Trainer's signature.
REFUSED = {
    "barebones": "would leave out the checkpoints and metrics that a run consists of",
    "callbacks": "set the group instead: callbacks=early_stopping",
    "default_root_dir": "outputs=... says where files go",
    "enable_autolog_hparams": "the loggers get the run's settings in any case",
    "enable_checkpointing": "the best checkpoint is what is tested",
    "enable_model_summary": "the run's first line says parameters and MACs",
    "limit_predict_batches": "a training run predicts nothing",
    "limit_test_batches": "the test accuracy is that of all test images",
    "logger": "set the group instead: logger=csv",
    "model_registry": "checkpoints stay in the run's folder",
    "num_sanity_val_steps": "fast_dev_run=true tries a batch of each split",
    "overfit_batches": "each epoch has an order of its own; fast_dev_run=true tries a few batches",
    "plugins": "checkpoints are written atomically by a plugin of the project's",
    "reload_dataloaders_every_n_epochs": "the images lie in memory and stay the same",
    "sync_batchnorm": "each process has images enough for its own BatchNorm statistics",
    "use_distributed_sampler": "the data module divides the images among the processes",
    "val_check_interval": "checkpoints belong to the end of an epoch, and so does validation; "
    "check_val_every_n_epoch=2 halves it",
}


def check_trainer(config: Mapping[str, Any]) -> None:
    """See that each argument of the Trainer can have its effect.

    Raises:
        UserError: With the reason if one can't.
    """
    node, epochs = config["trainer"], config["epochs"]
    for name, reason in REFUSED.items():
        if name in node:
            key = f"trainer.{name}"
            raise UserError(f"{key}={node[name]}: can't be set: {reason}", key)
    check_component("trainer", node, tuple(REFUSED))
    every = node.get("check_val_every_n_epoch", 1)
    if every > epochs and validates(config):
        raise bad_value("trainer.check_val_every_n_epoch", every, f"1 to {epochs}, the epochs")
    if "gradient_clip_algorithm" in node and node.get("gradient_clip_val") is None:
        raise UserError("trainer.gradient_clip_algorithm: needs trainer.gradient_clip_val")
    if "log_every_n_steps" in node and not config["callbacks"]:
        raise UserError(
            "trainer.log_every_n_steps: metrics are logged once an epoch; it is for callbacks that "
            "log steps, such as callbacks=lr_monitor"
        )
    for name in ("min_epochs", "min_steps"):
        if name in node and "max_steps" in node:
            raise UserError(f"trainer.{name}: can't be set together with trainer.max_steps")
        if name in node and not (config["callbacks"] or "max_time" in node):
            raise UserError(
                f"trainer.{name}: nothing ends this training run early; "
                "it is for callbacks=early_stopping and trainer.max_time"
            )
    if node.get("min_epochs", 0) > epochs:
        raise bad_value("trainer.min_epochs", node["min_epochs"], f"at most {epochs}, the epochs")


def validates(config: Mapping[str, Any]) -> bool:
    """Tell whether a training run looks at held-out images."""
    limit = config["trainer"].get("limit_val_batches")
    return bool(config["data"]["val_fraction"] > 0 and (limit is None or limit > 0))


def check_devices(config: Mapping[str, Any]) -> None:
    """See that the devices are there and can compute as asked.

    Raises:
        UserError: If not.
    """
    trainer = config["trainer"]
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", 1)
    gpus = torch.cuda.device_count()
    on_cpu = accelerator == "cpu" or (
        accelerator == "auto" and not gpus and not torch.backends.mps.is_available()
    )
    if accelerator in ("gpu", "cuda") and not gpus:
        raise bad_value("trainer.accelerator", accelerator, "cpu or auto: there is no GPU here")
    available = usable_cores() if on_cpu else max(gpus, 1)
    counted = isinstance(devices, int) and devices != -1
    if counted and not 1 <= devices <= available:
        raise bad_value("trainer.devices", devices, f"1 to {available} on this machine")
    if "TORCHELASTIC_RUN_ID" in os.environ and counted:
        started = int(os.environ["WORLD_SIZE"]) // trainer.get("num_nodes", 1)
        if devices != started:
            raise bad_value("trainer.devices", devices, f"{started}, what torchrun started a node")
    if on_cpu and config["data"].get("device") == "gpu":
        raise bad_value("data.device", "gpu", "cpu: the training has no GPU")
    if on_cpu and config["compile"] == "reduce-overhead":
        raise bad_value("compile", "reduce-overhead", "false or true: CUDA graphs need a GPU")
    if on_cpu and config["precision"] == "16-mixed":
        raise bad_value("precision", "16-mixed", "32-true or bf16-mixed on a CPU")
