"""From a run and a recipe to a plan: which checkpoints enter, with which weight, and what is worth saying about that.

May import runs and what is below it.
"""
