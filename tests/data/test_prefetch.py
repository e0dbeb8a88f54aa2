import itertools
import threading
import time
import traceback

import pytest

from sem_jax.data import Prefetch


def test_results_come_in_order_and_none_is_lost():
    def make(step):
        time.sleep(0.002 * (step % 3))
        return step * step

    with Prefetch(make, range(5, 45), depth=3) as batches:
        assert list(batches) == [step * step for step in range(5, 45)]


def test_it_works_ahead_but_no_further_than_its_depth():
    made = []
    with Prefetch(made.append, itertools.count(), depth=3) as batches:
        for consumed in range(1, 5):
            next(batches)
            deadline = time.monotonic() + 5
            while len(made) < consumed + 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert made == list(range(consumed + 3))


def test_started_anew_it_gives_nothing_that_was_made_before():
    factor = 1

    def make(step):
        return factor * step

    with Prefetch(make, range(10), depth=3) as batches:
        assert [next(batches) for _ in range(4)] == [0, 1, 2, 3]
        factor = -1
        batches.restart(range(4, 7))
        assert list(batches) == [-4, -5, -6]


def test_an_error_comes_in_its_place_with_the_traceback_of_the_thread():
    def fails_at_three(step):
        if step == 3:
            raise RuntimeError("no such batch")
        return step

    with Prefetch(fails_at_three, range(10)) as batches:
        assert [next(batches) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(RuntimeError, match="no such batch") as caught:
            next(batches)
    assert "fails_at_three" in "".join(traceback.format_tb(caught.value.__traceback__))


def test_closing_stops_the_thread_and_the_iteration():
    before = threading.active_count()
    batches = Prefetch(lambda step: step, itertools.count())
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
    assert list(batches) == []
    batches.close()


def test_leaving_on_an_error_stops_the_thread():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), Prefetch(lambda step: step, itertools.count()) as batches:
        1 / next(batches)
    assert threading.active_count() == before


def test_fewer_steps_than_its_depth():
    with Prefetch(str, range(1), depth=8) as batches:
        assert list(batches) == ["0"]
