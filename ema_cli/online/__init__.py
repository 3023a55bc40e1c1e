"""Averages of a live model. Apart from integrations, only this package imports torch.

May import runs and what is below it.
"""
