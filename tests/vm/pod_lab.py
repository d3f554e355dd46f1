"""A host, containers of an engine on it, and the guests behind them, all of them namespaces."""

from __future__ import annotations

from collections.abc import Callable

from casemate.pod.network import PodNetwork
from tests.vm.host_tools import in_child
from tests.vm.pod_guest import EngineNamespace, FakePod, new_host


class Engine(EngineNamespace):
    """One container: its namespace with what an engine puts there, the guest, and what joins the two."""

    def __init__(self, number: int, *, mtu: int = 1500, slots: int = 4) -> None:
        super().__init__(number, mtu=mtu)
        self.pod = FakePod(slots)
        self.log: list[str] = []
        self.network = PodNetwork(self.pod, self.netns, self.logged)

    def logged(self, text: str) -> None:
        self.log.append(text)
        self.pod.told("log", text)

    def boot(self) -> None:
        self.pod.boot(self.netns, self.network.nics(), [], "guest")
        self.network.follow()

    def close(self) -> None:
        self.network.close()
        self.network.close()
        self.pod.close()
        super().close()


class Lab:
    """The host around one test. Made in a forked child, whose namespace becomes the host's."""

    def __init__(self) -> None:
        new_host()
        self.engines: list[Engine] = []

    def container(self, *, boot: bool = True, mtu: int = 1500, slots: int = 4) -> Engine:
        engine = Engine(10 + len(self.engines), mtu=mtu, slots=slots)
        self.engines.append(engine)
        if boot:
            engine.boot()
        return engine

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


def in_lab(test: Callable[[Lab], None]) -> None:
    def body() -> None:
        lab = Lab()
        try:
            test(lab)
        finally:
            lab.close()

    in_child(body)
