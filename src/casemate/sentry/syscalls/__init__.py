"""System calls: one module per family, each handler named after its man page, collected in :mod:`.table`."""
