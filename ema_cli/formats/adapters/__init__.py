"""LoRA adapters as PEFT writes them: which A and B are one change of the weights, and that change exactly.

May import trainers and what is below it.
"""
