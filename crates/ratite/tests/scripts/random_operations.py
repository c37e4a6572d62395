#!/usr/bin/env python3
"""Random changes of the block graph by four clients at once, beside clients of the exports.

    random_operations.py FOLDER SECONDS SEED

FOLDER holds the images 0.qcow2 to 5.qcow2, the monitor's socket qmp.sock and the NBD server's nbd.sock. Every command must be
answered within a minute, and with something else than an internal error. Prints how many commands succeeded and failed.
"""

import json
import random
import socket
import subprocess
import sys
import threading
import time

FOLDER, SECONDS, SEED = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
IMAGES = [f"{FOLDER}/{number}.qcow2" for number in range(6)]
DISKS = [f"disk{number}" for number in range(4)]
FILES = [f"file{number}" for number in range(4)]
EXPORTS = "abc"
ANSWER_TIMEOUT_S = 60.0
END = time.monotonic() + SECONDS

added = {}    # options of nodes that were opened, by name, to be opened anew with others
counts = {}
failures = []


def some_options(choose, options):
    """Options that every driver has."""
    if choose.random() < 0.3:
        options["read-only"] = choose.random() < 0.7
    if choose.random() < 0.2:
        options["auto-read-only"] = choose.random() < 0.5
    if choose.random() < 0.2:
        options["cache"] = {"direct": choose.random() < 0.5}
    if choose.random() < 0.3:
        options["discard"] = choose.choice(["ignore", "unmap"])
    if choose.random() < 0.1:
        options["detect-zeroes"] = choose.choice(["off", "on", "unmap"])
    return options


def file_node(choose, is_named):
    options = {"driver": "file", "filename": choose.choice(IMAGES)}
    if is_named or choose.random() < 0.3:
        options["node-name"] = choose.choice(FILES)
    return some_options(choose, options)


def disk_node(choose, depth=0):
    file = choose.choice(FILES) if choose.random() < 0.5 else file_node(choose, False)
    options = {"driver": "qcow2", "file": file}
    kind = choose.random()
    if kind < 0.3:
        options["backing"] = None
    elif kind < 0.5:
        by_name = choose.random() < 0.5 or depth > 1
        options["backing"] = choose.choice(DISKS) if by_name else disk_node(choose, depth + 1)
    if choose.random() < 0.2:
        options["lazy-refcounts"] = True
    if choose.random() < 0.2:
        options["l2-cache-size"] = choose.choice([0, 512, 65536])
    if depth == 0 or choose.random() < 0.3:
        options["node-name"] = choose.choice(DISKS)
    return some_options(choose, options)


def changed(choose, options):
    """Other options for a node that was opened with these."""
    options = {name: value for name, value in options.items()
               if name not in ("read-only", "auto-read-only", "cache", "discard", "detect-zeroes")}
    if options["driver"] == "qcow2":
        if choose.random() < 0.5:
            options["backing"] = choose.choice([None, choose.choice(DISKS)])
        if choose.random() < 0.1:
            options["file"] = choose.choice(FILES)
        if choose.random() < 0.3:
            options["lazy-refcounts"] = choose.random() < 0.5
    return some_options(choose, options)


def command(choose):
    kind = choose.random()
    if kind < 0.3:
        return "blockdev-add", file_node(choose, True) if choose.random() < 0.4 else disk_node(choose)
    if kind < 0.42:
        return "blockdev-del", {"node-name": choose.choice(DISKS + FILES)}
    if kind < 0.65:
        known = list(added.values())
        some = [changed(choose, choose.choice(known)) for _ in range(choose.choice([1, 1, 2, 3])) if known]
        return "blockdev-reopen", {"options": some}
    if kind < 0.73:
        size = choose.choice([2 << 20, 8 << 20, 9 << 20])
        return "block_resize", {"node-name": choose.choice(DISKS), "size": size}
    if kind < 0.84:
        export = {"type": "nbd", "id": choose.choice(EXPORTS), "name": choose.choice(EXPORTS),
                  "node-name": choose.choice(DISKS), "writable": choose.random() < 0.7}
        if choose.random() < 0.3:
            export["iothread"] = "thread"
        return "block-export-add", export
    if kind < 0.91:
        return "block-export-del", {"id": choose.choice(EXPORTS), "mode": choose.choice(["safe", "hard"])}
    if kind < 0.95:
        return "query-named-block-nodes", {"flat": choose.random() < 0.5}
    if kind < 0.98:
        return "x-debug-query-block-graph", {}
    return "query-block-exports", {}


def steer(number):
    choose = random.Random(SEED * 100 + number)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(ANSWER_TIMEOUT_S)
    client.connect(f"{FOLDER}/qmp.sock")
    # Two files: one for both would forget what it has read ahead whenever it writes.
    answers, commands = client.makefile("r"), client.makefile("w")
    answers.readline()
    commands.write('{"execute": "qmp_capabilities"}\n')
    commands.flush()
    answers.readline()
    while time.monotonic() < END and not failures:
        name, arguments = command(choose)
        commands.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        commands.flush()
        answer = {"event": None}
        while "event" in answer:
            answer = json.loads(answers.readline())
        if "return" in answer:
            if name == "blockdev-add":
                added[arguments["node-name"]] = arguments
        elif "nternal error" in answer["error"]["desc"]:
            failures.append(f"{name} {arguments}: {answer}")
        key = name, "return" in answer
        counts[key] = counts.get(key, 0) + 1


def use(number):
    choose = random.Random(SEED * 1000 + number)
    while time.monotonic() < END and not failures:
        commands = []
        for _ in range(20):
            kind = choose.choice(["write", "write -z", "discard", "read"])
            offset, length = choose.randrange(0, 1 << 20, 512), choose.choice([512, 4096, 65536])
            commands += ["-c", f"{kind} {offset} {length}"]
        uri = f"nbd+unix:///{choose.choice(EXPORTS)}?socket={FOLDER}/nbd.sock"
        # The export may not be there, may be read-only, may go away under it.
        subprocess.run(["qemu-io", "-f", "raw", *commands, uri], capture_output=True, timeout=ANSWER_TIMEOUT_S)


def run(role, number):
    try:
        role(number)
    except Exception as error:  # whatever it is, it is told and ends the run
        failures.append(f"{role.__name__} {number}: {error!r}")


threads = [threading.Thread(target=run, args=(steer, number)) for number in range(4)]
threads += [threading.Thread(target=run, args=(use, number)) for number in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for (name, is_good), count in sorted(counts.items()):
    print(name, "succeeded" if is_good else "failed", count)
for failure in failures:
    print(failure, file=sys.stderr)
sys.exit(1 if failures else 0)
