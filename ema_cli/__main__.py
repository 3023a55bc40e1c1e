"""python -m ema_cli, and the command ema-cli."""

import atexit
import gc
import os

from ema_cli.system import signals

# What is imported, and read from headers, stays: to look for garbage in it again and again finds none, and takes long.
gc.set_threshold(100_000)
atexit.register(gc.freeze)  # nor at the end, when all of it goes
# numpy's BLAS starts a thread for each processor, each of which looks for work for 2 ** 26 turns before it sleeps.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
# Before the rest is imported, which takes longest: no traceback for a Ctrl-C meanwhile.
signals.install()

from ema_cli.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
