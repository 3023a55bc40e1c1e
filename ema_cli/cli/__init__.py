"""The command line: options become a request, a request one call, a result one output.

May import every room; only this room prints, and only it imports typer and rich.
"""
