"""One training run from its configuration to its rows: fit, test, measure."""

import logging
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from omegaconf import DictConfig
from safetensors.torch import save as to_bytes
from tqdm.contrib.logging import logging_redirect_tqdm

from cifar_lightning.benchmark.load import RunData
from cifar_lightning.benchmark.measure import Measured, measure_missing
from cifar_lightning.benchmark.network import trained_network
from cifar_lightning.comparison.publish import attempt, check_complete, publish
from cifar_lightning.config import schema
from cifar_lightning.config.presets import set_over_options
from cifar_lightning.errors import Interrupted, NotFinite, reason_of
from cifar_lightning.runs import resolve
from cifar_lightning.runs.completed import lacks_test, meet_again, show_files
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Network, Run
from cifar_lightning.runs.weights import read_weights
from cifar_lightning.system import progress, signals
from cifar_lightning.system.files import write_atomically
from cifar_lightning.system.locks import alone
from cifar_lightning.system.openmp_waiting import computing
from cifar_lightning.training.build import Experiment, build
from cifar_lightning.training.failure import classify_failure, record_failure
from cifar_lightning.training.loggers import begin_logging, keep_logging
from cifar_lightning.training.resume import ResumeState, prepare_run

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Bring the configured run to its rows of the results table.

    Whatever is done already is not done again: a finished run is shown, an interrupted one
    continued. Of several processes the first one decides, and the others do the same.

    Args:
        cfg: Composed and checked by `rules.check`.

    Raises:
        UserError: If the configuration or the input is wrong; nothing was trained then.
        RunFailed: If the training failed; ``run.json`` says why.
        Interrupted: If the user stopped it.
    """
    config = resolve.resolve(cfg)
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    choices = {key: str(hydra.runtime.choices[key]) for key in schema.NAMING_GROUPS}
    experiment = build(config, folder)
    with ExitStack() as stack:
        stack.enter_context(computing())
        stack.enter_context(progress.shown(config["trainer"].get("enable_progress_bar", True)))
        if experiment.is_global_zero:
            stack.enter_context(
                alone(RunFolder(folder).lock, f"{folder.name}: already running in another process")
            )
            for line in set_over_options(cfg):
                log.warning("%s", line)
        try:
            _run(experiment, config, choices)
        except BaseException as error:
            ending = classify_failure(experiment, error, config)
            if ending is None:
                raise
            if experiment.is_global_zero:
                record_failure(experiment, ending)
            elif isinstance(ending, Interrupted | NotFinite):
                return  # the first process says so for all
            raise ending from error


def _run(experiment: Experiment, config: dict[str, Any], choices: dict[str, str]) -> None:
    if config["trainer"].get("fast_dev_run"):
        _try_batches(experiment, test=config["test"])
        return
    start = prepare_run(experiment, config, choices) if experiment.is_global_zero else None
    if experiment.trainer.world_size > 1:
        start = _agree(experiment.trainer, start)
    assert start is not None
    trained = start.record.status == "finished"
    with signals.deferred():
        record = start.record if trained else fit(experiment, start)
        if lacks_test(record, config):
            record = test(experiment, record)
        if not trained:
            experiment.save(replace(record, status="finished"))
    if experiment.is_global_zero:
        _complete(experiment, config, trained)


def _try_batches(experiment: Experiment, test: bool) -> None:
    """Take a few batches of each split through everything that this training run does."""
    trainer = experiment.trainer
    experiment.data.prepare_data()
    experiment.data.check_batches(trainer)
    with signals.deferred():
        trainer.fit(experiment.classifier, datamodule=experiment.data)
        if test:
            trainer.test(experiment.classifier, datamodule=experiment.data, verbose=False)
    if experiment.is_global_zero:
        log.info(
            "fast_dev_run: %s work (batches of each: %d); "
            "nothing is kept: no run, no row, no checkpoint",
            "training, validation and test" if test else "training and validation",
            trainer.num_training_batches,
        )


def _complete(experiment: Experiment, config: dict[str, Any], trained: bool) -> None:
    """Do what follows a finished training run: measure what is missing, publish and show it.

    None of it can take the training run back: what goes wrong is said in the end, and the same
    command does it again. After a signal, what was measured is in the table.

    Args:
        experiment: Of the run, which is finished.
        config: Resolved.
        trained: Whether it was finished already when this command began.

    Raises:
        RunFailed: If something went wrong.
    """
    folder, outputs = experiment.folder, Path(config["outputs"])
    failures = [*dict.fromkeys(experiment.failures)]
    measured = Measured()
    if trained:
        with attempt("giving it the ID", failures):
            meet_again(folder, Run.load(folder), config)
    try:
        with attempt("measuring", failures), signals.deferred():
            known = RunData(known={folder: experiment.data})
            measured = measure_missing(
                [folder], experiment.benchmark, experiment.device, outputs, known
            )
    finally:
        failures += [f"measuring: {error}" for error in [measured.error] if error]
        failures += [
            f"measuring {one.variant}: {one.reason}" for one in measured.measurements if one.failed
        ]
        failures += publish(outputs, [folder], draw=True)
    signals.check()  # what was measured until then is in the table
    with attempt("showing its files", failures):
        show_files(folder)
    check_complete(folder, failures)


def fit(experiment: Experiment, start: ResumeState) -> Run:
    """Train to the end and write the chosen backbone's weights."""
    trainer, record = experiment.trainer, start.record
    begin_logging(trainer.loggers, record.config, start.step if start.checkpoint else None)
    if experiment.is_global_zero:
        RunFolder(experiment.folder).link_board(record.label)
    with logging_redirect_tqdm():
        for handler in logging.root.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.INFO)  # tqdm's has none of its own
        trainer.fit(
            experiment.classifier,
            datamodule=experiment.data,
            ckpt_path=str(start.checkpoint) if start.checkpoint else None,
            weights_only=True,
        )
    score = experiment.best.best_model_score if experiment.best else None
    if experiment.is_global_zero:
        chosen = experiment.chosen.best_model_path
        state = torch.load(chosen, map_location="cpu", weights_only=True)["state_dict"]
        weights = {name.removeprefix("backbone."): one.contiguous() for name, one in state.items()}
        content = to_bytes(weights, Network.of(record).metadata)
        write_atomically(RunFolder(experiment.folder).weights, content)
        record = replace(record, weights=sha256(content).hexdigest())
    return experiment.save(
        replace(
            record,
            val_acc=None if score is None else percent(float(score)),
            val_images=None if score is None else len(experiment.data.indices["val"]),
            train_seconds=experiment.timer.time_elapsed("train"),
        )
    )


