"""From paths to the ordered checkpoints of one training.

May import formats and what is below it.
"""
