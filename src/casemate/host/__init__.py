"""Small wrappers of the host: system calls, namespaces, mounts, control groups, networks, ports, leases."""
