"""The process that opens host files for the sentry; nothing else may."""
