#!/bin/sh
# The first process of a host under QEMU: timed nftables rules that steer packets into netem, and what ping says of them.
# Prints `ping UPTIME_S MILLISECONDS`, and `added UPTIME_S SECONDS` when the timed element is in; then the power goes off.
export PATH=/bin
mount -t proc proc /proc
for module in $(cat /modules/order); do insmod "/modules/$module" || echo "no $module"; done
/bin/ip link set lo up
/bin/tc qdisc add dev lo root handle 1: prio bands 4
/bin/tc qdisc add dev lo parent 1:4 handle 40: netem delay 40ms
/bin/nft -f /rules
uptime_s() { read -r up _ </proc/uptime; echo "$up"; }
ping_for() {
  end=$(($(date +%s) + $1))
  while [ "$(date +%s)" -lt $end ]; do
    at=$(uptime_s)
    ms=$(ping -c 1 -W 2 127.0.0.1 | sed -n 's/.*time=\([0-9.]*\) ms/\1/p')
    echo "ping $at $ms"
    usleep 100000
  done
}
ping_for 2
/bin/nft add element inet brownout steered '{ 127.0.0.1 timeout 4s }'
echo "added $(uptime_s) 4"
ping_for 8
echo "rules $(/bin/nft list set inet brownout steered | tr -d '\n')"
poweroff -f
