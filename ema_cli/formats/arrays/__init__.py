"""Containers of other libraries: numpy, stable-baselines3, NeMo, Paddle, Flax and Orbax.

May import trainers, torch_save and what is below them. Each module is imported when such a file is there.
"""
