"""Work ahead of need: in order, bounded, errors where they belong."""

from __future__ import annotations

import threading
import time

import pytest

from evoprompt.ahead import Ahead, ahead


def test_results_come_in_order_and_no_more_than_so_many_are_ready_ahead() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.002 * (3 - item % 3))
        return item * item

    results = ahead(work, iter(range(20)), 4)
    for k, result in enumerate(results):
        assert result == k * k and len(begun) <= k + 1 + 4
    assert sorted(begun) == list(range(20))


def test_items_are_read_here_and_worked_on_elsewhere() -> None:
    readers, workers = set(), set()

    def items():  # type: ignore[no-untyped-def]
        for k in range(5):
            readers.add(threading.current_thread())
            yield k

    list(ahead(lambda _: workers.add(threading.current_thread()), items(), 2))
    assert readers == {threading.current_thread()} and threading.current_thread() not in workers


def test_work_goes_on_while_the_result_before_is_used() -> None:
    second = threading.Event()
    results = ahead(lambda k: k or second.set() or 0, [1, 0, 2], 2)
    assert next(results) == 1
    assert second.wait(5)  # begun before it was asked for
    assert list(results) == [0, 2]


def test_an_error_is_raised_where_its_result_would_have_come() -> None:
    results = ahead(lambda k: 1 // k, [1, 1, 0, 1], 3)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_what_was_started_is_done_once_and_what_was_not_is_done_when_taken() -> None:
    done: list[str] = []
    work = Ahead(lambda key: done.append(key) or key.upper(), limit=2)  # type: ignore[func-returns-value]
    work.start("abc")  # c is beyond the limit
    work.start("ab")
    assert work.take("acb") == ["A", "C", "B"]
    assert sorted(done) == ["a", "b", "c"]
    assert work.take("a") == ["A"] and done.count("a") == 2
