#!/usr/bin/env python3
"""Record or check QMP transcripts against a live storage daemon.

    record.py FILE...                        rewrite the answers of each file from qemu-storage-daemon
    record.py --check FILE...                write nothing; print differences, exit 1 if there are any
    record.py --check --daemon PROG FILE...  the same against another daemon

The format is described in README.md beside this script.
"""

import argparse
import difflib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

REPLY_TIMEOUT_S = 10.0    # a command that was not answered by then gets no answer line
START_TIMEOUT_S = 20.0    # from starting the daemon to its socket accepting
EXIT_TIMEOUT_S = 20.0     # from the last word to the end of the process
VOLATILE_MEMBERS = {"actual-size"}    # written as "*" when a line is recorded for the first time
UNORDERED_COMMANDS = {"qom-list", "qom-list-types", "qom-list-properties", "query-chardev", "query-chardev-backends"}
ANSWER_LINES = ("<", "<~", "exit:", "stderr:")


def split_line(line):
    """(keyword, rest) of one line; keyword is None for comments and blank lines."""
    if not line.strip() or line.startswith("#"):
        return None, line
    if line.startswith("<~ "):
        return "<~", line[3:]
    if line[0] in "<>":
        return line[0], line[1:].removeprefix(" ")
    keyword, colon, rest = line.partition(":")
    if not colon or keyword not in ("setup", "args", "bytes", "run", "check", "exit", "stderr"):
        raise ValueError(f"cannot read this line: {line!r}")
    return keyword + ":", rest.removeprefix(" ")


def matches(want, got, ordered):
    """JSON equality in which "*" on the recorded side stands for any value, and json: names are read as JSON."""
    if want == "*":
        return True
    if isinstance(want, str) and isinstance(got, str) and want.startswith("json:") and got.startswith("json:"):
        return matches(json.loads(want[5:]), json.loads(got[5:]), ordered)
    if type(want) is not type(got):
        return False
    if isinstance(want, dict):
        return want.keys() == got.keys() and all(matches(want[k], got[k], ordered) for k in want)
    if isinstance(want, list):
        if len(want) != len(got):
            return False
        if ordered:
            return all(matches(w, g, True) for w, g in zip(want, got))
        left = list(got)
        for w in want:
            found = next((i for i, g in enumerate(left) if matches(w, g, False)), None)
            if found is None:
                return False
            left.pop(found)
        return True
    return want == got


def line_matches(want, got):
    """Compare two whole answer lines, prefix included."""
    prefix, text = split_line(want)
    try:
        return matches(json.loads(text), json.loads(split_line(got)[1]), prefix == "<")
    except ValueError:
        return want == got


def answer_prefix(request):
    """"<~ " for requests whose answer is a set that QEMU lists in hash order."""
    try:
        return "<~ " if json.loads(request)["execute"] in UNORDERED_COMMANDS else "< "
    except (ValueError, LookupError, TypeError):
        return "< "


def mask(value):
    if isinstance(value, dict):
        return {k: "*" if k in VOLATILE_MEMBERS else mask(v) for k, v in value.items()}
    if isinstance(value, list):
        return [mask(v) for v in value]
    return value


