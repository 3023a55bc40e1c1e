"""Averages that keep up with a training: each checkpoint is folded when it is complete, and may be deleted then."""
