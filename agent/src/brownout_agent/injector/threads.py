"""Work that may block for ever, in threads that nobody has to wait for.

Not a pool: names that do not resolve would fill it, and an undo would queue behind them. Not joined either: what hangs
in the kernel must not keep the injector from ending. Where the host has no thread left to give, an undo is done at once
by whoever asks for it, and everything else fails.
"""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T], *, or_here: bool = False) -> Future[T]:
    """Run `work` in a thread of its own, from now on; the future has what it returns or raises.

    Where no thread can be had it is run here and now if it may be (`or_here`), and else the future has an OSError.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # so that nobody can cancel it any more

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again where the future is asked
            future.set_exception(error)
        else:
            future.set_result(result)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError as error:  # what Python makes of EAGAIN
        if or_here:
            run()
        else:
            future.set_exception(OSError(errno.EAGAIN, str(error)))
    return future
