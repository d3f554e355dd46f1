"""Sandboxes of engines: the keeper that serves several containers from bundles, and what is on record of them."""
