"""How fast this machine is: ``vlmir bench``.

Candidates are timed in turns within one run, so that other load hits all alike; times are medians, and ratios are
medians of the turns' ratios.
"""
