#!/bin/bash
# The first process of a host of its own for engines: makes its file systems, says "ready", and stays.
#
#   unshare --mount --net --pid --cgroup --uts --ipc --fork --kill-child host.sh BASE GUEST TINI
#
# BASE is a directory for everything that is to be kept, GUEST where the guest bundles are. When standard input ends,
# so does the host, and with it every process, mount and network link in it.
set -euo pipefail
base=$1 guest=$2 tini=$3

# Hosts have a shared root as systemd makes it; here it is shared with nobody outside.
mount --make-rslave /
mount --make-rshared /
mount -t proc -o nosuid,nodev,noexec proc /proc

# What engines write outside their own directories goes to a layer of ours.
for directory in etc opt usr/local var/lib; do
    layer=$base/layers/${directory/\//-}
    mkdir -p "$layer/upper" "$layer/work"
done
mkdir -p "$base/root/guest"
mount --rbind "$guest" "$base/root/guest"
for directory in etc opt usr/local var/lib; do
    layer=$base/layers/${directory/\//-}
    mount -t overlay -o "lowerdir=/$directory,upperdir=$layer/upper,workdir=$layer/work" overlay "/$directory"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 1777 /run/lock
mount -t tmpfs -o mode=1777 tmpfs /dev/shm

# /sys shows the links of the network namespace that it was mounted in, and control groups below the one of ours.
find /sys/fs/cgroup -maxdepth 1 -type l -printf '%p %l\n' >"$base/cgroup-links"
awk '$5 ~ "^/sys/fs/cgroup" { at = 1; while ($at != "-") at++; print $5, $(at + 1), $(at + 3) }' \
    /proc/self/mountinfo >"$base/cgroups"
umount --recursive --lazy /sys
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
while read -r where kind options; do
    case $kind in
        tmpfs) mount -t tmpfs -o mode=755 tmpfs "$where" ;;
        cgroup2)
            mkdir -p "$where"
            mount -t cgroup2 cgroup2 "$where"
            ;;
        cgroup)
            mkdir -p "$where"
            options=$(tr , '\n' <<<"$options" | grep -Evx 'rw|ro|xattr|clone_children|release_agent=.*' | paste -sd,)
            [[ $options != name=* ]] || options=none,$options
            mount -t cgroup -o "$options" cgroup "$where"
            ;;
    esac
done <"$base/cgroups"
while read -r where target; do
    ln -s "$target" "$where"
done <"$base/cgroup-links"
if [[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]]; then
    # In the unified hierarchy a group with controllers for its children holds no processes.
    mkdir /sys/fs/cgroup/host
    echo 0 >/sys/fs/cgroup/host/cgroup.procs
    sed 's/[a-z]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
fi

hostname engines.test
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
# That is the name server of a world 0, see tests/vm/world.py.
printf 'nameserver 198.18.0.2\n' >/etc/resolv.conf.new
rm -f /etc/resolv.conf
mv /etc/resolv.conf.new /etc/resolv.conf

# It reaps what engines leave behind, as a host's first process does.
exec "$tini" -- bash -c 'echo ready; exec cat'
