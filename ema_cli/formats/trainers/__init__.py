"""Where each trainer keeps weights, averages and clocks: tables to be read as pages, and what applies them.

May import pickles and formats' own modules.
"""
