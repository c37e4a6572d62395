"""Resizes an NBD export by NBD_CMD_RESIZE, which no client of a distribution sends.

Usage: resize.py SOCKET EXPORT
"""

import socket
import struct
import sys

REQUEST, REPLY = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH, RESIZE = 0, 1, 2, 3, 8
SEND_RESIZE = 1 << 9
ENOSPC = 28
MIB = 1 << 20


class Client:
    """The oldest handshake that names an export, and simple replies."""

    def __init__(self, path, export):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(30)
        self.stream.connect(path)
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        (handshake_flags,) = struct.unpack(">H", self.take(2))
        no_zeroes = handshake_flags & 2
        name = export.encode()
        self.stream.sendall(struct.pack(">I", 1 | no_zeroes))
        self.stream.sendall(b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
        self.size, self.flags = struct.unpack(">QH", self.take(10))
        assert no_zeroes

    def take(self, count):
        data = b""
        while len(data) < count:
            more = self.stream.recv(count - len(data))
            assert more, "the server has closed the connection"
            data += more
        return data

    def call(self, command, offset=0, length=0, payload=b""):
        """The error number, and what was read."""
        header = struct.pack(">IHHQQI", REQUEST, 0, command, 99, offset, length)
        self.stream.sendall(header + payload)
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, cookie) == (REPLY, 99)
        reads = command == READ and not error
        return error, self.take(length) if reads else b""


def main():
    client = Client(sys.argv[1], sys.argv[2])
    assert client.flags & SEND_RESIZE, hex(client.flags)
    old = client.size
    assert client.call(WRITE, old - 4, 4, b"last") == (0, b"")
    assert client.call(READ, old, 1) == (ENOSPC, b"")
    assert client.call(RESIZE, old + 64 * MIB) == (0, b"")
    assert client.call(READ, old - 4, 8) == (0, b"last\0\0\0\0")
    assert client.call(WRITE, old + 63 * MIB, 4, b"more") == (0, b"")
    assert client.call(RESIZE, old + 63 * MIB + 512) == (0, b"")
    assert client.call(READ, old + 63 * MIB, 4) == (0, b"more")
    assert client.call(READ, old + 63 * MIB + 512, 1) == (ENOSPC, b"")
    # A length that the image cannot have changes nothing.
    error, _ = client.call(RESIZE, 1 << 62)
    assert error, "no image is that long"
    assert client.call(READ, old + 63 * MIB, 4) == (0, b"more")
    assert client.call(FLUSH) == (0, b"")
    print(old + 63 * MIB + 512)


main()
