"""What /proc shows, proc(5): :mod:`casemate.sentry.vfs.procfs` is the file system, this makes contents."""
