"""Tells whether an address is of the public internet, so that an URL cannot reach what is inside of our network."""

from __future__ import annotations

import ipaddress

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Tell whether an address is one of the public internet, and no group of receivers.

    An IPv6 address that stands for an IPv4 address is as public as that one. Sources: the special-purpose address
    registries of RFC 6890, as `ipaddress` knows them; RFC 4291, section 2.4; RFC 3056 (6to4); RFC 6052 (NAT64).
    """
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    inner = address.ipv4_mapped or address.sixtofour
    if inner is not None:
        return is_public(inner)
    # `is_global` holds also for addresses that nobody may use any more, such as ::127.0.0.1 and fec0::1.
    return address in _GLOBAL_UNICAST and address.is_global
