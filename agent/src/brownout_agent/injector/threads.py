"""Work that may block for ever, in threads that nobody has to wait for.

Not a pool: names that do not resolve would fill it, and an undo would queue behind them. Not joined either: what hangs
in the kernel must not keep the injector from ending.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Run `work` in a thread of its own, from now on; the future has what it returns or raises."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # so that nobody can cancel it any more

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again where the future is asked
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, daemon=True).start()
    return future