def test(experiment: Experiment, record: Run) -> Run:
    """Test the chosen weights once; from here on the run is finished, whatever follows."""
    classifier, checkpoint = experiment.classifier, experiment.chosen.best_model_path
    if not checkpoint:  # it was trained earlier
        keep_logging(experiment.trainer.loggers)
        weights = RunFolder(experiment.folder).weights
        content = read_weights(experiment.folder, record)
        chosen = trained_network(Network.of(record), content, weights)
        classifier.backbone.load_state_dict(chosen.state_dict())
    try:
        experiment.trainer.test(
            classifier,
            datamodule=experiment.data,
            ckpt_path=checkpoint or None,
            weights_only=True,
            verbose=False,
        )
    except Exception as error:
        if classifier.tested is None:
            raise
        # Lightning has still called loggers, callbacks and a profiler.
        log.debug("failed behind the test", exc_info=True)
        experiment.failures.append(f"ending the test: {reason_of(error)}")
    assert classifier.tested is not None
    test_acc = percent(float(classifier.tested["test/acc"]))
    return experiment.save(replace(record, status="finished", test_acc=test_acc))


def percent(fraction: float) -> float:
    """Turn a float32 fraction into percent without its rounding error."""
    return round(100 * fraction, 4)


def _agree(trainer: Trainer, start: ResumeState | None) -> ResumeState:
    """Start the other processes, unless something else did, and tell them where to begin."""
    strategy = trainer.strategy
    assert strategy.launcher is not None
    # The same launching happens again, without new processes, when the trainer fits.
    strategy.launcher.launch(strategy.setup_environment, trainer=trainer)
    agreed = strategy.broadcast(start)
    assert agreed is not None
    if not trainer.is_global_zero:
        for name in (None, "cifar_lightning"):  # ours has a level of its own
            logging.getLogger(name).setLevel(logging.ERROR)
    return agreed
