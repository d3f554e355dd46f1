"""The process that owns a sandbox, and what other processes use to reach it."""
