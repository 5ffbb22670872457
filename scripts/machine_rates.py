"""What a machine can do, and what a computation took of it: for the benchmarks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import torch


def gemm_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """The best rate of a square matrix product, FLOP/s, over a few tries."""
    size = 2048 if device == "cpu" else 8192
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)

    def product() -> None:
        left @ right
        if device != "cpu":
            torch.accelerator.synchronize()

    product()
    return 2 * size**3 / min(seconds_of(product) for _ in range(8))


def seconds_of(run: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass
class Memory:
    """Resident memory of some processes while something ran, bytes."""

    before: int = 0
    peak: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)


def children() -> set[int]:
    """Process ids of everything that this process has started."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


@contextmanager
def watched(pids: set[int] | None = None) -> Iterator[Memory]:
    """Sample the resident memory of processes, this one by default."""
    processes = [psutil.Process(pid) for pid in pids or {os.getpid()}]

    def total() -> int:
        found = 0
        for process in processes:
            try:
                found += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return found

    memory = Memory(before=total())
    memory.peak = memory.before

    def sample() -> None:
        while not memory._stop.wait(0.02):
            memory.peak = max(memory.peak, total())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        memory._stop.set()
        thread.join()
        memory.peak = max(memory.peak, total())
