"""The ``casemate`` command: one module per command, each imported only when it is the one asked for.

A command module has ``SUMMARY``, ``USAGE``, ``declare(parser)``, which names its options, and ``run(config, args)``,
which does the work and returns the exit status. ``ROOT = False`` marks a command that anybody may run.
"""
