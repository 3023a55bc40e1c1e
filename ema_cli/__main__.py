"""python -m ema_cli"""

from ema_cli.cli import main

main()
