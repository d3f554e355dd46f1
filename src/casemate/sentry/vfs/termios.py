"""Settings of terminals, termios(3), as the kernel's structures have them."""

from __future__ import annotations

import struct
from errno import EINVAL

from casemate.sentry.errno import SysError

# c_iflag
IGNBRK, BRKINT, IGNPAR, PARMRK, INPCK, ISTRIP = 0o1, 0o2, 0o4, 0o10, 0o20, 0o40
INLCR, IGNCR, ICRNL, IUCLC, IXON, IXANY = 0o100, 0o200, 0o400, 0o1000, 0o2000, 0o4000
IXOFF, IMAXBEL, IUTF8 = 0o10000, 0o20000, 0o40000
# c_oflag
OPOST, OLCUC, ONLCR, OCRNL, ONOCR, ONLRET = 0o1, 0o2, 0o4, 0o10, 0o20, 0o40
TABDLY = XTABS = 0o14000
# c_cflag
CSIZE, CS8, CREAD, PARENB, HUPCL, CBAUD, B38400 = 0o60, 0o60, 0o200, 0o400, 0o2000, 0o10017, 0o17
# c_lflag
ISIG, ICANON, ECHO, ECHOE, ECHOK, ECHONL = 0o1, 0o2, 0o10, 0o20, 0o40, 0o100
NOFLSH, TOSTOP, ECHOCTL, ECHOPRT, ECHOKE, FLUSHO = 0o200, 0o400, 0o1000, 0o2000, 0o4000, 0o10000
PENDIN, IEXTEN, EXTPROC = 0o40000, 0o100000, 0o200000
# c_cc
VINTR, VQUIT, VERASE, VKILL, VEOF, VTIME, VMIN, VSWTC = range(8)
VSTART, VSTOP, VSUSP, VEOL, VREPRINT, VDISCARD, VWERASE, VLNEXT, VEOL2 = range(8, 17)
NCCS = 19

# ioctl_tty(2)
TCGETS, TCSETS, TCSETSW, TCSETSF = 0x5401, 0x5402, 0x5403, 0x5404
TCGETA, TCSETA, TCSETAW, TCSETAF = 0x5405, 0x5406, 0x5407, 0x5408
TCSBRK, TCXONC, TCFLSH = 0x5409, 0x540A, 0x540B
TIOCEXCL, TIOCNXCL, TIOCSCTTY, TIOCGPGRP, TIOCSPGRP = 0x540C, 0x540D, 0x540E, 0x540F, 0x5410
TIOCOUTQ, TIOCSTI, TIOCGWINSZ, TIOCSWINSZ = 0x5411, 0x5412, 0x5413, 0x5414
FIONREAD, TIOCCONS, TIOCPKT, TIOCNOTTY = 0x541B, 0x541D, 0x5420, 0x5422
TIOCSETD, TIOCGETD, TCSBRKP, TIOCSBRK, TIOCCBRK, TIOCGSID = 0x5423, 0x5424, 0x5425, 0x5427, 0x5428, 0x5429
TIOCGPTN, TIOCSPTLCK, TIOCGDEV, TIOCSIG, TIOCVHANGUP = 0x80045430, 0x40045431, 0x80045432, 0x40045436, 0x5437
TIOCGPKT, TIOCGPTLCK, TIOCGEXCL, TIOCGPTPEER = 0x80045438, 0x80045439, 0x80045440, 0x5441
TCGETS2, TCSETS2, TCSETSW2, TCSETSF2 = 0x802C542A, 0x402C542B, 0x402C542C, 0x402C542D
TCIFLUSH, TCOFLUSH, TCIOFLUSH = 0, 1, 2
TCOOFF, TCOON, TCIOFF, TCION = 0, 1, 2, 3
# What a master in packet mode reads before the data.
TIOCPKT_FLUSHREAD, TIOCPKT_FLUSHWRITE, TIOCPKT_STOP, TIOCPKT_START = 1, 2, 4, 8
TIOCPKT_NOSTOP, TIOCPKT_DOSTOP, TIOCPKT_IOCTL = 16, 32, 64

_TERMIOS = struct.Struct("<4IB19s")
_TERMIOS2 = struct.Struct("<4IB19s2I")
_TERMIO = struct.Struct("<4HB8s")
_DEFAULT_CC = bytes((3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0))
TERMIOS_SIZE, TERMIOS2_SIZE, TERMIO_SIZE = _TERMIOS.size, _TERMIOS2.size, _TERMIO.size


class Termios:
    """The settings of one terminal: those of a new pseudo-terminal at first."""

    __slots__ = ("cc", "cflag", "iflag", "ispeed", "lflag", "line", "oflag", "ospeed")

    def __init__(self) -> None:
        self.iflag = ICRNL | IXON
        self.oflag = OPOST | ONLCR
        self.cflag = B38400 | CS8 | CREAD
        self.lflag = ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN
        self.line = 0
        self.cc = _DEFAULT_CC
        self.ispeed = self.ospeed = 38400

    def copy(self) -> Termios:
        """The same settings."""
        new = Termios()
        for name in Termios.__slots__:
            setattr(new, name, getattr(self, name))
        return new

    def pack(self) -> bytes:
        """``struct termios`` of the kernel, 36 bytes."""
        return _TERMIOS.pack(self.iflag, self.oflag, self.cflag, self.lflag, self.line, self.cc)

    def pack2(self) -> bytes:
        """``struct termios2``, 44 bytes."""
        return _TERMIOS2.pack(
            self.iflag, self.oflag, self.cflag, self.lflag, self.line, self.cc, self.ispeed, self.ospeed
        )

    def pack_old(self) -> bytes:
        """``struct termio``, 17 bytes and one of padding."""
        return _TERMIO.pack(
            self.iflag & 0xFFFF, self.oflag & 0xFFFF, self.cflag & 0xFFFF, self.lflag & 0xFFFF, self.line, self.cc[:8]
        ).ljust(18, b"\0")

    def unpack(self, data: bytes) -> None:
        """Take settings: ``struct termios``, ``termios2`` or ``termio``, told apart by their size."""
        if len(data) == TERMIOS_SIZE:
            self.iflag, self.oflag, self.cflag, self.lflag, self.line, self.cc = _TERMIOS.unpack(data)
        elif len(data) == TERMIOS2_SIZE:
            fields = _TERMIOS2.unpack(data)
            self.iflag, self.oflag, self.cflag, self.lflag, self.line, self.cc, self.ispeed, self.ospeed = fields
        elif len(data) == TERMIO_SIZE:
            iflag, oflag, cflag, lflag, self.line, cc = _TERMIO.unpack(data)
            self.iflag = self.iflag & ~0xFFFF | iflag
            self.oflag = self.oflag & ~0xFFFF | oflag
            self.cflag = self.cflag & ~0xFFFF | cflag
            self.lflag = self.lflag & ~0xFFFF | lflag
            self.cc = cc + self.cc[8:]
        else:
            raise SysError(EINVAL)
        # A pseudo-terminal's characters have eight bits, and are always received.
        self.cflag = self.cflag & ~(CSIZE | PARENB) | CS8 | CREAD
