# native/notify.c, which scripts/native builds.

def step(
    epoll: int, listener: int, timeout: int, notice: int, value: int, /
) -> tuple[int, int, int, tuple[int, ...]] | list[tuple[int, int]] | None: ...
