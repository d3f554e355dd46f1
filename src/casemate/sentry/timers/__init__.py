"""Timers that send signals: setitimer(2), timer_create(2)."""
