"""Several processes of one job, as torchrun and accelerate start them: who does what, and who writes."""

from __future__ import annotations

import os
import re
import resource
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from evoprompt.errors import EvopromptError, JudgeError

T = TypeVar("T")
R = TypeVar("R")
# The first process may measure for hours while the others wait. When a process dies, the launcher ends the job anyway.
PATIENCE = timedelta(hours=12)


def world() -> int:
    """How many processes share the work; 1 outside such a job."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0; process 0 alone writes and speaks."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the other processes of a job, if this is one of several (``WORLD_SIZE``, ``RANK``, ``LOCAL_RANK``).

    Args:
        device: where the judge shall be; of ``auto`` and ``cuda`` each process takes a GPU of its own.

    Yields:
        The device of this process.

    Raises:
        JudgeError: when the machine has fewer GPUs than processes, or all are sent to one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield device
        return
    if device.startswith("cuda:"):
        raise JudgeError(
            f"--device {device} would send all processes of this job to one GPU; give --device cuda, and each takes a "
            "GPU of its own, or choose among them with CUDA_VISIBLE_DEVICES."
        )
    cuda = torch.cuda.is_available() and device in ("auto", "cuda")
    if cuda:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise JudgeError(
                f"process {local} of this machine finds {torch.cuda.device_count()} GPUs; start at most as many "
                "processes a machine (--nproc_per_node), or give --device cpu."
            )
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    else:
        # transformers and accelerate ask for themselves whether there is a GPU.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    # accelerate always passes it on, and torch tells every process.
    warnings.filterwarnings("ignore", message=".broadcast_buffers. is deprecated", category=FutureWarning)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    yield device
    # Not after a failure: the others may wait for this process, and its end is what tells them.
    distributed.destroy_process_group()


def in_turns(items: Sequence[T], work: Callable[[T], R]) -> Iterator[R]:
    """Do the work of all items, item k in process k modulo their number, and give every process all results.

    A result does not depend on the number of processes, because each item is done whole by one of them.

    Args:
        items: the same in every process.
        work: item -> result.

    Yields:
        The results in the order of the items, as soon as every process has done one more.
    """
    for start in range(0, len(items), world()):
        turn = items[start : start + world()]
        yield from gathered(work(turn[rank()]) if rank() < len(turn) else None)[: len(turn)]


def own(items: Sequence[T]) -> Sequence[T]:
    """Those of the items that ``in_turns`` gives to this process, in its order."""
    return items[rank() :: world()]


def gathered(mine: R | None) -> list[Any]:
    """What every process has, in their order; all must call this."""
    if world() == 1:
        return [mine]
    every: list[Any] = [None] * world()
    distributed.all_gather_object(every, mine)
    return every


def from_first(work: Callable[[], R]) -> R:
    """Let the first process work and tell the others; all must call this.

    Raises:
        EvopromptError: what ``work`` raised, in the first process; the others end without a word.
    """
    if world() == 1:
        return work()
    told: list[Any] = [None, 1]
    if rank() == 0:
        try:
            told = [work(), None]
        except EvopromptError as error:
            told[1] = error.exit_code
            raise
        finally:
            distributed.broadcast_object_list(told)
    else:
        distributed.broadcast_object_list(told)
    if told[1] is not None:
        raise SystemExit(told[1])
    result: R = told[0]
    return result


@contextmanager
def first_of_machine() -> Iterator[None]:
    """One process of each machine does this before its others: it fills caches that they then read."""
    leads = os.environ.get("LOCAL_RANK", "0") == "0"
    if world() > 1 and not leads:
        distributed.barrier()
    yield
    if world() > 1 and leads:
        distributed.barrier()


def whole(mine: Tensor, rows: Tensor, size: int) -> Tensor:
    """Put the rows of a batch together that several processes have computed; all must call this.

    Gradients flow to the rows of this process alone, enlarged by the number of processes: where gradients are
    averaged over processes, their sum is what one process would have had.

    Args:
        mine: (R, A), the rows of this process; it may have more than ``rows``, those are left out.
        rows: (R,) int64, where they belong.
        size: rows of the batch.

    Returns:
        (size, A).
    """
    if world() == 1:
        return mine
    mine, rows = mine[: len(rows)], rows.to(mine.device)
    every = mine.new_zeros(size, mine.shape[1]).index_copy(0, rows, mine.detach())
    distributed.all_reduce(every)
    if mine.requires_grad:
        mine.register_hook(lambda gradient: gradient * world())  # type: ignore[no-untyped-call]
    return every.index_copy(0, rows, mine)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process so far, MiB: of the judge's GPU when it is on one, otherwise resident."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()
    return round(peak / 2**20, 1)


def resident_peak() -> int:
    """The most memory that this program has had resident, bytes."""
    status = Path("/proc/self/status")
    told = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8")) if status.is_file() else None
    if told:
        return 1024 * int(told[1])
    # Second best: it begins at the size of the program that started this one.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
