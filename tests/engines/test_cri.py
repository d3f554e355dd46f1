"""Kubernetes' way: pods of containerd's CRI plugin, with a bridge that the CNI plugins make."""

from __future__ import annotations

import json
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest

from tests.engines.cri import CONTAINER, EXITED, NODE, RUNNING, Cri, Pod
from tests.engines.engines import RUNTIMES, images
from tests.engines.host import TOOLS, Host, Service
from tests.engines.images import BOX
from tests.engines.terminal import eventually

WAIT = "trap 'echo ended; exit 0' TERM; echo ready; echo problems >&2; while :; do sleep 1000 & wait $!; done"
WEB = "mkdir -p /srv; hostname >/srv/index.html; exec httpd -f -p 80 -h /srv"


@pytest.fixture(scope="module", params=RUNTIMES)
def cri(request: pytest.FixtureRequest, engine_host: Host, containerd: Service) -> Iterator[Cri]:
    """A client of the CRI for each runtime. No pod may outlive the tests."""
    ctr = (TOOLS / "bin" / "ctr", "-a", engine_host.base / "c.sock", "-n", "k8s.io")
    if BOX not in engine_host.out(*ctr, "images", "ls", "-q").split():
        engine_host.out(*ctr, "images", "import", images(engine_host))
    made = Cri(engine_host, request.param)
    eventually(made.ready, "it is ready")
    yield made
    left = [pod["id"] for pod in made.call("ListPodSandbox")["items"]]
    for id in left:
        made.call("StopPodSandbox", pod_sandbox_id=id)
        made.call("RemovePodSandbox", pod_sandbox_id=id)
    made.channel.close()
    assert not left


@pytest.fixture(scope="module")
def pod(cri: Cri) -> Iterator[Pod]:
    """A pod with published port."""
    port = {"protocol": 0, "container_port": 80, "host_port": 8090, "host_ip": ""}
    with cri.pod("shared", port_mappings=[port]) as made:
        yield made


@pytest.fixture(scope="module")
def main(pod: Pod) -> str:
    """Its first container."""
    limits = {"memory_limit_in_bytes": 128 << 20, "cpu_period": 100000, "cpu_quota": 50000, "oom_score_adj": 300}
    security = {"run_as_user": {"value": 0}, "no_new_privs": True}
    return pod.start(
        "main", "sh", "-c", WAIT, envs=[{"key": "ONE", "value": "1"}], working_dir="/tmp",
        linux={"resources": limits, "security_context": security},
    )  # fmt: skip


@pytest.fixture(scope="module")
def web(pod: Pod, main: str) -> str:
    """Its second container, a web server."""
    return pod.start("web", "sh", "-c", WEB)


@pytest.mark.feature("pods")
def test_pod_and_container(cri: Cri, pod: Pod, main: str) -> None:
    status = cri.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"]
    assert (status["state"], status["runtime_handler"]) == (0, cri.handler)
    assert cri.status(main)["state"] == RUNNING
    words = cri.sh(main, 'echo "$ONE"; pwd; hostname; cat /proc/1/oom_score_adj').split()
    assert words == ["1", "/tmp", "shared", "300"]
    assert cri.sh(main, "cat /etc/resolv.conf").splitlines() == ["search svc.test", "nameserver 198.18.0.2"]


@pytest.mark.feature("pods")
def test_network_is_shared(cri: Cri, pod: Pod, main: str, web: str) -> None:
    eventually(lambda: cri.exec(main, "wget", "-q", "-O", "-", "http://127.0.0.1/")[1] == b"shared\n", "it serves")
    four, six = pod.addresses
    for name in (main, web):
        shown = cri.sh(name, "ip -o address show dev eth0")
        assert f"{four}/24" in shown and f"{six}/64" in shown
    assert "httpd" not in cri.sh(main, "ps"), "processes are each container's own"
    cri.sh(web, "echo web >/tmp/file")
    assert cri.exec(main, "cat", "/tmp/file")[0] == 1, "files are each container's own"


