"""A finished average: find it, check it, make it again.

May import averaging and what is below it.
"""
