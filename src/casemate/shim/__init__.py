"""``containerd-shim-casemate-v2``: containerd's shim version 2 over ``casemate-runtime``."""
