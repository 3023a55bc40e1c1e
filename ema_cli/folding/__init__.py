"""The streamed weighted sum: which block, which buffers, which thread.

May import checkpoint and what is below it.
"""
