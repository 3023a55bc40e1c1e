"""What is written, and where: targets, weights, configuration, side files, model card.

May import manifest and what is below it.
"""
