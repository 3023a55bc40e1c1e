"""The commands, one module each: parse, call, render. With cli.py and options.py the only ones that import typer."""
