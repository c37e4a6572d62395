"""Uses every command that the daemon lists, through qemu.qmp of PyPI, and sees events in order.

    every_command.py SOCKET FOLDER

FOLDER holds disk.qcow2, 8 MiB, which a node `disk` is made of, and is ours to write to.  A command
that query-commands lists and that CALLS does not use is a failure.
"""

import asyncio
import contextlib
import base64
import os
import re
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient

SOCKET, FOLDER = sys.argv[1:]


class Fails:
    """The call is to fail, with words that match."""

    def __init__(self, words):
        self.words = words


class Descriptor:
    """Before the call, a descriptor of this file is sent with SCM_RIGHTS."""

    def __init__(self, path):
        self.path = path


def at(name):
    return os.path.join(FOLDER, name)


def names(key, *wanted):
    """The answer is a list of objects, in which those are."""
    return lambda answer: set(wanted) <= {item[key] for item in answer}


NBD_ADDRESS = {"type": "unix", "data": {"path": at("nbd.sock")}}
FILE = {"driver": "file", "filename": at("disk.qcow2"), "node-name": "file", "discard": "unmap"}
TEXT = "a line\n"
ENCODED = base64.b64encode(TEXT.encode()).decode()

# Command, arguments, and what is expected: Fails, a function that judges the answer, or nothing
# where `{}` is the answer.
CALLS = [
    ("query-version", {}, lambda answer: answer["qemu"]["major"] >= 10),
    ("query-commands", {}, names("name", "query-version", "blockdev-add")),
    ("query-events", {}, names("name", "JOB_STATUS_CHANGE", "BLOCK_EXPORT_DELETED")),
    ("query-qmp-schema", {}, names("name", "query-version", "BLOCK_EXPORT_DELETED")),
    # Objects.
    ("object-add", {"qom-type": "iothread", "id": "thread"}, None),
    ("object-add", {"qom-type": "throttle-group", "id": "group", "limits": {"iops-total": 100}}, None),
    ("object-add", {"qom-type": "secret", "id": "secret", "data": "x"}, None),
    ("object-add", {"qom-type": "no-such-type", "id": "x"}, Fails("no-such-type")),
    ("qom-list", {"path": "/objects"}, names("name", "thread", "group", "secret")),
    ("qom-list-types", {"implements": "user-creatable"}, names("name", "iothread", "secret")),
    ("qom-list-properties", {"typename": "iothread"}, names("name", "poll-max-ns")),
    ("qom-set", {"path": "/objects/thread", "property": "poll-max-ns", "value": 1000}, None),
    ("qom-get", {"path": "/objects/thread", "property": "poll-max-ns"}, lambda answer: answer == 1000),
    ("qom-list-get", {"paths": ["/objects/thread"]}, lambda answer: len(answer) == 1),
    ("object-del", {"id": "group"}, None),
    ("object-del", {"id": "group"}, Fails("group")),
    # Chardevs.
    ("chardev-add", {"id": "ring", "backend": {"type": "ringbuf", "data": {"size": 4096}}}, lambda answer: answer == {}),
    ("ringbuf-write", {"device": "ring", "data": TEXT}, None),
    ("ringbuf-write", {"device": "ring", "data": ENCODED, "format": "base64"}, None),
    ("ringbuf-read", {"device": "ring", "size": len(TEXT)}, lambda answer: answer == TEXT),
    ("ringbuf-read", {"device": "ring", "size": 100, "format": "base64"}, lambda answer: answer == ENCODED),
    ("query-chardev", {}, names("label", "ring", "qmp0")),
    ("query-chardev-backends", {}, names("name", "socket", "ringbuf", "pty")),
    ("chardev-change", {"id": "ring", "backend": {"type": "null", "data": {}}}, lambda answer: answer == {}),
    ("chardev-send-break", {"id": "ring"}, None),
    ("chardev-remove", {"id": "ring"}, None),
    # Descriptors.
    (Descriptor(at("disk.qcow2")), None, None),
    ("add-fd", {"fdset-id": 3, "opaque": "rw:disk"}, lambda answer: answer["fdset-id"] == 3),
    ("query-fdsets", {}, lambda answer: answer[0]["fds"][0]["opaque"] == "rw:disk"),
    ("blockdev-add", {"driver": "file", "node-name": "passed", "filename": "/dev/fdset/3"}, None),
    ("query-named-block-nodes", {"flat": True}, names("node-name", "passed")),
    ("blockdev-del", {"node-name": "passed"}, None),
    ("remove-fd", {"fdset-id": 3}, None),
    ("query-fdsets", {}, lambda answer: answer == []),
    ("add-fd", {}, Fails("No file descriptor")),
    (Descriptor(at("disk.qcow2")), None, None),
    ("getfd", {"fdname": "mine"}, None),
    ("closefd", {"fdname": "mine"}, None),
    ("closefd", {"fdname": "mine"}, Fails("mine")),
    # Nodes.
    ("blockdev-add", FILE, None),
    ("blockdev-add", {"driver": "qcow2", "file": "file", "node-name": "disk"}, None),
    ("query-named-block-nodes", {}, names("node-name", "disk", "file")),
    ("query-block", {}, lambda answer: answer == []),
    ("query-blockstats", {"query-nodes": True}, names("node-name", "disk", "file")),
    ("x-debug-query-block-graph", {}, lambda answer: len(answer["nodes"]) == 2 and len(answer["edges"]) == 1),
    ("block_resize", {"node-name": "disk", "size": 16 << 20}, None),
    ("blockdev-reopen", {"options": [{"driver": "qcow2", "file": "file", "node-name": "disk", "read-only": True}]}, None),
    ("block_resize", {"node-name": "disk", "size": 8 << 20}, Fails("read-only")),
    ("blockdev-reopen", {"options": [{"driver": "qcow2", "file": "file", "node-name": "disk"}]}, None),
    ("blockdev-del", {"node-name": "file"}, Fails("busy|in use")),
    # Exports, in today's way and in the older one.
    ("nbd-server-start", {"addr": NBD_ADDRESS, "max-connections": 5}, None),
    ("block-export-add", {"type": "nbd", "id": "new", "node-name": "disk", "writable": True}, None),
    ("query-block-exports", {}, names("id", "new")),
    ("block-export-del", {"id": "new"}, None),
    ("nbd-server-add", {"device": "disk", "name": "older"}, None),
    ("nbd-server-remove", {"name": "older"}, None),
    ("nbd-server-stop", {}, None),
    # Jobs.
    ("blockdev-create", {"job-id": "job", "options": {"driver": "file", "filename": at("new.raw"), "size": 1 << 20}}, None),
    ("query-jobs", {}, names("id", "job")),
    ("job-pause", {"id": "job"}, Fails("concluded")),
    ("job-resume", {"id": "job"}, Fails("not paused")),
    ("job-cancel", {"id": "job"}, Fails("concluded")),
    ("job-complete", {"id": "job"}, Fails("concluded")),
    ("job-finalize", {"id": "job"}, Fails("concluded")),
    ("job-dismiss", {"id": "job"}, None),
    ("job-dismiss", {"id": "job"}, Fails("[Nn]ot found")),
    ("blockdev-del", {"node-name": "disk"}, None),
    ("blockdev-del", {"node-name": "file"}, None),
]

