"""The stand-in: the process on the host that engines know as the container's, or as that of an exec."""
