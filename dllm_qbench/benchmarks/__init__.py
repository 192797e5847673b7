"""Timings as ratios, and the gate that holds them against stored ones of the same class of machine.

    machine.py   what class of machine this is, its clocks
    rounds.py    time contenders in turn, in one process
    ratios.py    median ratio of two contenders with a bootstrap interval
    memory.py    keep freed memory, so that no contender pays for fresh pages by chance
    limits.py    what the machine can do at most: copying, multiplying
    gate.py      whether a ratio has fallen, or misses its bar
    stored.py    the file of stored ratios
    outcome.py   what was found, as it is saved
    table.py     what a person sees at the end

An absolute time says more about the machine and the hour than about a kernel. Everything here is
a ratio of times that were taken within milliseconds of each other. No torch is imported with any of
these modules; ``limits`` brings it when it measures.
"""
