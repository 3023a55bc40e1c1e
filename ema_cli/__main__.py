"""python -m ema_cli, and the command ema-cli."""

import atexit
import gc

from ema_cli.system import signals

# What is imported, and read from headers, stays: to look for garbage in it again and again finds none, and takes long.
gc.set_threshold(100_000)
atexit.register(gc.freeze)  # nor at the end, when all of it goes
# Before the rest is imported, which takes longest: no traceback for a Ctrl-C meanwhile.
signals.install()

from ema_cli.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
