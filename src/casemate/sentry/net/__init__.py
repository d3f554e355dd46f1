"""Sockets: UNIX, and TCP and UDP inside the sandbox."""
