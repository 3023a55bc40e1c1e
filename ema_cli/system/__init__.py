"""This process: its signals, memory and processors.

May import text and errors.
"""
