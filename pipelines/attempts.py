"""Runs Ray Train until the training is done: what fails is started again, from the newest checkpoint.

Ray restarts its workers after one of them was lost, ``train.max_failures`` times.  An error of Ray's own controller,
such as a node that is lost while workers start, ends its attempt; it is followed by as many others.
"""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ray.train import (
    ControllerError,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.base_trainer import GenDataset
from ray.train.torch import TorchConfig, TorchTrainer

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.render.parallel import available_cores
from pipelines.division import Dealing
from pipelines.ingest import datasets_for
from pipelines.run_log import log_level, run_id
from pipelines.worker import train_worker

log = logging.getLogger(__name__)

ATTEMPT = "attempt-"  # Ray's records of one start of a training
ANSWER_SECONDS = 120.0  # that a worker may take to answer Ray at least: it imports and compiles when it starts


def fit(
    config: Config, run_dir: Path, dealing: Dealing, start: Path | None, callbacks: Sequence[UserCallback] = ()
) -> None:
    """Train to the end of the budget or a stop; raises :class:`InputError` where no attempt gets there.

    Ray's controller tells ``callbacks`` what the workers report at every save.
    """
    failures = 0
    while True:
        try:
            problem = _attempt(config, run_dir, dealing, start, callbacks).return_value
            break
        except ControllerError as error:
            failures += 1
            if failures > config.train.max_failures:
                raise _given_up(error, run_dir) from error
            log.warning("Ray could not keep its workers (%s); starting them again.", _last_line(error))
        except TrainingFailedError as error:
            raise _given_up(error, run_dir) from error
    if problem:
        raise InputError(problem)


def _attempt(
    config: Config, run_dir: Path, dealing: Dealing, start: Path | None, callbacks: Sequence[UserCallback]
) -> Result:
    train = config.train
    # peers notice one that stands still in a collective; Ray notices any other, but not one that is slow to start
    patience = max(ANSWER_SECONDS, train.collective_timeout_seconds)
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(patience))
    datasets, data_config = datasets_for(config, run_dir, dealing)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config,
            "run_dir": run_dir,
            "partition_of": dealing.partition_of,
            "loads_of": {count: dealing.loads(count) for count in range(train.least_workers, train.most_workers + 1)},
            "start": start,
            "pixels": dealing.pixels,
            "log": (run_id(run_dir), log_level()),
            "datasets": tuple(datasets),
            "threads": available_cores() if train.num_workers == 0 else max(1, int(train.cpus_per_worker)),
        },
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker={"CPU": train.cpus_per_worker}
            | ({"GPU": train.gpus_per_worker} if train.gpus_per_worker else {}),
            elastic_resize_monitor_interval_s=train.resize_seconds,
        ),
        run_config=RunConfig(
            # our own checkpoints say where a run stands; Ray's record of one attempt must not revive another
            name=f"{ATTEMPT}{int(time.time() * 1000)}",
            storage_path=str(run_dir / "ray"),
            failure_config=FailureConfig(max_failures=train.max_failures),
            callbacks=list(callbacks),
        ),
        torch_config=TorchConfig(timeout_s=int(train.collective_timeout_seconds)),
        datasets=cast(dict[str, GenDataset], datasets),  # local mode takes iterators
        dataset_config=data_config,
    )
    return trainer.fit()


def _given_up(error: TrainingFailedError, run_dir: Path) -> InputError:
    return InputError(
        f"Training failed on a worker ({_last_line(error)}); the log above tells where, and the same command continues "
        f"from the last checkpoint of {run_dir}."
    )


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
