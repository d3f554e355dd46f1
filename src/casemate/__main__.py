"""``python -m casemate`` is the ``casemate`` command."""

from casemate.programs import casemate

if __name__ == "__main__":
    casemate()