@pytest.mark.feature("pods")
def test_the_network_outside(cri: Cri, pod: Pod, main: str, web: str) -> None:
    four, six = pod.addresses
    address = json.loads(cri.host.out("ip", "-j", "address", "show", "dev", "cni0"))[0]["addr_info"][0]["local"]
    eventually(lambda: "tentative" not in cri.host.out("ip", "-6", "address", "show", "dev", "cni0"), "it is known")
    for place in (four, f"[{six}]", f"{address}:8090"):
        said = cri.host.out("busybox", "timeout", "20", "busybox", "wget", "-q", "-O", "-", f"http://{place}/")
        assert said == "shared", place
    with cri.host.world() as outside, outside.names(), outside.web({"/": b"from the world"}):
        assert cri.sh(main, "wget -q -O - http://web.world.test/") == "from the world"


@pytest.mark.feature("ExecSync, Exec")
def test_exec(cri: Cri, main: str) -> None:
    assert cri.exec(main, "sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    with pytest.raises(grpc.RpcError) as caught:
        cri.exec(main, "no-such-program")
    assert "executable file not found" in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        cri.exec(main, "sleep", "1000", timeout=1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: "sleep 1000\n" not in cri.sh(main, "ps -o args | grep -c 'sleep 1000$' || true"), "it has ended")


@pytest.mark.feature("ExecSync, Exec")
def test_exec_stream(cri: Cri, main: str) -> None:
    words = ["sh", "-c", "head -c 100000 | sha256sum; echo err >&2; exit 3"]
    options = {"stdin": True, "stdout": True, "stderr": True}
    with cri.stream("Exec", container_id=main, cmd=words, **options) as stream:
        for _ in range(10):
            stream.send(0, b"a" * 10000)
        got = stream.rest()
    assert got[1].startswith(b"6d1cf22d7cc09b085dfc25ee1a1f3ae0265804c607bc2074ad253bcc82fd81ee")
    assert got[2] == b"err\n"
    status = json.loads(got[3])
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]


@pytest.mark.feature("ExecSync, Exec")
def test_exec_terminal(cri: Cri, main: str) -> None:
    options = {"stdin": True, "stdout": True, "tty": True}
    with cri.stream("Exec", container_id=main, cmd=["sh"], **options) as stream:
        stream.send(4, b'{"Width": 99, "Height": 33}')
        stream.send(0, b"until stty size 2>/dev/null | grep 99; do sleep 0.1; done\n")
        stream.until(b"33 99\r\n")
        stream.send(0, b"exit 4\n")
        assert json.loads(stream.rest()[3])["details"]["causes"][0]["message"] == "4"


@pytest.mark.feature("Attach")
def test_attach(cri: Cri, pod: Pod) -> None:
    script = "echo ready; while read line; do echo got $line; done"
    id = pod.start("echo", "sh", "-c", script, stdin=True)
    eventually(lambda: pod.log("echo") == [("stdout", "ready")], "it has begun")
    with cri.stream("Attach", container_id=id, stdin=True, stdout=True, stderr=True) as stream:
        stream.send(0, b"words\n")
        stream.until(b"got words\n")
    assert cri.status(id)["state"] == RUNNING
    eventually(lambda: ("stdout", "got words") in pod.log("echo"), "its log has it too")
    cri.call("StopContainer", container_id=id, timeout=0)
    cri.call("RemoveContainer", container_id=id)


@pytest.mark.feature("Attach")
def test_attach_to_a_terminal(cri: Cri, pod: Pod) -> None:
    id = pod.start("shell", "sh", stdin=True, tty=True)
    with cri.stream("Attach", container_id=id, stdin=True, stdout=True, tty=True) as stream:
        stream.send(4, b'{"Width": 98, "Height": 32}')
        stream.send(0, b"tty; until stty size 2>/dev/null | grep 98; do sleep 0.1; done\n")
        stream.until(b"/dev/pts/0\r\n")
        stream.until(b"32 98\r\n")
        stream.send(0, b"A=kept\n")
    with cri.stream("Attach", container_id=id, stdin=True, stdout=True, tty=True) as stream:
        stream.send(0, b'echo "$A-$((40 + 2))"\n')
        stream.until(b"kept-42\r\n")
        stream.send(0, b"exit 4\n")
        stream.rest()
    eventually(lambda: cri.status(id)["state"] == EXITED, "it has ended")
    assert cri.status(id)["exit_code"] == 4
    cri.call("RemoveContainer", container_id=id)


