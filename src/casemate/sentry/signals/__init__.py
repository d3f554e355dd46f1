"""Signals: what is pending, who gets it, and the frames that handlers run on, signal(7)."""
