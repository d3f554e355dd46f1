"""Options of level ``IPPROTO_TCP``, tcp(7)."""

from __future__ import annotations

import struct
from errno import EINVAL, EISCONN, ENOENT, ENOPROTOOPT
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.net.options import integer, word

if TYPE_CHECKING:
    from casemate.sentry.net.tcp import TcpSocket

# <netinet/tcp.h>: states as TCP_INFO and /proc/net/tcp show them.
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN = range(1, 11)

TCP_NODELAY, TCP_MAXSEG, TCP_CORK, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_SYNCNT, TCP_LINGER2 = range(1, 9)
TCP_DEFER_ACCEPT, TCP_WINDOW_CLAMP, TCP_INFO, TCP_QUICKACK, TCP_CONGESTION = range(9, 14)
TCP_THIN_LINEAR_TIMEOUTS, TCP_THIN_DUPACK, TCP_USER_TIMEOUT, TCP_FASTOPEN, TCP_TIMESTAMP = 16, 17, 18, 23, 24
TCP_NOTSENT_LOWAT, TCP_SAVE_SYN, TCP_FASTOPEN_CONNECT, TCP_ULP, TCP_INQ, TCP_TX_DELAY = 25, 27, 30, 31, 36, 37

MSS = 65483
"""Of the loopback interface."""
_ALGORITHMS = (b"cubic", b"reno")
_KEPT: dict[int, tuple[int, int, int]] = {
    TCP_NODELAY: (0, 0, 1),
    TCP_CORK: (0, 0, 1),
    TCP_KEEPIDLE: (7200, 1, 32767),
    TCP_KEEPINTVL: (75, 1, 32767),
    TCP_KEEPCNT: (9, 1, 127),
    TCP_SYNCNT: (6, 1, 127),
    TCP_LINGER2: (60, -1, 1 << 30),
    TCP_DEFER_ACCEPT: (0, 0, 1 << 30),
    TCP_WINDOW_CLAMP: (0, 0, 1 << 30),
    TCP_QUICKACK: (1, 0, 1),
    TCP_THIN_LINEAR_TIMEOUTS: (0, 0, 1),
    TCP_THIN_DUPACK: (0, 0, 1),
    TCP_USER_TIMEOUT: (0, 0, 0x7FFF_FFFF),
    TCP_FASTOPEN: (0, 0, 1 << 16),
    TCP_NOTSENT_LOWAT: (-1, -0x8000_0000, 0x7FFF_FFFF),
    TCP_FASTOPEN_CONNECT: (0, 0, 1),
    TCP_SAVE_SYN: (0, 0, 2),
}
"""What has no effect where no packet is sent: default, least and greatest value."""


def get(sock: TcpSocket, name: int) -> bytes:
    """getsockopt(2). Raises SysError(ENOPROTOOPT)."""
    if name in _KEPT:
        return word(sock.tcp.get(name, _KEPT[name][0]))
    if name == TCP_MAXSEG:
        return word(MSS if sock.state == ESTABLISHED else sock.tcp.get(TCP_MAXSEG, 536))
    if name == TCP_INFO:
        return _info(sock)
    if name == TCP_CONGESTION:
        return _ALGORITHMS[sock.tcp.get(TCP_CONGESTION, 0)].ljust(16, b"\0")
    if name in (TCP_TIMESTAMP, TCP_INQ, TCP_TX_DELAY):
        return word(sock.tcp.get(name, 0))
    raise SysError(ENOPROTOOPT)


def change(sock: TcpSocket, name: int, value: bytes) -> None:
    """setsockopt(2). Raises SysError: EINVAL, ENOPROTOOPT, ENOENT."""
    if name == TCP_CONGESTION:
        wanted = value[:15].split(b"\0")[0]
        if wanted not in _ALGORITHMS:
            raise SysError(ENOENT)
        sock.tcp[name] = _ALGORITHMS.index(wanted)
        return
    if name == TCP_ULP:
        raise SysError(ENOENT)
    number = integer(value)
    if name == TCP_MAXSEG:
        if number and not 88 <= number <= 32767:
            raise SysError(EINVAL)
        sock.tcp[name] = number
        return
    kept = _KEPT.get(name)
    if kept is None:
        raise SysError(ENOPROTOOPT)
    if kept[1:] == (0, 1):
        if name == TCP_FASTOPEN_CONNECT and number not in (0, 1):
            raise SysError(EINVAL)
        if name == TCP_FASTOPEN_CONNECT and sock.state != CLOSE:
            raise SysError(EISCONN if sock.state == ESTABLISHED else EINVAL)
        number = int(bool(number))
    elif not kept[1] <= number <= kept[2]:
        raise SysError(EINVAL)
    sock.tcp[name] = number


def shown_state(sock: TcpSocket) -> int:
    """The state that Linux would show."""
    if sock.state != ESTABLISHED:
        return sock.state
    if sock.finished:
        return CLOSE_WAIT
    return FIN_WAIT2 if sock.write_shut else ESTABLISHED


def _info(sock: TcpSocket) -> bytes:
    """``struct tcp_info``: what is known of it; times and counts of what is never sent are zero."""
    share = sock.send_share
    head = struct.pack("<8B", shown_state(sock), 0, 0, 0, 0, 0x7, 0x77, 0)
    words = [0] * 24
    words[0] = 201000  # rto, microseconds
    words[1] = 40000  # ato
    words[2], words[3] = MSS, MSS  # snd_mss, rcv_mss
    words[14] = 65536  # pmtu
    words[15] = share  # rcv_ssthresh
    words[16], words[17] = 20, 10  # rtt, rttvar
    words[18], words[19], words[20] = 0x7FFF_FFFF, 10, MSS  # snd_ssthresh, snd_cwnd, advmss
    words[21] = 3  # reordering
    words[23] = share  # rcv_space
    counters = struct.pack("<4Q", 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, sock.sent, sock.received)
    return head + struct.pack("<24I", *words) + counters
