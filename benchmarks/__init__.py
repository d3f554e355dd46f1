"""Measurements of casemate beside runc and runsc: ``make bench``; what they mean is in ``docs/benchmarks.md``."""
