"""Classic BPF, as seccomp(2) takes it from applications: checking programs and running them."""

from __future__ import annotations

import struct
from errno import EINVAL

from casemate.sentry.errno import SysError

BPF_MAXINSNS = 4096
BPF_MEMWORDS = 16
DATA_SIZE = 64
"""``sizeof (struct seccomp_data)``."""

BPF_LD, BPF_LDX, BPF_ST, BPF_STX, BPF_ALU, BPF_JMP, BPF_RET, BPF_MISC = range(8)
BPF_IMM, BPF_ABS, BPF_MEM, BPF_LEN = 0x00, 0x20, 0x60, 0x80
BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_OR, BPF_AND, BPF_LSH, BPF_RSH, BPF_NEG = range(0x00, 0x90, 0x10)
BPF_XOR = 0xA0
BPF_JA, BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET = range(0x00, 0x50, 0x10)
BPF_X = 0x08
BPF_A = 0x10
BPF_TAX, BPF_TXA = 0x00, 0x80

_ALU = (BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_AND, BPF_OR, BPF_XOR, BPF_LSH, BPF_RSH)
_JUMPS = (BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET)
_KNOWN = {
    BPF_LD | BPF_ABS,
    BPF_LD | BPF_LEN,
    BPF_LDX | BPF_LEN,
    BPF_LD | BPF_IMM,
    BPF_LDX | BPF_IMM,
    BPF_LD | BPF_MEM,
    BPF_LDX | BPF_MEM,
    BPF_ST,
    BPF_STX,
    BPF_RET,
    BPF_RET | BPF_A,
    BPF_MISC | BPF_TAX,
    BPF_MISC | BPF_TXA,
    BPF_ALU | BPF_NEG,
    BPF_JMP | BPF_JA,
    *(BPF_ALU | op | source for op in _ALU for source in (0, BPF_X)),
    *(BPF_JMP | op | source for op in _JUMPS for source in (0, BPF_X)),
}
_ARGUMENTS = 8
"""Up to this offset ``struct seccomp_data`` is the same for every call with one number."""


class Program:
    """A checked filter.

    Arguments:
        code: its instructions, ``struct sock_filter`` each.

    Raises:
        SysError: EINVAL for what seccomp(2) does not take.
    """

    __slots__ = ("_code",)

    def __init__(self, code: bytes) -> None:
        if not code or len(code) % 8 or len(code) // 8 > BPF_MAXINSNS:
            raise SysError(EINVAL)
        self._code: list[tuple[int, int, int, int]] = list(struct.iter_unpack("<HBBI", code))
        self._check()

    def __len__(self) -> int:
        return len(self._code)

    def _check(self) -> None:
        """Nothing unknown, no jump out, no word of the scratch memory read that was not written on every way there."""
        code = self._code
        count = len(code)
        everything = (1 << BPF_MEMWORDS) - 1
        valid = [everything] * count
        written = 0
        for at, (op, jt, jf, k) in enumerate(code):
            if op not in _KNOWN:
                raise SysError(EINVAL)
            written &= valid[at]
            if op == BPF_LD | BPF_ABS:
                if k >= DATA_SIZE or k % 4:
                    raise SysError(EINVAL)
            elif op in (BPF_ST, BPF_STX):
                if k >= BPF_MEMWORDS:
                    raise SysError(EINVAL)
                written |= 1 << k
            elif op in (BPF_LD | BPF_MEM, BPF_LDX | BPF_MEM):
                if k >= BPF_MEMWORDS or not written >> k & 1:
                    raise SysError(EINVAL)
            elif op == BPF_ALU | BPF_DIV and k == 0 or op in (BPF_ALU | BPF_LSH, BPF_ALU | BPF_RSH) and k >= 32:
                raise SysError(EINVAL)
            elif op & 7 == BPF_JMP:
                for jump in (k,) if op == BPF_JMP | BPF_JA else (jt, jf):
                    if at + 1 + jump >= count:
                        raise SysError(EINVAL)
                    valid[at + 1 + jump] &= written
                written = everything
        if code[-1][0] & 7 != BPF_RET:
            raise SysError(EINVAL)

    def run(self, data: tuple[int, ...]) -> tuple[int, bool]:
        """Run it over ``struct seccomp_data`` as 16 words of 32 bits.

        Returns what the filter says, and whether it looked at more than the number and the architecture.
        """
        a = x = at = 0
        looked = False
        memory = [0] * BPF_MEMWORDS
        code = self._code
        while True:
            op, jt, jf, k = code[at]
            at += 1
            kind = op & 7
            if kind == BPF_JMP:
                if op == BPF_JMP | BPF_JA:
                    at += k
                    continue
                other = x if op & BPF_X else k
                test = op & 0xF0
                if test == BPF_JEQ:
                    yes = a == other
                elif test == BPF_JGT:
                    yes = a > other
                elif test == BPF_JGE:
                    yes = a >= other
                else:
                    yes = bool(a & other)
                at += jt if yes else jf
            elif kind == BPF_LD:
                mode = op & 0xE0
                if mode == BPF_ABS:
                    a = data[k >> 2]
                    looked = looked or k >= _ARGUMENTS
                else:
                    a = k if mode == BPF_IMM else memory[k] if mode == BPF_MEM else DATA_SIZE
            elif kind == BPF_RET:
                return (a if op & BPF_A else k), looked
            elif kind == BPF_ALU:
                if op & 0xF0 == BPF_DIV and op & BPF_X and x == 0:
                    return 0, looked
                a = _alu(op & 0xF0, a, x if op & BPF_X else k)
            elif kind == BPF_LDX:
                mode = op & 0xE0
                x = k if mode == BPF_IMM else memory[k] if mode == BPF_MEM else DATA_SIZE
            elif kind == BPF_ST:
                memory[k] = a
            elif kind == BPF_STX:
                memory[k] = x
            elif op & 0xF8 == BPF_TAX:
                x = a
            else:
                a = x


def _alu(op: int, a: int, b: int) -> int:
    if op == BPF_ADD:
        a += b
    elif op == BPF_SUB:
        a -= b
    elif op == BPF_MUL:
        a *= b
    elif op == BPF_DIV:
        a //= b
    elif op == BPF_OR:
        a |= b
    elif op == BPF_AND:
        a &= b
    elif op == BPF_XOR:
        a ^= b
    elif op == BPF_LSH:
        a <<= b & 31
    elif op == BPF_RSH:
        a >>= b & 31
    else:
        a = -a
    return a & 0xFFFF_FFFF
