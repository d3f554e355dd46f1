#!/bin/bash
# The first process of a host that systemd runs, with nothing in it but the control groups below our own.
#
#   unshare --mount --net --pid --cgroup --uts --ipc --fork --kill-child systemd_host.sh BASE DIRECTORY...
#
# BASE is an empty directory for a root filesystem in memory; each DIRECTORY (and /usr) is shown in it and cannot be
# written to: systemd tidies up a host's files when it starts, and these are not its own.
set -euo pipefail
base=$1
shift
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$base"
cd "$base"
mkdir -p etc/systemd/system etc/dbus-1 proc sys dev run tmp var/lib var/log outside
for directory in /usr "$@"; do
    mkdir -p "$base$directory"
    mount --bind "$directory" "$base$directory"
    mount -o remount,bind,ro "$base$directory"
done
for link in bin sbin lib lib64; do ln -s "usr/$link" "$link"; done
cp /etc/passwd /etc/group etc/
cp -r /etc/dbus-1/. etc/dbus-1/
cp /etc/ld.so.cache etc/
echo 0123456789abcdef0123456789abcdef >etc/machine-id
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom; do
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
mkdir dev/shm

# Control groups as the host has them, from our own on.
find /sys/fs/cgroup -maxdepth 1 -type l -printf '%p %l\n' >run/cgroup-links
awk '$5 ~ "^/sys/fs/cgroup" { at = 1; while ($at != "-") at++; print $5, $(at + 1), $(at + 3) }' \
    /proc/self/mountinfo >run/cgroups
mount -t sysfs -o ro sysfs sys
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
while read -r where kind options; do
    case $kind in
        tmpfs) mount -t tmpfs -o mode=755 tmpfs "$base$where" ;;
        cgroup2)
            mkdir -p "$base$where"
            mount -t cgroup2 cgroup2 "$base$where"
            ;;
        cgroup)
            mkdir -p "$base$where"
            options=$(tr , '\n' <<<"$options" | grep -Evx 'rw|ro|xattr|clone_children|release_agent=.*' | paste -sd,)
            [[ $options != name=* ]] || options=none,$options
            mount -t cgroup -o "$options" cgroup "$base$where"
            ;;
    esac
done <run/cgroups
while read -r where target; do ln -s "$target" "$base$where"; done <run/cgroup-links

# Nothing is started but the bus, without what units depend on by default: that would be all of a host's start.
cat >etc/systemd/system/only.target <<END
[Unit]
DefaultDependencies=no
Requires=dbus.socket dbus.service
After=dbus.service
END
cat >etc/systemd/system/dbus.socket <<END
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
END
cat >etc/systemd/system/dbus.service <<END
[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
Type=notify
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation
END
hostname systemd.test
pivot_root . outside
umount -l /outside
rmdir /outside
export container=test
exec /usr/lib/systemd/systemd --system --unit=only.target --log-target=null
