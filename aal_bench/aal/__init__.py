"""Associative adversarial learning: the attention gate, its backtracking, the selective attack.

Torch only; knows no toolkit, no task and no training loop. ``options`` needs no torch at all.
Equation numbers are the paper's; A1-A20 number the places where it can be read in several ways.
"""
