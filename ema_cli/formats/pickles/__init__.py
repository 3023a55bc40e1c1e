"""Pickles read by a machine that calls nothing: the machine, and the values that it builds.

May import checkpoint and what is below it.
"""
