"""From training time to the share of each checkpoint: times, update events, laws, recipes, weights.

May import text and errors; reads no file.
"""
