"""Stands in for crun(1): starts commands directly on the host, without any container.

Its control groups are plain directories: a command ``oom`` is killed after the kernel would have counted it. Containers
have no namespaces; what a created one would have joined is written down.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import sys
import termios


def fail(log: str, message: str) -> None:
    with open(log, "a") as file:
        file.write(json.dumps({"msg": "a warning", "level": "warning"}) + "\n")
        file.write(json.dumps({"msg": message, "level": "error"}) + "\n")
    sys.stderr.write(message + "\n")
    sys.exit(1)


def start(process: dict, options: dict[str, str], group: str, wait: str = "") -> None:  # type: ignore[type-arg]
    master = slave = -1
    if process.get("terminal"):
        master, slave = pty.openpty()
        if size := process.get("consoleSize"):
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size["height"], size["width"], 0, 0))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(options["console-socket"])
            socket.send_fds(connection, [b"x"], [master])
    args = process["args"]
    if args[0] == "nosuch":
        fail(options["log"], "executable file `nosuch` not found in $PATH: No such file or directory")
    if args[0] == "forbidden":
        fail(options["log"], "open executable: Permission denied")
    waiting = os.open(wait, os.O_RDONLY | os.O_NONBLOCK) if wait else -1
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.alarm(300)  # whatever becomes of the test, nothing of it stays
        if slave >= 0:
            for number in range(3):
                os.dup2(slave, number)
        if wait:
            select.select([waiting], [], [])
            os.unlink(wait)
        if args[0] == "oom":
            with open(group + "/memory.events", "w") as file:
                file.write("low 0\noom 1\noom_kill 1\n")
            os.kill(os.getpid(), 9)
        os.execvpe(args[0], args, dict(entry.split("=", 1) for entry in process["env"]))
    with open(options["pid-file"], "w") as file:
        file.write(str(pid))


def namespaces(config: dict) -> list[dict]:  # type: ignore[type-arg]
    return config["linux"].get("namespaces", [])  # type: ignore[no-any-return]


def main() -> None:
    options: dict[str, str] = {}
    words: list[str] = []
    for argument in sys.argv[1:]:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            options[name] = value
        else:
            words.append(argument)
    group = options["cgroups"] + "/casemate/" + words[1]
    if words[0] in ("run", "create"):
        os.makedirs(group, exist_ok=True)
        with open(options["bundle"] + "/config.json") as file:
            config = json.load(file)
        with open(group + "/config.json", "w") as file:
            json.dump(config, file)
        with open(group + "/memory.events", "w") as file:
            file.write("low 0\noom 0\noom_kill 0\n")
        joined = {space["type"]: os.readlink(space["path"]) for space in namespaces(config) if "path" in space}
        with open(group + "/joined.json", "w") as file:
            json.dump(joined, file)
        fifo = ""
        if words[0] == "create":
            fifo = group + "/exec.fifo"
            if os.path.exists(fifo):
                os.unlink(fifo)
            os.mkfifo(fifo)
        start(config["process"], options, group, fifo)
    elif words[0] == "start":
        if not os.path.exists(group + "/exec.fifo"):
            fail(options["log"], "cannot start a container that was started")
        try:
            os.close(os.open(group + "/exec.fifo", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody waits
            fail(options["log"], "the container is not running")
    elif words[0] == "update":
        shutil.copyfile(options["resources"], group + "/resources.json")
    elif words[0] == "exec":
        with open(options["process"]) as file:
            start(json.load(file), options, group)
    elif words[0] == "delete":
        with open(options["cgroups"] + "/deleted", "a") as file:
            file.write(words[1] + "\n")


main()
