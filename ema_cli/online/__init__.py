"""The averages of a live model. The only room that imports torch, integrations aside.

May import runs and what is below it.
"""
