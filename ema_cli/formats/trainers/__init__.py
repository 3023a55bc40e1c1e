"""Where each trainer keeps weights, averages and clocks.

May import formats' own modules and pickles.
"""
