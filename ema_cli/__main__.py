"""python -m ema_cli, and the command ema-cli."""

from ema_cli import interrupts

# Before the rest is imported, which takes longest: no traceback for a Ctrl-C meanwhile.
interrupts.install()

from ema_cli.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
