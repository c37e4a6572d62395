"""A write load that knows what must survive, and the check that it did.

    power_loss.py load SOCKET SEED STATE     write until the server is gone, then save the state
    power_loss.py check RAW STATE            RAW, the disk's content, has all that was flushed

The disk consists of blocks of 7 KiB, which lie across clusters.  Every sector of a block tells the
block's number and the version of it, so that any mixture can be told from any other.  A write is
remembered when it is submitted, and as durable when a flush that began after its acknowledgement
has been acknowledged, or when it was acknowledged with FUA.

Version 0 is what the disk held at first: the pattern where the image was prepared with it, or zero.
`power_loss.py prepare RAW SIZE` writes a disk full of version 0.
"""

import pickle
import random
import struct
import sys
import time

SECTOR = 512
SECTORS = 14
BLOCK = SECTOR * SECTORS
DEPTH = 12
LIMIT_S = 20
ZERO = bytes(SECTOR)


def pattern(block, version):
    return struct.pack("<QQ", block + 1, version) * (SECTOR // 16) * SECTORS


class State:
    """What was submitted and what must be there; carried from one loss of power to the next."""

    def __init__(self, starts_zero):
        self.starts_zero = starts_zero
        self.kinds = {}      # block -> for each version from 1: "data", "zero" or "trim"
        self.durable = {}    # block -> version
        self.flushes = 0

    def submit(self, block, kind):
        versions = self.kinds.setdefault(block, [])
        versions.append(kind)
        return len(versions)

    def allows(self, block, sector):
        """Why this sector of the block may not be as it is; None if it may."""
        kinds = self.kinds.get(block, [])
        oldest = self.durable.get(block, 0)
        allowed = range(oldest, len(kinds) + 1)
        if sector == ZERO:
            if any(self.kind(block, version) in ("zero", "trim") for version in allowed):
                return None
            return f"zero, but version {oldest} was flushed"
        number, version = struct.unpack_from("<QQ", sector)
        if sector != struct.pack("<QQ", number, version) * (SECTOR // 16):
            return f"mixed up: {sector[:32].hex()}..."
        if number != block + 1:
            return f"holds block {number - 1}"
        if self.kind(block, version) != "data":
            return f"version {version} was no data"
        # What was trimmed may be anything that was there before.
        if version in allowed or any(self.kind(block, v) == "trim" for v in allowed):
            return None
        return f"version {version}, but version {oldest} was flushed and {len(kinds)} is the last"

    def kind(self, block, version):
        if version == 0:
            return "zero" if self.starts_zero else "data"
        return self.kinds[block][version - 1]


class Load:
    """Random writes over two connections, each block in flight once."""

    def __init__(self, state, handles, dice):
        self.state = state
        self.handles = handles
        self.dice = dice
        self.blocks = handles[0].get_size() // BLOCK
        self.busy = set()
        self.acknowledged = {}    # block -> version, not yet known to be flushed
        self.flushing = False
        # Some of the load stays close together, so that clusters are shared and tables overlap.
        self.home = dice.randrange(self.blocks)

    def choose(self):
        block = self.dice.randrange(self.blocks)
        if self.dice.random() < 0.6:
            block = (self.home + self.dice.randrange(120)) % self.blocks
        if self.dice.random() < 0.02:
            self.home = self.dice.randrange(self.blocks)
        count = self.dice.choice([1, 1, 1, 1, 2, 3, 30])
        return [b for b in range(block, min(block + count, self.blocks))]

    def submit(self, handle):
        if not self.flushing and self.dice.random() < 0.06:
            self.flush(handle)
            return
        blocks = self.choose()
        if self.busy.intersection(blocks):
            return
        kind = self.dice.choices(["data", "zero", "trim"], [12, 2, 1])[0]
        versions = [self.state.submit(block, kind) for block in blocks]
        self.busy.update(blocks)
        fua = nbd.CMD_FLAG_FUA if self.dice.random() < 0.05 else 0

        def done(error):
            if error.value == 0:
                self.done(blocks, versions, fua)
            return 1

        offset, length = blocks[0] * BLOCK, len(blocks) * BLOCK
        if kind == "data":
            data = b"".join(pattern(b, v) for b, v in zip(blocks, versions))
            handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset, done, fua)
        elif kind == "zero":
            no_hole = self.dice.choice([0, nbd.CMD_FLAG_NO_HOLE])
            handle.aio_zero(length, offset, done, fua | no_hole)
        else:
            handle.aio_trim(length, offset, done, fua)

    def done(self, blocks, versions, fua):
        for block, version in zip(blocks, versions):
            self.busy.discard(block)
            if fua:
                self.state.durable[block] = version
                self.acknowledged.pop(block, None)
            else:
                self.acknowledged[block] = version

    def flush(self, handle):
        covered, self.acknowledged = self.acknowledged, {}
        self.flushing = True

        def done(error):
            self.flushing = False
            if error.value == 0:
                self.state.flushes += 1
                for block, version in covered.items():
                    self.state.durable[block] = max(version, self.state.durable.get(block, 0))
            return 1

        handle.aio_flush(done)

    def run(self):
        deadline = time.monotonic() + LIMIT_S
        try:
            while time.monotonic() < deadline:
                for handle in self.handles:
                    while handle.aio_in_flight() < DEPTH:
                        before = handle.aio_in_flight()
                        self.submit(handle)
                        if handle.aio_in_flight() == before:
                            break
                    handle.poll(1)
        except nbd.Error:
            return
        sys.exit("nobody cut the power")


def load(socket, seed, path):
    with open(path, "rb") as file:
        state = pickle.load(file)
    handles = []
    for _ in range(2):
        handle = nbd.NBD()
        handle.set_export_name("disk")
        handle.connect_unix(socket)
        handles.append(handle)
    print("started", flush=True)
    Load(state, handles, random.Random(seed)).run()
    with open(path, "wb") as file:
        pickle.dump(state, file)
    print(f"{len(state.kinds)} blocks, {len(state.durable)} durable, {state.flushes} flushes")


def check(raw, path):
    with open(path, "rb") as file:
        state = pickle.load(file)
    wrong = []
    with open(raw, "rb") as disk:
        disk.seek(0, 2)
        blocks = disk.tell() // BLOCK
        # All that was written, and some of what was not.
        for block in sorted(set(state.kinds) | set(range(0, blocks, 97))):
            disk.seek(block * BLOCK)
            data = disk.read(BLOCK)
            for index in range(SECTORS):
                why = state.allows(block, data[index * SECTOR:(index + 1) * SECTOR])
                if why:
                    wrong.append(f"block {block} (offset {block * BLOCK}) sector {index}: {why}")
    if wrong:
        sys.exit(f"{len(wrong)} sectors are wrong\n" + "\n".join(wrong[:20]))


def fresh(path, starts_zero):
    with open(path, "wb") as file:
        pickle.dump(State(starts_zero == "zero"), file)


def prepare(raw, size):
    with open(raw, "wb") as disk:
        for block in range(int(size) // BLOCK):
            disk.write(pattern(block, 0))
        disk.truncate(int(size))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "load":
        import nbd
    {"load": load, "check": check, "fresh": fresh, "prepare": prepare}[command](*arguments)
