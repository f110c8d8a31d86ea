"""Runs a tuning to its last step, however often it is stopped: checkpoints, metrics log, samples and the result."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..errors import TuningError
from ..weights.tensor_file import write_tensor_file
from .accelerator import fail_together
from .adapter import export_lora, make_lora
from .checkpoints import Checkpoints, refuse_checkpoint_folder
from .metrics_log import MetricsLog
from .sample import write_sample
from .trainer import Trainer

log = logging.getLogger(__name__)

METRICS_FILE = "curve.jsonl"
ADAPTER_FILE = "adapter.safetensors"  # the result of a tuning
WEIGHTS_FILE = "weights.safetensors"  # the result if it tunes all weights (rank 0)
STEPS_KEY = "longlive_tuned_steps"  # in the metadata of a tuning's result


def run_tuning(
    trainer: Trainer, folder: Path, *, watch: Callable[[int, dict[str, float]], object] = lambda step, metrics: None
) -> Path:
    """Tune to the last step, from the newest checkpoint in `folder` if there is one; return the path of the result.

    `watch` is called after every step with its number and metrics. If it raises, the tuning saves a checkpoint and
    ends with that error. Raises TuningError.
    """
    refuse_checkpoint_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TuningError(f"the folder {folder} cannot be made: {error.strerror}; choose another folder") from error
    checkpoints, metrics_log = Checkpoints(trainer, folder), MetricsLog(folder / METRICS_FILE)
    options, accelerator = trainer.config.run, trainer.accelerator
    is_main = accelerator.is_main_process
    with fail_together(accelerator):
        if checkpoints.resume():
            log.info("resumed at step %d", trainer.num_steps)
        if is_main:
            metrics_log.truncate(trainer.num_steps)
    while trainer.num_steps < options.steps:
        started = time.monotonic()
        metrics = trainer.step()
        metrics["seconds"] = round(time.monotonic() - started, 3)
        accelerator.log(metrics, step=trainer.num_steps)
        try:
            with fail_together(accelerator):
                if is_main:
                    metrics_log.add(trainer.num_steps, metrics)
            watch(trainer.num_steps, metrics)
        except BaseException:
            checkpoints.save()
            raise
        if trainer.num_steps % options.save_every == 0 or trainer.num_steps == options.steps:
            checkpoints.save()
            with fail_together(accelerator):
                if is_main:
                    export_result(trainer, folder)
        if is_main and options.sample_every and trainer.num_steps % options.sample_every == 0:
            write_sample(trainer, folder / f"sample-{trainer.num_steps:06d}.mp4")
    with fail_together(accelerator):
        if is_main:
            export_result(trainer, folder)
    return folder / choose_result_name(trainer)


def choose_result_name(trainer: Trainer) -> str:
    return ADAPTER_FILE if trainer.config.learn.rank else WEIGHTS_FILE


def export_result(trainer: Trainer, folder: Path) -> Path:
    """Write the tuned weights as they are now: an adapter, or all weights. Raises TuningError if the disk refuses."""
    metadata = {STEPS_KEY: str(trainer.num_steps)}
    learn = trainer.config.learn
    path = folder / choose_result_name(trainer)
    try:
        if learn.rank:
            export_lora(make_lora(trainer.tuned_weights, learn.alpha), path, metadata)
        else:
            weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in trainer.tuned_weights.items()}
            write_tensor_file(path, weights, metadata)
    except (OSError, SafetensorError) as error:
        raise TuningError(f"{path} cannot be written: {error}; free some space, the checkpoint is good") from error
    return path
