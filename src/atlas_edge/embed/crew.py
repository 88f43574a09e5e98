"""Threads that decode, in the order in which they are asked: as many as bring something."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

from atlas_edge.system import hardware

Asked = TypeVar("Asked")
Given = TypeVar("Given")

MOST_THREADS = 16
_FIRST_THREADS = 2
_WAITING_SHARE = 0.05
# Twice as many threads stay where they bring so much more, or leave the encoder so much less to wait for: one that is
# nearly busy has no more to bring. None are added while those that are there fill the processor, and twice as many
# while they leave it idle: they wait for a share.
_GAIN, _LESS_WAITING, _FULL, _IDLE = 1.1, 0.5, 0.75, 0.2
# They are tried so often: what else the machine does may hide what they bring, and so does what was decoded before.
_TRIES = 3
_LONGER = 2


class Crew(Generic[Asked, Given]):
    """The decode threads of a slide: so many, or two, and more while the encoder waits for them and more bring more.

    Args:
        work: What a thread does with what it is asked.
        threads: How many; chosen when None.

    Attributes:
        size: How many are at work.
    """

    def __init__(self, work: Callable[[Asked], Given], threads: int | None) -> None:
        self._work = work
        self.size, self._most = threads or _FIRST_THREADS, threads or MOST_THREADS
        # A pool of the standard library cannot be made larger or smaller, and threads of one that waited for a place
        # would take what they are asked in any order.
        self._asked: SimpleQueue[tuple[Future[Given], Asked] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock, self._ended = threading.Lock(), False
        self._settled = threads is not None
        self._tried = 0
        # Their number before it was doubled, and what came of it: batches a second, and the share that was waited.
        self._before = (self.size, 0.0, 1.0)
        self._cores = hardware.usable_cores()
        self._waited_s, self._batches, self._since = 0.0, 0, time.perf_counter()
        self._computed_s = time.process_time()

    def submit(self, asked: Asked) -> "Future[Given]":
        """Ask for something, which a thread begins once all that was asked before has begun."""
        future: Future[Given] = Future()
        self._asked.put((future, asked))
        with self._lock:
            while len(self._threads) < self.size:
                # A daemon keeps no process that ends in the middle, such as by a second Ctrl-C, from ending.
                thread = threading.Thread(target=self._run, name="decode", daemon=True)
                thread.start()
                self._threads.append(thread)
        return future

    def result(self, future: "Future[Given]") -> Given:
        """What was given, after which the crew may be of another size."""
        begun = time.perf_counter()
        found = future.result()
        now = time.perf_counter()
        self._waited_s, self._batches = self._waited_s + now - begun, self._batches + 1
        # Each thread has brought something; after a vain try, several times.
        if not self._settled and self._batches > self.size * (1 + _LONGER * self._tried):
            self._judge(now - self._since)
            self._waited_s, self._batches, self._since = 0.0, 0, now
            self._computed_s = time.process_time()
        return found

    def close(self) -> None:
        """Wait for what is being done; the rest is cancelled."""
        with self._lock:
            self._ended = True
            threads = list(self._threads)
        for _ in threads:
            self._asked.put(None)
        for thread in threads:
            thread.join()

    def _run(self) -> None:
        while (task := self._asked.get()) is not None:
            future, asked = task
            if self._ended:
                future.cancel()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._work(asked))
                except BaseException as error:  # whoever asked is told
                    future.set_exception(error)
            with self._lock:
                if len(self._threads) > self.size and not self._ended:
                    self._threads.remove(threading.current_thread())
                    return

    def _judge(self, elapsed_s: float) -> None:
        rate, waited = self._batches / max(elapsed_s, 1e-9), self._waited_s / max(elapsed_s, 1e-9)
        computed = (time.process_time() - self._computed_s) / max(self._cores * elapsed_s, 1e-9)
        size, rate_before, waited_before = self._before
        if rate < _GAIN * rate_before and waited > _LESS_WAITING * waited_before:
            # The disk, the processor or the interpreter gives no more, or so it seems.
            self.size = size
            self._before = (size, 0.0, 1.0)
            self._tried += 1
            self._settled = self._tried == _TRIES
        elif waited > _WAITING_SHARE and self.size < self._most and computed < _FULL:
            if rate_before:
                self._tried = 0
            self._before = (self.size, rate, waited)
            self.size = min((4 if computed < _IDLE else 2) * self.size, self._most)
        else:
            # The encoder is what takes the time, or the processor has no more to give, as long as that is so.
            self._before = (self.size, 0.0, 1.0)