@pytest.mark.feature("logs")
def test_log(cri: Cri, pod: Pod, main: str) -> None:
    eventually(lambda: set(pod.log("main")) == {("stdout", "ready"), ("stderr", "problems")}, "both lines are there")
    path = cri.status(main)["log_path"]
    cri.host.out("mv", path, f"{path}.1")
    cri.call("ReopenContainerLog", container_id=main)
    cri.sh(main, "echo later >/proc/1/fd/1")
    eventually(lambda: pod.log("main") == [("stdout", "later")], "the new file is written")


@pytest.mark.feature("stats")
def test_stats(cri: Cri, main: str) -> None:
    def used() -> int:
        stats = cri.call("ContainerStats", container_id=main)["stats"]
        assert stats["memory"]["working_set_bytes"]["value"] > 0
        return int(stats["cpu"]["usage_core_nano_seconds"]["value"])

    before = used()
    cri.sh(main, "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done")
    assert used() > before


@pytest.mark.feature("UpdateContainerResources")
def test_update(cri: Cri, main: str) -> None:
    bound = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert int(cri.sh(main, bound)) == 128 << 20
    for limit in (160 << 20, 1200 << 20):  # more than a pod has to begin with
        limits = {"memory_limit_in_bytes": limit, "cpu_period": 100000, "cpu_quota": 70000}
        cri.call("UpdateContainerResources", container_id=main, linux=limits)
        assert int(cri.sh(main, bound)) == limit


@pytest.mark.feature("PortForward")
def test_port_forward(cri: Cri, pod: Pod, web: str) -> None:
    with cri.stream("PortForward", pod_sandbox_id=pod.id, port=[80]) as stream:
        stream.until(struct.pack("<H", 80), 0)
        stream.send(0, b"GET / HTTP/1.0\r\n\r\n")
        assert b"\r\n\r\nshared\n" in stream.until(b"shared\n", 0)


@pytest.mark.feature("containers of a pod that end and come again")
def test_container_restart(cri: Cri, pod: Pod, main: str) -> None:
    """As the kubelet does it: a new container of the same name in the pod that goes on."""
    first = pod.start("worker", "sh", "-c", "echo first; exit 5")
    eventually(lambda: cri.status(first)["state"] == EXITED, "it has ended")
    status = cri.status(first)
    assert (status["exit_code"], status["reason"]) == (5, "Error")
    second = pod.start("worker", "sh", "-c", WAIT, attempt=1)
    cri.call("RemoveContainer", container_id=first)
    eventually(lambda: ("stdout", "ready") in pod.log("worker"), "the second has begun")
    assert pod.addresses[0] in cri.sh(second, "ip -o -4 address show dev eth0")
    cri.call("StopContainer", container_id=second, timeout=30)
    status = cri.status(second)
    assert (status["state"], status["exit_code"], status["reason"]) == (EXITED, 0, "Completed")
    cri.call("RemoveContainer", container_id=second)
    third = pod.start("worker", "sh", "-c", WAIT, attempt=2)
    cri.call("RemoveContainer", container_id=third)  # one that runs is killed for it
    assert third not in [one["id"] for one in cri.call("ListContainers")["containers"]]
    assert cri.status(main)["state"] == RUNNING


@pytest.mark.feature("containers of a pod that end and come again")
def test_out_of_memory(cri: Cri, pod: Pod, main: str) -> None:
    limits = {"memory_limit_in_bytes": 32 << 20}
    id = pod.start("hungry", "tail", "/dev/zero", linux={"resources": limits})
    eventually(lambda: cri.status(id)["state"] == EXITED, "it has ended")
    status = cri.status(id)
    assert (status["exit_code"], status["reason"]) == (137, "OOMKilled")
    cri.call("RemoveContainer", container_id=id)
    assert cri.status(main)["state"] == RUNNING


