"""casemate: containers behind a kernel of their own."""

__version__ = "0.1.0"
