"""What arrives at an interface that a guest stands in for: is it for the guest, or for the namespace's own stack?

A BPF program for the traffic control's ingress (tc-bpf(8)) decides:

* segments and datagrams for a *connected* socket of the namespace are the namespace's;
* answers to ARP and neighbour solicitations, router advertisements and ICMP errors go to both, as either side may have
  caused them and the other one ignores what it did not ask for;
* everything else, requests and new connections above all, is the guest's alone.

On a kernel without such programs everything goes to the guest, and the namespace's own programs hear no answers.
"""

from __future__ import annotations

from casemate.host import bpf

_ETH_P_IP, _ETH_P_ARP, _ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD  # linux/if_ether.h
# Offsets in struct __sk_buff, struct bpf_sock and helpers of linux/bpf.h
_SKB_PROTOCOL, _SKB_VLAN = 16, 20
_SOCK_DST_PORT, _SOCK_STATE, _TCP_LISTEN = 48, 72, 10
_CLONE_REDIRECT, _DO_REDIRECT, _LOAD_BYTES_RELATIVE = 13, 23, 68
_LOOKUP_UDP, _LOOKUP_TCP, _SK_RELEASE = 85, 99, 86
_FROM_NETWORK_HEADER, _THIS_NETNS = 1, -1
_ARP_REPLY, _TCP, _UDP, _ICMP, _ICMPV6 = 2, 6, 17, 1, 58
_FRAGMENT = 0x3FFF  # "more fragments" and the offset
_ICMP_ERRORS = (3, 11, 12)  # unreachable (with "too big"), time exceeded, parameter problem
_ICMPV6_LAST_ERROR, _ROUTER_ADVERTISEMENT, _NEIGHBOUR_ADVERTISEMENT = 4, 134, 136


def to_guest(tap: int) -> list[bpf.Item]:
    """The program for what arrives at an interface: to the guest by the tap with that index, to the namespace, or both.

    What has a VLAN tag, is a fragment or has IPv6 extension headers is the
    guest's.
    """
    r0, r1, r2, r3, r4, r5, r6, r7, r8 = range(9)
    end = bpf.R10  # of the stack
    skb = r6

    def load(offset: int, size: int, where: int) -> list[bpf.Item]:
        """Copy from the network header on to the stack; what is too short is for the guest."""
        return [bpf.put(r2, offset), *load_at_r2(size, where)]

    def load_at_r2(size: int, where: int) -> list[bpf.Item]:
        return [
            bpf.copy(r1, skb), bpf.copy(r3, end), bpf.add(r3, where), bpf.put(r4, size),
            bpf.put(r5, _FROM_NETWORK_HEADER), bpf.call(_LOAD_BYTES_RELATIVE), bpf.if_not(r0, 0, "guest"),
        ]  # fmt: skip

    def look_up(helper: int, size: int) -> list[bpf.Item]:
        """The namespace's socket for the struct bpf_sock_tuple of so many bytes that ends at -4 on the stack."""
        return [
            bpf.copy(r1, skb), bpf.copy(r2, end), bpf.add(r2, -4 - size), bpf.put(r3, size), bpf.put(r4, _THIS_NETNS),
            bpf.put(r5, 0), bpf.call(helper), bpf.if_equal(r0, 0, "guest"),
        ]  # fmt: skip

    release = [bpf.copy(r1, r0), bpf.call(_SK_RELEASE)]
    # A socket that listens, or is not connected, is no reason: its port may as well be one of the guest's.
    tcp = [bpf.load(bpf.WORD, r7, r0, _SOCK_STATE), *release, bpf.if_equal(r7, _TCP_LISTEN, "guest"), bpf.jump("own")]
    udp = [bpf.load(bpf.HALF, r7, r0, _SOCK_DST_PORT), *release, bpf.if_equal(r7, 0, "guest"), bpf.jump("own")]
    return [
        bpf.copy(skb, r1),
        bpf.load(bpf.WORD, r7, skb, _SKB_VLAN), bpf.if_not(r7, 0, "guest"),
        bpf.load(bpf.WORD, r7, skb, _SKB_PROTOCOL),
        bpf.if_equal(r7, bpf.net16(_ETH_P_IP), "ipv4"),
        bpf.if_equal(r7, bpf.net16(_ETH_P_IPV6), "ipv6"),
        bpf.if_not(r7, bpf.net16(_ETH_P_ARP), "guest"),
        *load(6, 2, -8), bpf.load(bpf.HALF, r7, end, -8), bpf.if_equal(r7, bpf.net16(_ARP_REPLY), "both"),
        bpf.jump("guest"),

        "ipv4",
        # The head at -40; the tuple of both addresses and ports at -16.
        *load(0, 20, -40),
        bpf.load(bpf.HALF, r7, end, -34), bpf.mask(r7, bpf.net16(_FRAGMENT)), bpf.if_not(r7, 0, "guest"),
        bpf.load(bpf.BYTE, r8, end, -40), bpf.mask(r8, 0x0F), bpf.shift(r8, 2),  # the length of the head
        bpf.load(bpf.BYTE, r7, end, -31),
        bpf.if_equal(r7, _ICMP, "icmp"),
        bpf.if_equal(r7, _TCP, "ports4"), bpf.if_not(r7, _UDP, "guest"),
        "ports4",
        bpf.load(bpf.WORD, r1, end, -28), bpf.store(bpf.WORD, end, -16, r1),
        bpf.load(bpf.WORD, r1, end, -24), bpf.store(bpf.WORD, end, -12, r1),
        bpf.copy(r2, r8), *load_at_r2(4, -8),
        bpf.if_equal(r7, _UDP, "udp4"),
        *look_up(_LOOKUP_TCP, 12), *tcp,
        "udp4",
        *look_up(_LOOKUP_UDP, 12), *udp,
        "icmp",
        bpf.copy(r2, r8), *load_at_r2(1, -8), bpf.load(bpf.BYTE, r7, end, -8),
        *(bpf.if_equal(r7, kind, "both") for kind in _ICMP_ERRORS),
        bpf.jump("guest"),

        "ipv6",
        # The next header at -48; the tuple of both addresses and ports at -40.
        *load(6, 1, -48), bpf.load(bpf.BYTE, r7, end, -48),
        bpf.if_equal(r7, _ICMPV6, "icmp6"),
        bpf.if_equal(r7, _TCP, "ports6"), bpf.if_not(r7, _UDP, "guest"),
        "ports6",
        *load(8, 32, -40), *load(40, 4, -8),
        bpf.if_equal(r7, _UDP, "udp6"),
        *look_up(_LOOKUP_TCP, 36), *tcp,
        "udp6",
        *look_up(_LOOKUP_UDP, 36), *udp,
        "icmp6",
        *load(40, 1, -48), bpf.load(bpf.BYTE, r7, end, -48),
        bpf.if_equal(r7, _ROUTER_ADVERTISEMENT, "both"), bpf.if_equal(r7, _NEIGHBOUR_ADVERTISEMENT, "both"),
        bpf.if_above(r7, _ICMPV6_LAST_ERROR, "guest"),

        "both",
        bpf.copy(r1, skb), bpf.put(r2, tap), bpf.put(r3, 0), bpf.call(_CLONE_REDIRECT),
        "own",
        bpf.put(r0, 0), bpf.leave(),  # TC_ACT_OK
        "guest",
        bpf.put(r1, tap), bpf.put(r2, 0), bpf.call(_DO_REDIRECT), bpf.leave(),
    ]  # fmt: skip
