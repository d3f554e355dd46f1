# native/notify.c, which scripts/native builds.

from ctypes import Array
from typing import Any

def step(
    epoll: int, listener: int, timeout: int, notice: int, value: int, permits: Array[Any], /
) -> tuple[int, int, int, tuple[int, ...]] | list[tuple[int, int]] | None: ...
