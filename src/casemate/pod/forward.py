"""Connections to a loopback port of the engine's namespace, carried to the same port in the guest.

A CRI engine's port-forward enters the pod's network namespace and connects to ``localhost:PORT`` there, where nothing
listens: the container is in the guest. A BPF program (``sk_lookup``, Linux 5.9) gives every new TCP connection to
127.0.0.1 or ::1 to a listener of ours, whatever its port; the accepted socket tells which one it was. The program is
attached by a descriptor and goes with it: there is no rule that could stay behind or meet somebody else's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any

from casemate.errors import CasemateError, NetworkError
from casemate.host import bpf, namespaces
from casemate.keeper.pump import CHUNK, Cancel
from casemate.pod.network import log_line
from casemate.protocol.wire import LinkError
from casemate.sandbox import PodSandbox, Stream

MAX_CONNECTIONS = 64
"""Under way at once; more wait in the kernel's queue."""
REST_MS = 1000
CRI = frozenset(("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"))
"""Annotations by which containerd and CRI-O are known."""
_BACKLOG = 128
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def wanted(spec: Mapping[str, Any]) -> bool:
    """Whether a container's engine may come for its loopback: a CRI engine, which gives the namespace by its path.

    Arguments:
        spec: of the sandbox's first container.
    """
    spaces = (spec.get("linux") or {}).get("namespaces") or ()
    given = any(entry.get("type") == "network" and entry.get("path") for entry in spaces)
    return given and not CRI.isdisjoint(spec.get("annotations") or ())


