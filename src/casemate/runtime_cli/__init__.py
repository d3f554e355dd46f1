"""``casemate-runtime``: the command line that engines call in place of runc's. One module for each command."""
