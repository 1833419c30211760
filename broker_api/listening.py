"""Keeps new connections away from a listening socket that is about to be closed.

The kernel makes connections before a process accepts them, and resets those in the queue when the socket is closed. A
client that is reset does not know whether its request was served. So no connection may begin any more while the queue
is emptied: a filter drops the packet that begins one. The client repeats it after a second, and is then refused, or
reaches another instance.

Source: socket(7), and "Linux Socket Filtering" in the kernel's documentation. Elsewhere than on Linux, and where the
kernel allows no filters, nothing changes.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_SOL_SOCKET, _SO_ATTACH_FILTER, _SO_DETACH_FILTER = 1, 26, 27
"""Linux' numbers. Python's `socket` has no names for the filters."""
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the flags of the TCP header
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # unless it is SYN alone, skip the next line
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # let it pass
)
"""As `struct sock_filter`: code, lines to skip if true and if false, operand."""
_PROGRAM = ctypes.create_string_buffer(b"".join(struct.pack("@HBBI", *line) for line in _DROP_SYN))


def refuse_connections(listener: socket.socket) -> None:
    """Have the kernel begin no connection to this socket any more, in all processes that share it."""
    if sys.platform == "linux":
        with suppress(OSError):
            program = struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(_PROGRAM))
            listener.setsockopt(_SOL_SOCKET, _SO_ATTACH_FILTER, program)


def admit_connections(listener: socket.socket) -> None:
    """Take back `refuse_connections`. Where nothing is refused, nothing happens."""
    if sys.platform == "linux":
        with suppress(OSError):
            listener.setsockopt(_SOL_SOCKET, _SO_DETACH_FILTER, 0)
