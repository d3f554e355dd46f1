"""Files: descriptors, paths, mounts and file systems."""
