"""Stands in for crun(1): starts commands directly on the host, without any container.

Its control groups are plain directories: a command ``oom`` is killed after the kernel would have counted it.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
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


def start(process: dict, options: dict[str, str], group: str) -> None:  # type: ignore[type-arg]
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
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if slave >= 0:
            for number in range(3):
                os.dup2(slave, number)
        if args[0] == "oom":
            with open(group + "/memory.events", "w") as file:
                file.write("low 0\noom 1\noom_kill 1\n")
            os.kill(os.getpid(), 9)
        os.execvpe(args[0], args, dict(entry.split("=", 1) for entry in process["env"]))
    with open(options["pid-file"], "w") as file:
        file.write(str(pid))


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
    if words[0] == "run":
        os.makedirs(group, exist_ok=True)
        with open(options["bundle"] + "/config.json") as file:
            config = json.load(file)
        with open(group + "/config.json", "w") as file:
            json.dump(config, file)
        with open(group + "/memory.events", "w") as file:
            file.write("low 0\noom 0\noom_kill 0\n")
        start(config["process"], options, group)
    elif words[0] == "exec":
        with open(options["process"]) as file:
            start(json.load(file), options, group)
    elif words[0] == "delete":
        with open(options["cgroups"] + "/deleted", "a") as file:
            file.write(words[1] + "\n")


main()
