"""QEMU's command line: every value is escaped, every file is a descriptor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import HypervisorError
from casemate.vm.hypervisor import qemu_args
from casemate.vm.hypervisor.base import (
    Accelerator,
    AgentPort,
    Balloon,
    Block,
    Device,
    Image,
    Net,
    Rng,
    SerialConsole,
    SharedFs,
    VmSpec,
    Vsock,
)

ARCH = qemu_args.ARCHES["x86_64"]


def spec(*devices: Device, **changes: object) -> VmSpec:
    values: dict[str, object] = {
        "name": "casemate-0123456789ab",
        "kernel": Path("/k"),
        "initrd": Path("/i"),
        "cmdline": ("quiet",),
        "memory_mib": 256,
        "vcpus": 1,
        "shared_memory": True,
        "accelerator": Accelerator.TCG,
        "devices": devices,
    }
    return VmSpec(**{**values, **changes})  # type: ignore[arg-type]


def line(made: VmSpec, *, firmware: bool = True, counter_khz: int | None = None) -> list[str]:
    return qemu_args.command_line(
        "/usr/bin/qemu", made, ARCH,
        kernel_fd=10, initrd_fd=11, qmp_fd=12, firmware=firmware, counter_khz=counter_khz,
    )  # fmt: skip


def options(argv: list[str], name: str) -> list[str]:
    return [value for flag, value in zip(argv, argv[1:], strict=False) if flag == name]


def split(option: str) -> list[str]:
    """Split at commas as QEMU does: two are one that belongs to the value (``get_opt_value`` of its manual)."""
    words, current, index = [], "", 0
    while index < len(option):
        if option[index] == ",":
            if option[index + 1 : index + 2] != ",":
                words.append(current)
                current, index = "", index + 1
                continue
            index += 1
        current += option[index]
        index += 1
    return [*words, current]


PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z")), max_size=40)


@given(st.lists(PRINTABLE, min_size=1, max_size=5))
def test_no_value_can_add_an_option(values: list[str]) -> None:
    keys = [f"key{number}" for number in range(len(values))]
    made = qemu_args.option("driver", dict(zip(keys, values, strict=True)))
    assert split(made) == ["driver", *(f"{key}={value}" for key, value in zip(keys, values, strict=True))]


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "\x1b[0m", "\u2028"])
def test_unprintable_values_are_refused(value: str) -> None:
    with pytest.raises(HypervisorError, match="unprintable"):
        qemu_args.option("driver", {"key": value})


@pytest.mark.parametrize("key", ["", "a,b", "a=b", "A", "a b"])
def test_bad_keys_are_refused(key: str) -> None:
    with pytest.raises(HypervisorError, match="key"):
        qemu_args.option("driver", {key: "x"})


def test_switches_and_numbers() -> None:
    assert qemu_args.option("q35", {"usb": False, "x": True, "n": 7}) == "q35,usb=off,x=on,n=7"


def test_whole_line() -> None:
    argv = line(
        spec(
            Block("casemate-root", 20),
            SerialConsole(21),
            AgentPort("casemate.agent.0", 22),
            SharedFs("casemate", 23),
            Net("net0", "02:00:00:00:00:01", 24, 1400),
            Vsock(77, 25),
            Rng(),
            Balloon(),
        )
    )
    assert argv[0] == "/usr/bin/qemu"
    assert options(argv, "-bios") == ["qboot.rom"]
    assert options(argv, "-kernel") == ["/proc/self/fd/10"]
    assert options(argv, "-initrd") == ["/proc/self/fd/11"]
    assert options(argv, "-add-fd") == ["fd=20,set=1"]
    assert options(argv, "-mon") == ["chardev=qmp,mode=control"]
    assert set(options(argv, "-chardev")) == {
        "socket,id=qmp,fd=12",
        "socket,id=console.chr,fd=21",
        "socket,id=agent.chr,fd=22",
        "socket,id=share.chr,fd=23",
    }
    assert options(argv, "-netdev") == ["tap,id=net0.net,vhost=off,fd=24"]
    devices = "\n".join(options(argv, "-device"))
    for wanted in (
        "virtio-blk-pci,id=casemate-root,drive=casemate-root.file,serial=casemate-root",
        "isa-serial,id=console,chardev=console.chr",
        "virtserialport,id=agent,chardev=agent.chr,name=casemate.agent.0",
        "vhost-user-fs-pci,id=share,chardev=share.chr,tag=casemate",
        "mac=02:00:00:00:00:01,host_mtu=1400",
        "guest-cid=77",
        "vhostfd=25",
        "free-page-reporting=on",
    ):
        assert wanted in devices
    assert devices.index("virtio-serial-pci") < devices.index("virtserialport")
    assert "read-only=on" in options(argv, "-blockdev")[0]


def test_confinement_is_always_on() -> None:
    argv = line(spec())
    assert options(argv, "-sandbox") == ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    for flag in ("-nodefaults", "-no-user-config"):
        assert flag in argv
    assert "reboot=shutdown" in options(argv, "-action")[0]


@pytest.mark.parametrize(
    ("accelerator", "accel", "cpu", "reliable"),
    [(Accelerator.TCG, "tcg,thread=multi", "max,", True), (Accelerator.KVM, "kvm", "host", False)],
)
def test_accelerator(accelerator: Accelerator, accel: str, cpu: str, reliable: bool) -> None:
    argv = line(spec(accelerator=accelerator), counter_khz=2_100_000)
    assert options(argv, "-accel")[0].startswith(accel)
    assert options(argv, "-cpu")[0].startswith(cpu)
    assert ("tsc=reliable tsc_early_khz=2100000 " in options(argv, "-append")[0]) is reliable


def test_a_counter_of_unknown_frequency_is_watched_by_the_kernel() -> None:
    assert "tsc" not in options(line(spec(accelerator=Accelerator.TCG)), "-append")[0]


def test_memory() -> None:
    assert options(line(spec()), "-object")[0].startswith("memory-backend-memfd,id=ram,size=256M,share=on")
    assert options(line(spec(shared_memory=False)), "-object")[0].startswith(
        "memory-backend-ram,id=ram,size=256M,share=off"
    )


def image(state_fd: int | None) -> Image:
    return Image(20, 21, 16, state_fd)


def test_memory_of_a_machine_that_is_saved_and_of_one_that_was() -> None:
    """The same but for whose the pages are: written to the file first, private afterwards. The window is shared."""
    for state, share in ((None, "on"), (22, "off")):
        argv = line(spec(memory_mib=128, shared_memory=False, image=image(state)))
        (ram, window), nodes = options(argv, "-object")[:2], options(argv, "-numa")
        assert ram.startswith(f"memory-backend-file,id=ram,size=112M,mem-path=/proc/self/fd/20,share={share},")
        assert window.startswith("memory-backend-file,id=window,size=16M,mem-path=/proc/self/fd/21,share=on,")
        assert nodes == ["node,nodeid=0,cpus=0-0,memdev=ram", "node,nodeid=1,memdev=window"]
        assert ("-incoming" in argv) == (state is not None)
        assert "memory-backend" not in options(argv, "-machine")[0]


def test_memory_that_is_added_later() -> None:
    argv = line(spec(memory_mib=128, shared_memory=False, image=image(22), growth_mib=4096))
    assert options(argv, "-m") == ["128M,maxmem=4224M"]
    (backend,) = (value for value in options(argv, "-object") if "growth" in value)
    assert backend.startswith("memory-backend-ram,id=growth.ram,size=4096M,reserve=off,prealloc=off,share=off,merge=on")
    (device,) = (value for value in options(argv, "-device") if "virtio-mem" in value)
    words = split(device)
    assert {"memdev=growth.ram", "node=0", "requested-size=0", "block-size=2M"} <= set(words)
    # Nothing on the line depends on how much there is to be: the state would not fit.
    assert options(line(spec()), "-m") == ["256M"]


@pytest.mark.parametrize(("shared", "mergeable", "guest"), [
    (False, True, "on"), (True, True, "off"), (False, False, "off"), (True, False, "off"),
])  # fmt: skip
def test_private_memory_alone_is_offered_for_merging(shared: bool, mergeable: bool, guest: str) -> None:
    argv = line(spec(shared_memory=shared, mergeable=mergeable))
    assert f"merge={guest}" in options(argv, "-object")[0].split(",")
    assert f"mem-merge={'on' if mergeable else 'off'}" in options(argv, "-machine")[0].split(",")


def test_without_the_fast_firmware() -> None:
    assert "-bios" not in line(spec(), firmware=False)


def test_kernel_arguments() -> None:
    words = options(line(spec(cmdline=("quiet", "a=b,c"))), "-append")[0].split(" ")
    assert words[0] == "console=ttyS0" and words[-2:] == ["quiet", "a=b,c"]
    with pytest.raises(HypervisorError, match="2047"):
        line(spec(cmdline=("x" * 1000, "y" * 1030)))


def test_slots() -> None:
    late = Net("late", "02:00:00:00:00:01", 6)
    devices = options(line(spec(Block("b", 5), Rng(), Balloon(), late, hotplug_slots=2, slotted=("late",))), "-device")
    assert devices[0] == "pcie-pci-bridge,id=slots"
    placed = {device.split("id=")[1].split(",")[0]: device for device in devices if "bus=" in device}
    assert set(placed) == {"rng", "late"}, "one to make the kernel give the bridge addresses, and the one that may go"
    assert placed["rng"].endswith(",bus=slots,addr=1") and placed["late"].endswith(",bus=slots,addr=2")
    assert qemu_args.slot_address(15) == {"bus": "slots", "addr": "11"}


def test_slots_need_something_beside_them() -> None:
    with pytest.raises(HypervisorError, match="randomness"):
        line(spec(hotplug_slots=2))
    with pytest.raises(HypervisorError, match="slots"):
        spec(Rng(), Balloon(), hotplug_slots=1, slotted=("rng", "balloon"))
    with pytest.raises(HypervisorError, match="slots"):
        spec(Rng(), hotplug_slots=1, slotted=("other",))


def test_a_disk_of_the_hosts_has_another_driver_than_a_file() -> None:
    assert qemu_args.parts(Block("b", 5)).blockdev["driver"] == "file"
    assert qemu_args.parts(Block("b", 5, host_device=True)).blockdev["driver"] == "host_device"


def test_every_device_can_go_over_qmp() -> None:
    for device in (Block("b", 5), Net("n", "02:00:00:00:00:01", 6), SharedFs("t", 7), Vsock(3, 8), Rng(), Balloon()):
        part = qemu_args.parts(device, 9)
        assert json.loads(json.dumps(part.device))["id"] == device.id


@pytest.mark.parametrize(
    "make",
    [
        lambda: Block("", 5),
        lambda: Block("a,b", 5),
        lambda: Block("a" * 21, 5),
        lambda: Block("ok", 2),
        lambda: AgentPort("a b", 5),
        lambda: SharedFs("t" * 36, 5),
        lambda: SharedFs("ok", -1),
        lambda: Net("n", "02:00:00:00:00", 5),
        lambda: Net("n", "03:00:00:00:00:01", 5),
        lambda: Net("n", "02:00:00:00:00:01\n", 5),
        lambda: Net("n", "02:00:00:00:00:01", 5, 20),
        lambda: Vsock(2, 5),
        lambda: spec(name="a,b"),
        lambda: spec(cmdline=("a b",)),
        lambda: spec(cmdline=("a\nb",)),
        lambda: spec(cmdline=("",)),
        lambda: spec(cmdline=("x" * 2048,)),
        lambda: spec(memory_mib=8),
        lambda: spec(vcpus=0),
        lambda: spec(growth_mib=3),
        lambda: spec(growth_mib=-2),
        lambda: spec(image=Image(20, 21, 16)),
        lambda: spec(image=Image(20, 21, 16), shared_memory=False, memory_mib=4096),
        lambda: Image(2, 21, 16),
        lambda: spec(hotplug_slots=31),
        lambda: spec(Rng(), Rng()),
        lambda: spec(SharedFs("t", 5), shared_memory=False),
    ],
)
def test_bad_values_are_refused(make: object) -> None:
    with pytest.raises(HypervisorError):
        make()  # type: ignore[operator]
