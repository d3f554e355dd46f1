"""Programs: from a file to registers and memory, execve(2)."""
