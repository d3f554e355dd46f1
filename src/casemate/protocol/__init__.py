"""Frames and messages between a host and the agent in a guest; the standard library only, shared by both sides."""
