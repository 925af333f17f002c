"""One thread that works on the newest item only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class NewestOnly:
    """Hands items to `work` in a thread of its own; an item that is still waiting when a newer one comes is dropped.

    So latency stays bounded when items come faster than `work` is done with them. `dropped` counts. An exception in
    `work` is `work`'s own business: it must catch what it can.
    """

    def __init__(self, work: Callable[[Any], None], name: str) -> None:
        self.dropped = 0
        self._work = work
        self._waiting: Any = None
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        """Replace the waiting item; never blocks for longer than an assignment."""
        with self._changed:
            self.dropped += self._waiting is not None
            self._waiting = item
            self._changed.notify()

    def stop(self) -> None:
        """Forget the waiting item and return when the one in work is done."""
        with self._changed:
            self._stopped, self._waiting = True, None
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting is not None)
                if self._stopped:
                    return
                item, self._waiting = self._waiting, None
            self._work(item)
