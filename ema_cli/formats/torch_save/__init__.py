"""Files of torch.save: both containers, tensors by range, writing.

May import formats' own modules, pickles and trainers.
"""
