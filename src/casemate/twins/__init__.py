"""Originals: machines that have come up, got warm and stand still, and are copied for each sandbox.

:mod:`.original` makes one, :mod:`.__main__` is the process that has it and hands out its twins.
"""
