"""Sweeps on Ray: every row for every seed is a task of its own, on this machine or on a cluster.

The driver plans, collects and writes results.json; a task trains and evaluates one row, with the same function, seed,
threads and precision as the serial run, so that the results are the same bit for bit on the same kind of machine. A
task whose worker dies is run again and goes on from its last checkpoint, where the retry sees the output folder.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from poh_ext.training.config import BenchmarkConfig, ConfigError
from poh_ext.training.loop import Diverged
from poh_ext.training.plan import PlannedRow
from poh_ext.training.progress import Interrupted, StopSignals
from poh_ext.training.trial import Outcome, Place, data_of, run_trial, trial_name
from poh_ext.training.workers import WorkersLost

__all__ = ["sweep"]

RETRIES = 5  # of a task whose worker died
GRACE = 60.0  # seconds that tasks have to write a checkpoint when the sweep is stopped
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of a change to come
    "RAY_DEDUP_LOGS": "0",  # each trial's own lines, and none of the escape codes that it marks repeated ones with
    "RAY_COLOR_PREFIX": "0",
}
Trial = tuple[PlannedRow, int]


def sweep(
    trials: list[Trial], config: BenchmarkConfig, place: Place, check: Callable[[], None]
) -> Iterator[tuple[PlannedRow, int, Outcome | Diverged]]:
    """The outcomes of the trials, as they come; of one whose loss is not finite the error that says so.

    Args:
        trials: rows with their seeds.
        config: `ray` says where: "local" starts Ray here and ends it afterwards, "auto" takes the cluster that this
            machine belongs to, anything else is the address of one.
        place: as for run_trial. On a cluster the folder should be one that all machines see.
        check: called twice a second; may raise Interrupted: running tasks then write a checkpoint.

    Raises:
        ConfigError: there is no such cluster.
        OSError: as raised by a trial.
        WorkersLost: the worker of a trial died once more than it is run again.
    """
    if not trials:
        return
    for name, value in _SETTINGS.items():  # read when ray is imported
        os.environ.setdefault(name, value)
    import ray

    _connect(ray, config)
    try:
        yield from _collect(ray, trials, place, check)
    finally:
        ray.shutdown()


def _connect(ray: Any, config: BenchmarkConfig) -> None:
    root = str(Path(__file__).resolve().parents[2])  # a checkout that is not installed is found by local workers
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    options = {"include_dashboard": False} if config.ray == "local" else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=config.ray,
            log_to_driver=True,
            logging_level="warning",
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
            **options,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--ray {config.ray}: no cluster there ({str(error).splitlines()[0]}); --ray local starts "
            "one on this machine"
        ) from error
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray's own would end the program at once
            signal.signal(number, handler)


def _collect(
    ray: Any, trials: list[Trial], place: Place, check: Callable[[], None]
) -> Iterator[tuple[PlannedRow, int, Outcome | Diverged]]:
    threads = torch.get_num_threads()
    needs = {"num_cpus": threads, "num_gpus": 1 if place.device.type == "cuda" else 0}
    totals = ray.cluster_resources()
    for name, need in (("CPU", needs["num_cpus"]), ("GPU", needs["num_gpus"])):
        if totals.get(name, 0) < need:
            raise ConfigError(
                f"--ray: a trial needs {need} {name} (as many as threads here: OMP_NUM_THREADS lowers "
                f"it), the cluster has {totals.get(name, 0):g}"
            )
    # A worker that is asked to end, by its machine say, raises Interrupted after a checkpoint: run again, too.
    task = ray.remote(max_retries=RETRIES, retry_exceptions=[Interrupted], **needs)(_task)
    waiting = {task.remote(planned, seed, place, threads): (planned, seed) for planned, seed in trials}
    try:
        while waiting:
            check()
            done, _ = ray.wait(list(waiting), timeout=0.5)
            for reference in done:
                planned, seed = waiting.pop(reference)
                yield planned, seed, _result(ray, reference, trial_name(planned, seed))
    except BaseException:  # GeneratorExit, too: what failed is then in who takes the results
        _stop(ray, list(waiting))
        raise


def _result(ray: Any, reference: Any, name: str) -> Outcome | Diverged:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Diverged):
            return error.cause
        raise error.cause if isinstance(error.cause, OSError) else error from error
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0][:200]
        raise WorkersLost(f"the worker of {name} died, and so in {RETRIES} more tries: {reason}") from error


def _stop(ray: Any, references: list) -> None:
    """Interrupt the tasks, which then write a checkpoint, and wait until they have."""
    for reference in references:
        ray.cancel(reference)
    deadline = time.monotonic() + GRACE
    while references and time.monotonic() < deadline:
        _, references = ray.wait(references, num_returns=len(references), timeout=1.0)


def _task(planned: PlannedRow, seed: int, place: Place, threads: int) -> Outcome:
    """Runs in a worker. Ray's cancelling arrives as SIGINT, as from a keyboard."""
    torch.set_num_threads(threads)
    with StopSignals() as stop:
        return run_trial(planned, seed, data_of(planned, seed), place, stop.check)
