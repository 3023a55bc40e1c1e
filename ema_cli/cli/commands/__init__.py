"""One module for each command: its options, one call, its result.

May import the rest of cli.
"""