JOB = ["created", "running", "waiting", "pending", "concluded", "null"]


def judge(command, answer, expected):
    if isinstance(expected, Fails):
        raise AssertionError(f"{command} returned {answer}")
    fine = answer == {} if expected is None else expected(answer)
    assert fine, f"{command} returned {answer}"


async def call(client, command, arguments, expected):
    if command in ("job-pause", "job-dismiss"):
        await concluded(client, arguments["id"])
    try:
        answer = await asyncio.wait_for(client.execute(command, arguments), 20)
    except ExecuteError as error:
        assert isinstance(expected, Fails), f"{command} {arguments}: {error}"
        assert re.search(expected.words, str(error)), f"{command}: {error}"
        return
    judge(command, answer, expected)


async def concluded(client, job):
    """Waits for the end of a job, if there is such a job."""
    while any(j["id"] == job and j["status"] != "concluded" for j in await client.execute("query-jobs")):
        await asyncio.sleep(0.01)


async def main():
    client = QMPClient("every-command")
    await asyncio.wait_for(client.connect(SOCKET), 20)
    assert client.greeting is not None
    used = {"qmp_capabilities", "quit"}
    with client.listener() as listener:
        for command, arguments, expected in CALLS:
            if isinstance(command, Descriptor):
                with open(command.path, "r+b") as file:
                    client.send_fd_scm(file.fileno())
                continue
            used.add(command)
            await call(client, command, arguments, expected)
        await events(listener)
    served = {command["name"] for command in await client.execute("query-commands")}
    assert served <= used, f"served and not used here: {sorted(served - used)}"
    assert used <= served, f"used here and not served: {sorted(used - served)}"
    await client.execute("quit")
    # Who notices the end first, the server's or ours, is a race; the other end is no error then.
    with contextlib.suppress(EOFError):
        await client.disconnect()


async def events(listener):
    """All events in order: the export that was deleted, then the life of the job."""
    seen = []
    while not seen or seen[-1][0] != "JOB_STATUS_CHANGE" or seen[-1][1]["status"] != "null":
        event = await asyncio.wait_for(listener.get(), 20)
        assert {"seconds", "microseconds"} == event["timestamp"].keys()
        seen.append((event["event"], event["data"]))
    wanted = [("BLOCK_EXPORT_DELETED", {"id": "new"}), ("BLOCK_EXPORT_DELETED", {"id": "older"})]
    wanted += [("JOB_STATUS_CHANGE", {"id": "job", "status": status}) for status in JOB]
    assert seen == wanted, seen


asyncio.run(main())
