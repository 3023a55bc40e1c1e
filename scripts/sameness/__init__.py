"""What same_results.py is made of: the inputs, the command lines, how they are run, and how results are compared."""