@pytest.mark.feature("restart of containerd")
def test_containerd_restarts(cri: Cri, containerd: Service, pod: Pod, main: str, web: str) -> None:
    containerd.restart(signal.SIGKILL)
    eventually(cri.ready, "it is ready")
    assert cri.status(main)["state"] == cri.status(web)["state"] == RUNNING
    assert cri.sh(main, "wget -q -O - http://127.0.0.1/") == "shared"
    id = pod.start("late", "sh", "-c", WAIT)
    assert pod.addresses[0] in cri.sh(id, "ip -o -4 address show dev eth0")
    cri.call("StopContainer", container_id=id, timeout=30)
    assert cri.status(id)["exit_code"] == 0


@pytest.mark.feature("pods that share processes")
def test_shared_processes(cri: Cri) -> None:
    options = {"network": 0, "pid": 0, "ipc": 0}
    linux = {"security_context": {"namespace_options": options}}
    with cri.pod("processes", linux=linux) as pod:
        one = pod.start("one", "sh", "-c", "exec sleep 12345", linux=linux)
        two = pod.start("two", "sh", "-c", WAIT, linux=linux)
        assert "sleep 12345" in eventually(lambda: cri.sh(two, "ps"), "they see each other")
        assert "trap" in cri.sh(one, "ps")
        cri.sh(one, "echo shared >/dev/shm/word")
        assert cri.sh(two, "cat /dev/shm/word") == "shared"


@pytest.mark.feature("pods of the host's network")
def test_host_network(cri: Cri) -> None:
    security = {"namespace_options": {"network": NODE, "pid": CONTAINER}}
    if cri.ours:
        with pytest.raises(grpc.RpcError) as caught, cri.pod("host", hostname="", linux={"security_context": security}):
            pass
        assert "network" in caught.value.details()
    else:
        with cri.pod("host", hostname="", linux={"security_context": security}) as pod:
            id = pod.start("one", "sleep", "1000", linux={"security_context": security})
            assert "cni0" in cri.sh(id, "ls /sys/class/net")


@pytest.mark.feature("pods")
def test_stop_and_remove(cri: Cri, pod: Pod, web: str, tmp_path: Path) -> None:
    config = cri.pod_config("gone")
    id = cri.call("RunPodSandbox", config=config, runtime_handler=cri.handler)["pod_sandbox_id"]
    other = Pod(cri, id, config)
    # What the kubelet makes of names that a pod is told.
    (tmp_path / "hosts").write_text("".join(f"{address} web.pods.test\n" for address in pod.addresses))
    mounts = [{"container_path": "/etc/hosts", "host_path": str(tmp_path / "hosts"), "readonly": True}]
    container = other.start("one", "sh", "-c", WAIT, mounts=mounts)
    assert cri.sh(container, "wget -q -O - http://web.pods.test/") == "shared"
    cri.call("StopPodSandbox", pod_sandbox_id=id)
    assert cri.status(container)["state"] == EXITED
    assert cri.call("PodSandboxStatus", pod_sandbox_id=id)["status"]["state"] == 1
    cri.call("StopPodSandbox", pod_sandbox_id=id)
    cri.call("RemovePodSandbox", pod_sandbox_id=id)
    cri.call("RemovePodSandbox", pod_sandbox_id=id)
    assert container not in [one["id"] for one in cri.call("ListContainers")["containers"]]


@pytest.mark.feature("many pods at once")
def test_ten_in_parallel(cri: Cri) -> None:
    said: dict[int, list[tuple[str, str]]] = {}

    def one(number: int) -> None:
        with cri.pod(f"many{number}") as pod:
            id = pod.start("one", "sh", "-c", f"hostname; exit {number}")
            eventually(lambda: cri.status(id)["state"] == EXITED, "it has ended")
            assert cri.status(id)["exit_code"] == number
            said[number] = pod.log("one")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: [("stdout", f"many{number}")] for number in range(10)}
