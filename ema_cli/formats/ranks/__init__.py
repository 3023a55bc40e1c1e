"""Models of which each rank saved its own share: tensors that are cut between ranks, put together from their files.

May import pieces, torch_save, trainers, pickles and formats' own modules.
"""
