"""One adapter for each trainer, over the averages of a live model.

May import online, writing and what is below them.
"""
