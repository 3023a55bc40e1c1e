"""Adapters of the averages of a live model, one for each trainer.

May import online, writing and what is below them.
"""
