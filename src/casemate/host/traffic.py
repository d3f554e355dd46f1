"""Traffic control (tc(8)) by rtnetlink: joining two interfaces, so that what one receives leaves by the other."""

from __future__ import annotations

import errno
import os
import struct

from casemate.errors import HostError
from casemate.host import bpf, netlink, steer
from casemate.host.netlink import Netlink

# linux/pkt_sched.h, pkt_cls.h, tc_act/tc_mirred.h
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TCM = struct.Struct("=BxxxiIII")  # struct tcmsg: family, index, handle, parent, info
_INGRESS, _HANDLE, _ARRIVING = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _BPF_DIRECT = 6, 7, 8, 1
_TCA_U32_SEL, _TCA_U32_ACT, _U32_TERMINAL = 5, 7, 1
_TCA_ACT_KIND, _TCA_ACT_OPTIONS, _TCA_MIRRED_PARMS = 1, 2, 2
_STOLEN, _EGRESS_REDIRECT = 4, 1
_ETH_P_ALL = 0x0003
_NOT_THERE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)  # no such filter, interface, qdisc


def join(ask: Netlink, index: int, tap: int, priority: int) -> None:
    """Send what one receives out of the other, as :mod:`casemate.host.steer` tells.

    Arguments:
        ask: a socket of their namespace.
        index, tap: the two interfaces, by index.
        priority: of the filters, by which they can be found again.

    Raises:
        OSError: the kernel refuses. NetworkError: it answers with nonsense.
    """
    for one in (index, tap):
        try:
            body = _TCM.pack(0, one, _HANDLE, _INGRESS, 0) + netlink.text(_TCA_KIND, "ingress")
            ask.request(_RTM_NEWQDISC, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)
        except OSError as error:
            if error.errno != errno.EEXIST:  # one, or a clsact, is there already: somebody's
                raise
    _filter(ask, tap, priority, _redirect(index))
    try:
        program = bpf.program(bpf.SCHED_CLS, steer.to_guest(tap), "casemate_guest")
    except HostError:
        _filter(ask, index, priority, _redirect(tap))
        return
    try:
        _filter(ask, index, priority, _direct(program))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise
        _filter(ask, index, priority, _redirect(tap))  # no cls_bpf
    finally:
        os.close(program)


def unjoin(ask: Netlink, index: int, priority: int) -> None:
    """Remove the filter with a priority, and the qdisc when it holds no other. Nothing when they are not there.

    Raises:
        OSError, NetworkError: as for :func:`join`.
    """
    try:
        ask.request(_RTM_DELTFILTER, 0, _TCM.pack(0, index, 0, _ARRIVING, priority << 16 | bpf.net16(_ETH_P_ALL)))
        qdiscs = ask.dump(_RTM_GETQDISC, _TCM.pack(0, index, 0, 0, 0))
        if not priorities(ask, index) and any(_is_ingress(body, index) for body in qdiscs):
            ask.request(_RTM_DELQDISC, 0, _TCM.pack(0, index, _HANDLE, _INGRESS, 0))
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise


def priorities(ask: Netlink, index: int) -> set[int]:
    """Of the filters for what arrives at an interface. Raises OSError, NetworkError."""
    try:
        bodies = ask.dump(_RTM_GETTFILTER, _TCM.pack(0, index, 0, _ARRIVING, 0))
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return set()
    return {netlink.unpack(_TCM, body)[4] >> 16 for body in bodies}


def _is_ingress(body: bytes, index: int) -> bool:
    _, which, _, parent, _ = netlink.unpack(_TCM, body)
    kind = netlink.attributes(body, _TCM.size).get(_TCA_KIND, b"")
    return which == index and parent == _INGRESS and kind == b"ingress\0"


def _filter(ask: Netlink, index: int, priority: int, what: bytes) -> None:
    body = _TCM.pack(0, index, 0, _ARRIVING, priority << 16 | bpf.net16(_ETH_P_ALL)) + what
    ask.request(_RTM_NEWTFILTER, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)


def _direct(program: int) -> bytes:
    """A filter that is a BPF program, whose result is what happens (tc-bpf(8), direct-action)."""
    options = (
        netlink.number(_TCA_BPF_FD, program)
        + netlink.text(_TCA_BPF_NAME, "casemate")
        + netlink.number(_TCA_BPF_FLAGS, _BPF_DIRECT)
    )
    return netlink.text(_TCA_KIND, "bpf") + netlink.attribute(_TCA_OPTIONS, options)


def _redirect(target: int) -> bytes:
    """``u32 match u32 0 0 action mirred egress redirect``: everything goes out of ``target``."""
    # struct tc_u32_sel with one struct tc_u32_key that is all zero, as is what it does not need; struct tc_mirred
    select = struct.pack("=BBB13x", _U32_TERMINAL, 0, 1) + bytes(16)
    mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, target)
    action = netlink.text(_TCA_ACT_KIND, "mirred") + netlink.attribute(
        _TCA_ACT_OPTIONS, netlink.attribute(_TCA_MIRRED_PARMS, mirred)
    )
    options = netlink.attribute(_TCA_U32_SEL, select) + netlink.attribute(
        _TCA_U32_ACT, netlink.attribute(1, action)
    )
    return netlink.text(_TCA_KIND, "u32") + netlink.attribute(_TCA_OPTIONS, options)
