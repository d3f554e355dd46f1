"""The second wall: an application kernel in user space that serves every system call of a container itself."""
