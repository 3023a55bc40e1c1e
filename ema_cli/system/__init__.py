"""This process: its signals, memory, processors and threads.

May import text and errors.
"""
