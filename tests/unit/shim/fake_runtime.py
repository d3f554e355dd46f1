#!/usr/bin/env python3
"""An OCI runtime for tests: its containers are plain processes of whoever runs it. It says what it was asked.

Every command line is appended to ``calls`` in its root. A file ``fail-VERB`` there makes that verb fail with its
contents as the error; where ``before-VERB`` or ``after-VERB`` is a FIFO it begins, or ends, when somebody has opened
that for writing and closed it.
"""

import array
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import termios


def main() -> None:
    words = sys.argv[1:]
    options: dict[str, str] = {}
    while words and words[0].startswith("--"):
        word = words.pop(0)
        options[word] = "" if word in ("--debug", "--systemd-cgroup") else words.pop(0)
    root = options["--root"]
    os.makedirs(root, exist_ok=True)
    verb = words.pop(0)
    with open(f"{root}/calls", "a") as file:
        file.write(json.dumps([verb, *words, *(key for key in options if key not in ("--root", "--log"))]) + "\n")
    try:
        read(f"{root}/before-{verb}")
        if error := read(f"{root}/fail-{verb}"):
            raise RuntimeError(error)
        VERBS[verb](root, words)
        read(f"{root}/after-{verb}")
    except RuntimeError as error:
        with open(options["--log"], "a") as file:
            file.write(json.dumps({"level": "info", "msg": "about to fail"}) + "\n")
            file.write(json.dumps({"level": "error", "msg": str(error), "time": "2024-01-01T00:00:00Z"}) + "\n")
        sys.exit(f"{error}")


def read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def parse(words: list[str], switches: tuple[str, ...] = ()) -> tuple[dict[str, str], list[str]]:
    options, rest = {}, []
    words = list(words)
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            options[word] = "" if word in switches else words.pop(0)
        else:
            rest.append(word)
    return options, rest


def state(root: str, container: str) -> str:
    if not os.path.isdir(f"{root}/{container}"):
        raise RuntimeError("container does not exist")
    return f"{root}/{container}"


def pid_of(directory: str) -> int:
    return int(read(f"{directory}/pid"))


def spawn(args: list[str], options: dict[str, str], gate: str = "") -> int:
    """Leave a process behind; with a gate it waits until something is written there."""
    slave = -1
    if "--console-socket" in options:
        master, slave = os.openpty()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(options["--console-socket"])
            sock.sendmsg([b"pty"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))])
        os.close(master)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if slave >= 0:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for number in (0, 1, 2):
                os.dup2(slave, number)
        if gate:
            with open(gate) as file:
                file.read()
        try:
            os.execvp(args[0], args)
        finally:
            os._exit(127)
    with open(options["--pid-file"], "w") as file:
        file.write(str(pid))
    return pid


def create(root: str, words: list[str]) -> None:
    options, (container,) = parse(words, ("--no-pivot", "--no-new-keyring"))
    args = json.loads(read(f"{options['--bundle']}/config.json"))["process"]["args"]
    if not shutil.which(args[0]):
        raise RuntimeError(f'exec: "{args[0]}": executable file not found in $PATH')
    directory = f"{root}/{container}"
    os.mkdir(directory)
    os.mkfifo(f"{directory}/gate")
    if pod := read(f"{root}/pod"):
        with open(f"{directory}/record.json", "w") as file:
            json.dump({"id": container, "pod": pod}, file)
    with open(f"{directory}/pid", "w") as file:
        file.write(str(spawn(args, options, f"{directory}/gate")))


def start(root: str, words: list[str]) -> None:
    directory = state(root, words[0])
    with open(f"{directory}/gate", "w"):
        pass


def execute(root: str, words: list[str]) -> None:
    options, (container,) = parse(words, ("--detach",))
    state(root, container)
    args = json.loads(read(options["--process"]))["args"]
    if not shutil.which(args[0]):
        raise RuntimeError(f'exec failed: exec: "{args[0]}": executable file not found in $PATH')
    spawn(args, options)


def kill(root: str, words: list[str]) -> None:
    _, (container, signum) = parse(words, ("--all",))
    try:
        os.kill(pid_of(state(root, container)), int(signum))
    except ProcessLookupError:
        raise RuntimeError("container not running") from None


def delete(root: str, words: list[str]) -> None:
    options, (container,) = parse(words, ("--force",))
    directory = state(root, container)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid_of(directory), signal.SIGKILL)
    shutil.rmtree(directory)


def pause(root: str, words: list[str]) -> None:
    os.kill(pid_of(state(root, words[0])), signal.SIGSTOP)


def resume(root: str, words: list[str]) -> None:
    os.kill(pid_of(state(root, words[0])), signal.SIGCONT)


def ps(root: str, words: list[str]) -> None:
    print(json.dumps([pid_of(state(root, words[-1]))]))


def update(root: str, words: list[str]) -> None:
    with open(f"{state(root, words[-1])}/resources", "w") as file:
        file.write(sys.stdin.read())


def features(root: str, words: list[str]) -> None:
    print('{"ociVersionMin": "1.0.0"}')


VERBS = {
    "create": create, "start": start, "exec": execute, "kill": kill, "delete": delete, "pause": pause, "resume": resume,
    "ps": ps, "update": update, "features": features,
}

if __name__ == "__main__":
    main()
