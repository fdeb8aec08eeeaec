"""Threads that compute independent things side by side, each with one of PyTorch's own threads.

On a CPU several products at a time, of one thread each, take less time than the same ones in turn
with all threads: no operation waits for the slowest of its parts, and none is too small to be
shared. Each has the bits that one thread gives, however many there are.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Barrier
from typing import Any

import torch

LARGE = 2**26  # bytes a product needs from which on threads gain more than they wait for Python


class Workers:
    """Some threads, or only the calling one.

    Parameters
    ----------
    count : int
        Threads at work at the same time.
    single : bool
        Each uses one of PyTorch's threads. Otherwise the calling thread does all in turn, with as
        many of them as it has: the only way to use them all where there is room for one thing.
    """

    def __init__(self, count: int = 1, *, single: bool = False):
        self.single = single
        self.limit(count)

    @classmethod
    def fitting(
        cls, device: torch.device, product: int, graphs: int, room: int, left: int | None
    ) -> "Workers":
        """As many as PyTorch has threads on a CPU, where that is faster and memory allows.

        Parameters
        ----------
        device : torch.device
        product, graphs : int
            Bytes that a product needs, and all graphs.
        room : int
            Bytes in which graphs and products of all threads have to fit for products to be made
            side by side. Their bits depend on that, so this must be the same in each run.
        left : int or None
            Bytes that there are for products. Fewer workers where it is not enough for all.
        """
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        if threads == 1 or product < LARGE or graphs + threads * product > room:
            return cls()
        return cls(threads if left is None else min(threads, left // product), single=True)

    def limit(self, count: int) -> None:
        """Have so many threads from now on, at least one."""
        self.count, self._pool = max(1, count), None
        if self.single:
            threads, begun = torch.get_num_threads(), Barrier(self.count + 1)
            self._pool = ThreadPoolExecutor(self.count, "blockspectra", _use_one_thread)
            for _ in range(
                self.count
            ):  # all threads, now: each sets what other new ones start with
                self._pool.submit(begun.wait)
            begun.wait()
            torch.set_num_threads(threads)

    def submit(self, function: Callable, *given: Any) -> Future:
        """Have a function called by a thread that is `single`."""
        return self._pool.submit(function, *given)

    def map(self, function: Callable, *arguments: Iterable) -> list[Any]:
        """Call a function with each set of arguments; the results in their order.

        The first error is raised when no call is under way any more.
        """
        if self._pool is None:
            return [function(*given) for given in zip(*arguments, strict=True)]
        calls = [self.submit(function, *given) for given in zip(*arguments, strict=True)]
        wait(calls)
        return [call.result() for call in calls]


def _use_one_thread() -> None:
    torch.get_num_threads()  # else the first operation takes the number that was set last anywhere
    torch.set_num_threads(1)
