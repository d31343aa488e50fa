"""The processes of a data-parallel run: `torchrun --nproc-per-node 2 experiments/...`.

The first one plans, evaluates, reports and writes; the others only train. Each step every process takes its part of
the same batch, and what it adds to the loss is weighted so that the parts add up to the loss of the whole batch: the
learning curve is that of one process, up to the order of sums and the numbers that dropout draws.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from poh_ext.tasks import MazeTasks
from poh_ext.training.config import BenchmarkConfig, ConfigError
from poh_ext.training.targets import Passes, part_weights


def choose_device(config: BenchmarkConfig) -> torch.device:
    """CUDA, then MPS, then the CPU, unless the options name one; ConfigError if that one isn't there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = "cpu" if config.cpu else config.device
    if wanted == "auto":
        wanted = next(name for name, there in available.items() if there)
    if not available[wanted]:
        there = ", ".join(name for name, there in available.items() if there)
        raise ConfigError(f"--device {wanted}: torch {torch.__version__} sees no such device; here: {there}")
    return torch.device(wanted)


def cpu_has_bfloat16() -> bool:
    """True if this CPU multiplies bfloat16 natively (AVX-512 BF16 or AMX), usually at several times float32's speed,
    and oneDNN, whose products torch uses, may do so (ONEDNN_MAX_CPU_ISA can forbid it).

    Elsewhere bfloat16 is emulated and slower than float32.
    """
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if not any(getattr(torch.cpu, name, lambda: False)() for name in probes):
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_precision(config: BenchmarkConfig, device: torch.device) -> str:
    """'float32' or 'bfloat16'; 'auto' takes bfloat16 where the hardware has it."""
    if config.precision != "auto":
        return config.precision
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cuda"
        else (device.type == "cpu" and cpu_has_bfloat16())
    )
    return "bfloat16" if native else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast for the model's forward pass; nothing in float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


TIMEOUT = timedelta(days=7)  # the others wait while the first evaluates; torchrun ends them all if one dies
POLL = 0.5  # seconds between looks at whether torchrun is there
GRACE = 300.0  # seconds that a process has to stop when torchrun has died


class WorkersLost(RuntimeError):
    """Other processes, of torchrun or Ray, died."""


@contextlib.contextmanager
def ending_with_torchrun(stop: Callable[[str], None]) -> Iterator[None]:
    """Call stop(reason) when torchrun dies, which started this process and would have ended it: nothing else does.

    Where that does not help, as while waiting for a process that is gone, the process ends after GRACE.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    parent, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            if os.getppid() != parent:
                stop("the death of torchrun")
                if not over.wait(GRACE):
                    os._exit(1)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@dataclass(frozen=True)
class Workers:
    """How many processes there are, which one this is, and where it computes (None: as the options say)."""

    count: int = 1
    rank: int = 0
    device: torch.device | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, item: Any) -> Any:
        """Return in every process the `item` of the first: plain objects and tensors on the CPU."""
        if self.count == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def collect(self, item: Any) -> list:
        """Return the `item` of each process, in the order of their ranks."""
        if self.count == 1:
            return [item]
        items = [None] * self.count
        dist.all_gather_object(items, item)
        return items

    def agree(self, wish: bool) -> bool:
        """True, in all processes, if any process has `wish`."""
        if self.count == 1:
            return wish
        flag = torch.tensor(int(wish), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def parallel(self, objective: nn.Module, *, static: bool = True) -> nn.Module:
        """The module with its gradients averaged over the processes, all starting from the first one's weights.

        `static`: each step's loss reaches the same parameters.
        """
        if self.count == 1:
            return objective
        # Either way there may be parameters that no loss reaches, which DDP would otherwise refuse.
        return nn.parallel.DistributedDataParallel(objective, static_graph=static, find_unused_parameters=not static)

    def part(self, batch: MazeTasks, config: BenchmarkConfig, passes: Passes) -> tuple[MazeTasks, Tensor | None, float]:
        """(this process's part, the weights of its terms, its share of the mazes): see Objective.forward.

        A process without a maze, where a batch is smaller than the number of processes, takes one with weight 0: it
        must take part in the exchange of gradients.
        """
        if self.count == 1:
            return batch, None, 1.0
        weights = part_weights(batch, config, passes)
        index = torch.arange(len(batch))[self.rank :: self.count]
        if len(index) == 0:
            return batch[:1], torch.zeros_like(weights), 0.0
        return batch[index], weights, len(index) / len(batch)

    def dismiss(self) -> None:
        """There is nothing more to train: ends `assist` in the others."""
        self.share(None)


ALONE = Workers()


@contextlib.contextmanager
def joined(config: BenchmarkConfig) -> Iterator[Workers]:
    """The processes that torchrun started, connected by nccl on CUDA and gloo on the CPU; else this one alone.

    Raises:
        ConfigError: the device cannot be shared out like that.
        WorkersLost: another process died.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    device = choose_device(config)
    local, count = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    if device.type == "mps":
        raise ConfigError(f"--device mps: torchrun started {count} processes, but there is one such device; use one")
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"--device cuda: torchrun started more processes here than there are GPUs ({torch.cuda.device_count()})"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    workers = Workers(count, dist.get_rank(), device)
    try:
        yield workers
        if workers.first:
            workers.dismiss()
    except ConfigError:
        if workers.first:
            workers.dismiss()
        raise
    except RuntimeError as error:
        if not _is_of_connection(error):
            raise
        reason = re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0]).split(". ")[0]  # without the place in its source
        raise WorkersLost(f"another process of torchrun died ({reason[:200]})") from error
    finally:  # after any other error the others may be amid an exchange: torchrun ends them
        # A model in a cycle of references holds its group, whose threads must end before Python does: they may hold
        # tensors, and to free one then aborts the process.
        gc.collect()
        dist.destroy_process_group()


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether an exchange between processes failed; gloo raises bare RuntimeErrors."""
    words = ("gloo", "Connection", "NCCL")
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and any(word in str(error) for word in words)
    )
