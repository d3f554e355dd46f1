"""Same-page merging (KSM): a throttler, so that the kernel looks for equal pages hard after a start, and less later.

``settings`` reads and writes the kernel's files, ``policy`` knows when which pace is due and touches nothing, ``kept``
is what lies on disk, ``daemon`` joins the three, ``kick`` is the one call that starts of sandboxes make. docs/ksm.md
tells what it is good for.
"""
