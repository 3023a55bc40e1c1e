"""A pickle machine that calls nothing, and the values that it builds.

May import checkpoint and what is below it.
"""
