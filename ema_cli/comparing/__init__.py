"""How far apart checkpoints are, tensor by tensor and layer by layer.

May import planning and what is below it.
"""
