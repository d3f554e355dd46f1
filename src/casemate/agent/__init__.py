"""The agent: pid 1 of the guest, which makes containers there at the host's word. Standard library only.

The package is copied into the guest image beside ``casemate/__init__.py`` and ``casemate/protocol``. It imports little:
under an emulated processor every module costs milliseconds before the guest's first word.
"""
