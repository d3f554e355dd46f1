"""Pipes, events, polling and System V objects."""
