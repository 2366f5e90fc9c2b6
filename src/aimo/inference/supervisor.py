"""Keeps an engine running: loads it in a thread, and loads another when it fails."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread

from aimo.inference.errors import one_line
from aimo.inference.sampling import Sampler, result_of

CLOSE_S = 30  # for a failed engine to release its memory
RETRY_S = 2  # between two attempts to load


class Supervisor:
    """The engine that is running, or the one that is loading."""

    def __init__(
        self, load: Callable[[], Sampler], engine: Sampler | None = None, patience_s: float = 0.0
    ) -> None:
        """Start loading in a thread, unless there is an `engine` to begin with, which its owner closes.

        A load that fails is repeated for `patience_s` seconds: a model server that was restarted takes a
        while to return.
        """
        self.load, self.given, self.patience_s = load, engine, patience_s
        self.loaded: Future[Sampler] = Future()
        if engine:
            self.loaded.set_result(engine)
        else:
            self.start()

    def start(self, failed: Sampler | None = None) -> None:
        """Load an engine in a thread, once a `failed` one has released its memory."""
        loaded: Future[Sampler] = Future()
        self.loaded = loaded

        def work() -> None:
            if failed:
                closing = Thread(target=failed.close, daemon=True)
                closing.start()
                closing.join(CLOSE_S)
            end = time.monotonic() + self.patience_s
            while not loaded.done():
                try:
                    loaded.set_result(self.load())
                except BaseException as e:  # a library may raise SystemExit, or what Rust panics with
                    if time.monotonic() >= end:
                        loaded.set_exception(e if isinstance(e, Exception) else RuntimeError(one_line(e)))
                    else:
                        time.sleep(RETRY_S)

        Thread(target=work, daemon=True).start()

    @property
    def has_given_up(self) -> bool:
        """Whether the last attempt to load an engine has failed."""
        return self.loaded.done() and self.loaded.exception() is not None

    def get(self, timeout: float | None = None) -> Sampler:
        """Return the engine, waiting at most `timeout` seconds; loading is tried again if it had failed.

        Raises TimeoutError, or the error with which loading failed.
        """
        if self.has_given_up:
            self.start()
        return result_of(self.loaded, timeout)

    def replace(self, failed: Sampler) -> None:
        """Start another engine in place of one that failed, unless that has been done."""
        if self.loaded.done() and not self.has_given_up and self.loaded.result() is failed:
            self.start(failed)

    def close(self) -> None:
        """End the engine, if one was loaded."""
        if self.loaded.done() and not self.has_given_up and self.loaded.result() is not self.given:
            self.loaded.result().close()