class Forward:
    """The listener of one sandbox, from :meth:`start` to :meth:`close`.

    Arguments:
        sandbox: where connections go.
        netns_fd: descriptor of the engine's network namespace; copied, and not closed.
        log: takes a line about a connection that could not be carried.
    """

    def __init__(self, sandbox: PodSandbox, netns_fd: int, log: Callable[[str], None] = log_line) -> None:
        self._sandbox, self._log = sandbox, log
        self._netns = os.dup(netns_fd)
        self._lock = threading.Lock()
        self._closed = False
        self._listeners: list[socket.socket] = []
        self._link = -1
        self._thread: threading.Thread | None = None
        self._cancel = Cancel()
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._connections: set[socket.socket] = set()

    def start(self) -> None:
        """Begin to listen.

        Raises:
            HostError: the kernel has no such programs, or forbids them.
            NetworkError: the namespace's loopback cannot be listened on.
        """
        with self._lock:
            if self._closed or self._thread is not None:
                return
            try:
                self._listeners = namespaces.in_netns(self._netns, _listen)
                self._link = _attach(self._netns, self._listeners)
            except BaseException:
                self._free()
                raise
            self._thread = threading.Thread(target=self._accept, name="forward", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop listening and end every connection. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._cancel.set()
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self._free()
        self._cancel.close()
        os.close(self._netns)

    def _free(self) -> None:
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _accept(self) -> None:
        waiting = select.poll()
        by_fd = {listener.fileno(): listener for listener in self._listeners}
        for fd in (self._cancel.fd, *by_fd):
            waiting.register(fd, select.POLLIN)
        while True:
            for fd, _ in waiting.poll():
                if self._closed:
                    return
                if fd in by_fd:
                    self._take(by_fd[fd])

    def _take(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._log(f"port-forward: a connection has to wait: {error.strerror}")
                rest = select.poll()  # the listener stays readable, and would be asked without end
                rest.register(self._cancel.fd, select.POLLIN)
                rest.poll(REST_MS)
            return
        self._room.acquire()
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._connections.add(connection)
        try:
            threading.Thread(target=self._carry, args=(connection,), name="forwarded", daemon=True).start()
        except RuntimeError as error:  # there can be no more threads
            self._log(f"port-forward: {error}")
            self._over(connection)

    def _carry(self, connection: socket.socket) -> None:
        try:
            port = connection.getsockname()[1]  # what the client connected to: nothing was translated
            pump(self._sandbox, connection, port, lambda: self._closed)
        except CasemateError as error:
            self._log(f"port-forward: {error}")
        except OSError:
            pass  # the client is gone
        finally:
            self._over(connection)

    def _over(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
            connection.close()
        self._room.release()


def pump(
    sandbox: PodSandbox, connection: socket.socket, port: int, stop: Callable[[], bool] = lambda: False
) -> None:
    """Carry one connection to a port of the guest's loopback; returns when both directions have ended.

    Arguments:
        connection: the client's. It is closed at the end; with a reset when there is nobody at the port, as the
            client has been told before that the connection stands.
        stop: whether an end of what the client sends is the end of everything.

    Raises:
        CasemateError: the guest does not take the connection.
    """
    try:
        streams = sandbox.connect(port)
    except BaseException:
        _reset(connection)
        raise
    inward, outward = streams.stdin, streams.stdout
    if inward is None or outward is None:
        _reset(connection)
        raise CasemateError("the sandbox gave no streams for a connection")
    thread = threading.Thread(target=_inward, args=(connection, inward, outward, stop), name="forwarded", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        inward.close()
        outward.close()
        _reset(connection)
        raise CasemateError(f"a connection cannot be carried: {error}") from None
    try:
        while data := outward.recv(CHUNK):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        thread.join()  # the client may still have something to say
    except OSError:
        pass  # the client is gone
    finally:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        inward.close()
        outward.close()
        thread.join()
        connection.close()


def _inward(connection: socket.socket, inward: Stream, outward: Stream, stop: Callable[[], bool]) -> None:
    try:
        while data := connection.recv(CHUNK):
            inward.send(data)
        inward.send_eof()
        if stop():
            outward.close()
    except LinkError:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RD)  # the guest reads no more
    except OSError:
        inward.close()
        outward.close()


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _listen() -> list[socket.socket]:
    """A listener for each family that the namespace's loopback has, IPv4 first. Its port is of no interest."""
    listeners: list[socket.socket] = []
    try:
        for family, address in _LOOPBACK.items():
            try:
                listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                listeners.append(listener)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address, 0))
                listener.listen(_BACKLOG)
            except OSError as error:
                if family == socket.AF_INET:
                    raise NetworkError(f"cannot listen on {address} for port-forward: {error.strerror}") from None
                if len(listeners) > 1:
                    listeners.pop().close()  # IPv6 is off there
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _attach(netns: int, listeners: list[socket.socket]) -> int:
    """Send what goes to the namespace's loopback to the listeners, as long as the descriptor returned is open."""
    sockets = bpf.socket_map(len(_LOOPBACK))
    try:
        for key, listener in enumerate(listeners):
            bpf.set_socket(sockets, key, listener.fileno())
        program = bpf.program(bpf.SK_LOOKUP, to_listener(sockets), "casemate_fwd", bpf.AT_SK_LOOKUP)
        try:
            return bpf.attach(program, netns, bpf.AT_SK_LOOKUP)
        finally:
            os.close(program)
    finally:
        os.close(sockets)


# Offsets in struct bpf_sk_lookup and helpers of linux/bpf.h
_FAMILY, _PROTOCOL, _LOCAL_IP4, _LOCAL_IP6 = 8, 12, 40, 44
_MAP_LOOKUP, _SK_RELEASE, _SK_ASSIGN = 1, 86, 124
_PASS, _TCP = 1, 6


def to_listener(sockets: int) -> list[bpf.Item]:
    """The program (Documentation/bpf/prog_sk_lookup.rst): new TCP connections to 127.0.0.1 go to the socket with key 0
    of the map, those to ::1 to the one with key 1; the kernel goes on as usual with all others."""
    r0, r1, r2, r3, r6, r7 = 0, 1, 2, 3, 6, 7
    end = bpf.R10
    return [
        bpf.copy(r6, r1),
        bpf.load(bpf.WORD, r7, r6, _PROTOCOL), bpf.if_not(r7, _TCP, "pass"),
        bpf.load(bpf.WORD, r7, r6, _FAMILY), bpf.if_equal(r7, socket.AF_INET6, "ipv6"),
        bpf.load(bpf.WORD, r7, r6, _LOCAL_IP4), bpf.if_not(r7, bpf.net32(0x7F000001), "pass"),
        bpf.put(r7, 0), bpf.jump("assign"),
        "ipv6",
        *(
            item
            for word, value in enumerate((0, 0, 0, bpf.net32(1)))
            for item in (bpf.load(bpf.WORD, r7, r6, _LOCAL_IP6 + 4 * word), bpf.if_not(r7, value, "pass"))
        ),
        bpf.put(r7, 1),
        "assign",
        bpf.store(bpf.WORD, end, -4, r7),
        *bpf.map_of(r1, sockets), bpf.copy(r2, end), bpf.add(r2, -4), bpf.call(_MAP_LOOKUP),
        bpf.if_equal(r0, 0, "pass"),
        bpf.copy(r7, r0),
        bpf.copy(r1, r6), bpf.copy(r2, r7), bpf.put(r3, 0), bpf.call(_SK_ASSIGN),
        bpf.copy(r1, r7), bpf.call(_SK_RELEASE),
        "pass",
        bpf.put(r0, _PASS), bpf.leave(),
    ]  # fmt: skip
