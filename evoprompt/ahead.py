"""Work done ahead of need by a few threads: images are decoded and fitted while the judge computes."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Given = TypeVar("Given")
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")
_THREADS = min(4, os.cpu_count() or 1)


def ahead(work: Callable[[Given], Result], items: Iterable[Given], depth: int) -> Iterator[Result]:
    """Results in the order of the items, which are read in the caller's thread.

    Args:
        work: what to do with an item; must bear being called from several threads at once.
        items: any number of them.
        depth: results that may be ready, or in work, besides the one taken.
    """
    pool = ThreadPoolExecutor(_THREADS)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Ahead(Generic[Key, Result]):
    """The same where the order of need is only guessed: results wait until they are taken.

    Args:
        work: as for ``ahead``.
        limit: results that may wait or be in work; what is started beyond it is not done ahead.
    """

    def __init__(self, work: Callable[[Key], Result], limit: int) -> None:
        self._work, self._limit = work, limit
        self._pool = ThreadPoolExecutor(_THREADS)
        self._waiting: dict[Key, Future[Result]] = {}
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def start(self, keys: Iterable[Key]) -> None:
        """Have these done."""
        for key in keys:
            if key not in self._waiting and len(self._waiting) < self._limit:
                self._waiting[key] = self._pool.submit(self._work, key)

    def take(self, keys: Iterable[Key]) -> list[Result]:
        """Results of these, waiting for those that are not ready; an error of the work is raised here."""
        wanted = list(keys)
        begun = {key: self._waiting.pop(key) for key in wanted if key in self._waiting}
        futures = [begun.get(key) or self._pool.submit(self._work, key) for key in wanted]
        return [future.result() for future in futures]
