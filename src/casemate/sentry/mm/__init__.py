"""The memory of applications: address spaces, mappings, futexes."""
