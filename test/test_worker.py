"""Newest item wins, latency stays bounded, stopping waits for the item in work."""

import threading

from marigold_ros.worker import NewestOnly


class Work:
    """Does one item at a time, each only when told to."""

    def __init__(self):
        self.begun, self.go, self.done = threading.Semaphore(0), threading.Semaphore(0), []

    def __call__(self, item):
        self.begun.release()
        assert self.go.acquire(timeout=10)
        self.done.append(item)


def test_items_are_done_in_order_when_there_is_time():
    done, each = [], threading.Semaphore(0)
    worker = NewestOnly(lambda item: (done.append(item), each.release()), "test")
    for item in range(5):
        worker.put(item)
        assert each.acquire(timeout=10)
    worker.stop()
    assert done == [0, 1, 2, 3, 4]
    assert worker.dropped == 0


def test_only_the_newest_of_the_waiting_items_is_done_and_the_others_are_counted():
    work = Work()
    worker = NewestOnly(work, "test")
    worker.put("first")
    assert work.begun.acquire(timeout=10)
    for item in ("old", "older", "newest"):
        worker.put(item)
    work.go.release(2)
    assert work.begun.acquire(timeout=10)
    worker.stop()
    assert work.done == ["first", "newest"]
    assert worker.dropped == 2


def test_stopping_finishes_the_item_in_work_and_forgets_the_waiting_one():
    work = Work()
    worker = NewestOnly(work, "test")
    worker.put("in work")
    assert work.begun.acquire(timeout=10)
    worker.put("waiting")
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    assert stopper.is_alive()
    work.go.release()
    stopper.join(10)
    assert not stopper.is_alive()
    assert work.done == ["in work"]