class Session:
    """One daemon in one fresh folder, and what it answered."""

    def __init__(self, daemon, settle_s):
        self.daemon = daemon
        self.prog = os.path.basename(daemon)
        self.settle_s = settle_s
        self.dir = tempfile.mkdtemp(prefix="qmp")
        self.groups = []
        self.process = None
        self.sock = None
        self.buffer = b""
        self.environment = dict(os.environ, LC_ALL="C", TZ="UTC")

    def close(self):
        if self.sock:
            self.sock.close()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for group in self.groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.dir, ignore_errors=True)

    def local(self, text):
        return text.replace("{dir}", self.dir)

    def portable(self, text):
        text = text.replace(self.dir, "{dir}")
        return re.sub(r"#block[0-9]+", "#block", text)

    def shell(self, command):
        """Run a shell command; what it leaves in the background is ended with the session."""
        with open(os.path.join(self.dir, ".shell-output"), "wb") as output:
            child = subprocess.Popen(
                ["sh", "-c", self.local(command)], cwd=self.dir, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
            self.groups.append(child.pid)
            status = child.wait(timeout=120)
        if status != 0:
            with open(output.name, errors="replace") as text:
                raise RuntimeError(f"{command}: exit status {status}\n{text.read()}")

    def start(self, args):
        monitor = "--chardev socket,id=qmp0,path={dir}/qmp.sock,server=on,wait=off --monitor chardev=qmp0"
        line = self.local(f'exec "$0" {monitor} {" ".join(args)}')
        self.stderr = open(os.path.join(self.dir, ".stderr"), "w+b")
        self.process = subprocess.Popen(
            ["sh", "-c", line, self.daemon], cwd=self.dir, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.stderr)

    def connect(self):
        """The greeting, or None when the daemon ended instead."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            self.sock = socket.socket(socket.AF_UNIX)
            try:
                self.sock.connect(os.path.join(self.dir, "qmp.sock"))
            except OSError:
                self.sock.close()
                self.sock = None
                time.sleep(0.01)
                continue
            return self.read_line(REPLY_TIMEOUT_S)
        return None

    def read_line(self, timeout_s):
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self.buffer:
            self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self.sock.recv(65536)
            except (TimeoutError, ConnectionError):
                return None
            if not data:
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return self.normal(line.decode("utf-8").removesuffix("\r"))

    def normal(self, line):
        try:
            answer = json.loads(self.portable(line))
        except ValueError:
            return self.portable(line)
        if "event" in answer:
            answer.pop("timestamp", None)
        return json.dumps(mask(answer))

    def answers(self, expect_reply):
        """Everything up to a reply and the end of the jobs that began, and then until nothing came for the settling time."""
        lines = []
        jobs = set()
        while True:
            line = self.read_line(REPLY_TIMEOUT_S if expect_reply or jobs else self.settle_s)
            if line is None:
                return lines
            if line.startswith('{"QMP":'):
                continue    # a client that connects while QEMU starts may be greeted twice
            lines.append(line)
            if '"event": ' not in line:
                expect_reply = False
            elif '"JOB_STATUS_CHANGE"' in line:
                data = json.loads(line)["data"]
                if data["status"] == "created":
                    jobs.add(data["id"])
                elif data["status"] in ("concluded", "null"):
                    jobs.discard(data["id"])

    def send(self, data):
        try:
            self.sock.sendall(data)
        except ConnectionError:
            pass

    def finish(self):
        """Tell the daemon to quit if it still runs; exit status and lines of stderr."""
        if self.sock and self.process.poll() is None:
            self.send(b'{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n')
        status = self.process.wait(timeout=EXIT_TIMEOUT_S)
        self.stderr.seek(0)
        text = self.portable(self.stderr.read().decode("utf-8", "replace"))
        return status, text.replace(self.prog, "{prog}").splitlines()


def replay(lines, session):
    """The transcript again, with this daemon's answers in place of the recorded ones."""
    entries = [split_line(line) for line in lines]
    args = [rest for keyword, rest in entries if keyword == "args:"]
    for keyword, rest in entries:
        if keyword == "setup:":
            session.shell(rest)
    session.start(args)
    greeting = session.connect()
    kinds = [keyword for keyword, _ in entries]
    steps = [">", "bytes:", "run:"]
    first_step = min([kinds.index(k) for k in steps if k in kinds], default=len(kinds))
    if greeting is None and first_step < len(kinds):
        status, errors = session.finish()
        raise RuntimeError(f"the daemon ended with status {status}: {errors}")
    out = []
    tail = []
    for number, (keyword, rest) in enumerate(entries):
        if keyword == "<" and number < first_step:
            out.append("< " + (greeting or ""))
        if keyword in ANSWER_LINES:
            continue
        line = lines[number]
        if keyword == "check:":
            tail.append(line)
            continue
        out.append(line)
        answers = []
        if keyword == ">":
            session.send(session.local(rest).encode() + b"\n")
            answers = session.answers(True)
        elif keyword == "bytes:":
            session.send(bytes.fromhex(rest))
            answers = session.answers(False)
        elif keyword == "run:":
            session.shell(rest)
            answers = session.answers(False)
        prefix = answer_prefix(rest) if keyword == ">" else "< "
        out += [("< " if '"event": ' in answer or '"error": ' in answer else prefix) + answer for answer in answers]
    status, errors = session.finish()
    if status < 0:
        raise RuntimeError(f"the daemon died of signal {-status}: {errors}")
    for line in tail:
        session.shell(split_line(line)[1])
    while out and not out[-1].strip():
        out.pop()
    out += tail
    if status:
        out.append(f"exit: {status}")
    out += ["stderr: " + line for line in errors]
    return out


def replay_all(lines, options):
    """Each part of the file, between lines of ---, with a daemon and a folder of its own."""
    parts = [[]]
    for line in lines:
        if line == "---":
            parts.append([])
        else:
            parts[-1].append(line)
    out = []
    for part in parts:
        session = Session(options.daemon, options.settle_ms / 1000)
        try:
            out += ["---"] if out else []
            out += replay(part, session)
        finally:
            session.close()
    return out


def keep_wildcards(old, new):
    """Keep each old line that says the same as the new one, so that "*" and member order stay."""
    def key(line):
        return line if not line.startswith("<") else "<"

    result = list(new)
    blocks = difflib.SequenceMatcher(None, [key(x) for x in old], [key(x) for x in new], autojunk=False)
    for block in blocks.get_matching_blocks():
        for i in range(block.size):
            was, now = old[block.a + i], new[block.b + i]
            if was.startswith("<") and line_matches(was, now):
                result[block.b + i] = was
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, print differences")
    parser.add_argument("--daemon", default="qemu-storage-daemon", metavar="PROG")
    parser.add_argument("--settle-ms", type=int, default=120, help="quiet time after which no more events are awaited")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    bad = 0
    for path in options.files:
        with open(path, encoding="utf-8") as file:
            old = file.read().splitlines()
        try:
            new = keep_wildcards(old, replay_all(old, options))
        except (RuntimeError, ValueError, OSError, subprocess.TimeoutExpired) as error:
            print(f"{path}: {error}", file=sys.stderr)
            bad += 1
            continue
        if new == old:
            continue
        if options.check:
            bad += 1
            print("\n".join(difflib.unified_diff(old, new, path, "now", lineterm="", n=1)))
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write("\n".join(new) + "\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
