"""Every request of NBD, and what must be refused.  Arguments: the server's socket.

Exports: `disk`, writable, 64 MiB, fresh; `null`, read-only, 1 MiB.
"""

import errno
import sys

import nbd

SOCKET = sys.argv[-1]
MIB = 1 << 20
SIZE = 64 * MIB


def connect(export, **settings):
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.set_export_name(export)
    # Errors are to come from the server, not from the library's own checks.
    handle.set_strict_mode(0)
    for name, value in settings.items():
        getattr(handle, name)(value)
    handle.connect_unix(SOCKET)
    return handle


def fails(numbers, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        got = error.errnum
        assert got in numbers, f"{call.__name__}{arguments}: {errno.errorcode.get(got, got)}: {error}"
        return
    raise AssertionError(f"{call.__name__}{arguments} succeeded")


def extents(handle, count, offset, flags=0):
    found = []
    handle.block_status(count, offset, lambda name, start, entries, error: found.append(list(entries)), flags)
    (entries,) = found
    return list(zip(entries[::2], entries[1::2]))


def requests(handle):
    data = bytes(i * 7 % 251 for i in range(3 * 65536 + 512))
    handle.pwrite(data, 65536 - 256)
    assert handle.pread(len(data), 65536 - 256) == data
    assert handle.pread(256, 65536 - 512) == bytes(256), "copy on write fills with zeroes"
    handle.pwrite(b"\x42" * 4096, MIB, nbd.CMD_FLAG_FUA)
    handle.zero(8192, MIB + 65536)
    handle.zero(1024, MIB + 512, nbd.CMD_FLAG_NO_HOLE)
    assert handle.pread(4096, MIB) == b"\x42" * 512 + bytes(1024) + b"\x42" * 2560
    handle.zero(65536, 2 * MIB, nbd.CMD_FLAG_FAST_ZERO)
    handle.trim(65536, MIB)
    assert handle.pread(65536, MIB) == bytes(65536), "what was trimmed reads as zeroes"
    handle.cache(MIB, 0)
    handle.flush()
    assert handle.pread(0, 0) == b""


def structured(handle, has_structured):
    if not has_structured:
        return
    chunks = []

    def chunk(data, offset, status, error):
        chunks.append((offset, len(data), status))

    # Data, then a hole: at least two chunks that cover the whole range.
    handle.pread_structured(4 * 65536, 65536, chunk)
    assert sorted(chunks)[0][0] == 65536
    assert sum(length for _, length, _ in chunks) == 4 * 65536, chunks
    chunks.clear()
    handle.pread_structured(2 * 65536, 65536, chunk, nbd.CMD_FLAG_DF)
    assert [c[:2] for c in chunks] == [(65536, 2 * 65536)], chunks
    entries = extents(handle, SIZE, 0)
    assert sum(length for length, _ in entries) == SIZE, entries
    start = 0
    for length, flags in entries:
        if start <= 65536 < start + length:
            assert flags == 0, entries
        start += length
    assert entries[-1][1] == nbd.STATE_HOLE | nbd.STATE_ZERO, entries
    assert len(extents(handle, SIZE, 0, nbd.CMD_FLAG_REQ_ONE)) == 1


def refusals(handle):
    fails({errno.EINVAL}, handle.pread, 512, SIZE)
    fails({errno.EINVAL}, handle.pread, 1024, SIZE - 512)
    fails({errno.ENOSPC, errno.EINVAL}, handle.pwrite, bytes(1024), SIZE - 512)
    fails({errno.ENOSPC, errno.EINVAL}, handle.zero, 1024, SIZE - 512)
    fails({errno.EINVAL}, handle.trim, 1024, SIZE - 512)
    fails({errno.EINVAL}, handle.cache, 1024, SIZE - 512)
    fails({errno.EINVAL}, handle.pread, 512, (1 << 63) - 512)
    # The connection has survived all that.
    assert handle.pread(256, 65536 - 512) == bytes(256)


def read_only():
    handle = connect("null")
    assert handle.is_read_only() and handle.get_size() == MIB
    assert handle.pread(MIB, 0) == bytes(MIB)
    for call, arguments in [
        (handle.pwrite, (bytes(512), 0)),
        (handle.zero, (512, 0)),
        (handle.trim, (512, 0)),
    ]:
        fails({errno.EPERM, errno.EINVAL}, call, *arguments)
    handle.shutdown()


def options():
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_unix(SOCKET)
    names = {}
    handle.opt_list(lambda name, description: names.setdefault(name, description) and 0 or 0)
    assert names == {"disk": "a disk", "null": ""}, names
    handle.set_export_name("nosuch")
    fails({errno.ENOENT}, handle.opt_info)
    fails({errno.ENOENT}, handle.opt_go)
    contexts = []
    handle.set_export_name("disk")
    handle.opt_list_meta_context(lambda name: contexts.append(name) and 0 or 0)
    assert contexts == ["base:allocation", "qemu:allocation-depth"], contexts
    handle.opt_info()
    assert handle.get_size() == SIZE
    minimum = handle.get_block_size(nbd.SIZE_MINIMUM)
    assert minimum == 1, minimum
    handle.opt_abort()


options()
read_only()
for has_structured in (True, False):
    one = connect("disk", set_request_structured_replies=has_structured)
    assert one.get_structured_replies_negotiated() == has_structured
    assert one.get_size() == SIZE and not one.is_read_only()
    requests(one)
    structured(one, has_structured)
    refusals(one)
    other = connect("disk")
    assert one.can_multi_conn() and other.can_multi_conn()
    # With multi-conn a flush on one connection covers what the other one has written.
    one.pwrite(b"\x17" * 512, 5 * MIB)
    other.flush()
    assert other.pread(512, 5 * MIB) == b"\x17" * 512
    one.trim(SIZE, 0)
    assert other.pread(MIB, 0) == bytes(MIB)
    other.shutdown()
    one.shutdown()
