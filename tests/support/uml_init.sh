#!/bin/bash
# The first process of a user-mode Linux host. Root is the machine's by hostfs, read-only; what is written goes to memory.
# Kernel arguments: umlshare (a folder, at /opt/brownout), umladdress, umlrun (what to run: `systemd`, or a program there).
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
modules=/usr/lib/uml/modules/$(uname -r)
new=/mnt/new
mount -t tmpfs -o size=60%,mode=755 tmpfs /mnt
mkdir -p /mnt/upper /mnt/work $new
insmod $modules/kernel/fs/overlayfs/overlay.ko
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work $new || { echo UML-INIT-FAILED; exec /sbin/poweroff -f; }
mount -t proc proc $new/proc
mount -t sysfs sys $new/sys
mount -t tmpfs tmpfs $new/run
mount -t tmpfs tmpfs $new/tmp
mount -t devtmpfs dev $new/dev
mkdir -p $new/dev/shm $new/dev/pts $new/opt/brownout $new/var/lib/brownout
mount -t tmpfs tmpfs $new/dev/shm
mount -t devpts devpts $new/dev/pts
argument() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" $new/proc/cmdline; }
mount -t hostfs none $new/opt/brownout -o "$(argument umlshare)"
mount -t ext4 /dev/ubdb $new/var/lib/brownout
mkdir -p $new/lib/modules
rm -rf "$new/lib/modules/$(uname -r)"
ln -s "$modules" "$new/lib/modules/$(uname -r)"
chroot $new ip link set lo up
chroot $new ip address add "$(argument umladdress)" dev vec0
chroot $new ip link set vec0 up
if [ "$(argument umlrun)" = systemd ]; then
  exec chroot $new /opt/brownout/boot
fi
mount -t cgroup2 none $new/sys/fs/cgroup
# shellcheck disable=SC2046 # words are wanted: a program and its arguments
exec chroot $new $(argument umlrun | tr , ' ')
