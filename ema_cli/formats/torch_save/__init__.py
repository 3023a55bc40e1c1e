"""Files of torch.save: both containers, tensors by range, layout of outputs.

May import trainers, pickles and formats' own modules.
"""
