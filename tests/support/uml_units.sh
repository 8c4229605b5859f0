#!/bin/bash
# On a user-mode Linux host with systemd: install the units as a package would, then let systemd be the first process.
cd /opt/brownout || exit 1
python=$(echo /opt/brownout/python/bin/python3*)
for program in agent injector; do
  printf '#!/bin/sh\nexec env LD_LIBRARY_PATH=/opt/brownout/python/lib %s -m brownout_agent.%s.main "$@"\n' "$python" $program \
    >/usr/bin/brownout-$program
  chmod 755 /usr/bin/brownout-$program
done
# What nobody may not read cannot be copied into memory either; it is made anew.
rm -f /etc/.pwd.lock /etc/shadow /etc/shadow- /etc/gshadow /etc/gshadow-
touch /etc/shadow /etc/gshadow
units=/etc/systemd/system
mkdir -p /etc/sysusers.d /etc/tmpfiles.d
cp deploy/systemd/* $units/
cp deploy/sysusers.d/* /etc/sysusers.d/
cp deploy/tmpfiles.d/* /etc/tmpfiles.d/
systemd-sysusers
systemd-tmpfiles --create brownout.conf
printf 'version: 1\nenvironment: staging\nfaults: {"*": {allow: true, max_seconds: 120}}\nlimits: {concurrent: 16}\n' \
  >/etc/brownout/policy.yaml
if [ -z "$(ls /var/lib/brownout/agent)" ]; then
  IFS=, read -r controller name token pin <<<"$(sed -n 's/.*\bumljoin=\([^ ]*\).*/\1/p' /proc/cmdline)"
  setpriv --reuid=brownout --regid=brownout --clear-groups brownout-agent join --controller "$controller" --name "$name" \
    --token "$token" --ca-pin "$pin" --wait 60 || echo UML-JOIN-FAILED
fi
cat >$units/victim@.service <<UNIT
[Service]
ExecStart=/usr/bin/env LD_LIBRARY_PATH=/opt/brownout/python/lib $python -S /opt/brownout/victim.py victim-%i
UNIT
mkdir $units/victim@fd_exhaustion.service.d
printf '[Service]\nUser=nobody\n' >$units/victim@fd_exhaustion.service.d/user.conf
victims=$(printf 'victim@%s.service ' pause kill freeze fd_exhaustion pid_exhaustion cpu.throttle)
# The weight is the default: it only has systemd switch the controller on.
mkdir $units/victim@cpu.throttle.service.d
printf '[Service]\nCPUWeight=100\n' >$units/victim@cpu.throttle.service.d/controller.conf
for wants in cpu memory disk; do
  cat >$units/wants-$wants.service <<UNIT
[Service]
CPUWeight=100
IOWeight=100
ExecStart=/usr/bin/env LD_LIBRARY_PATH=/opt/brownout/python/lib $python -I -S /opt/brownout/tests/support/uml_wants.py $wants
UNIT
done
cat >$units/story.service <<UNIT
[Unit]
Wants=brownout-agent.service $victims
After=brownout-injector.service $victims
[Service]
WorkingDirectory=/opt/brownout
Environment=LD_LIBRARY_PATH=/opt/brownout/python/lib
ExecStart=$python -m tests.support.uml_units $(sed -n 's/.*\bumltester=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
UNIT
cat >$units/units.target <<UNIT
[Unit]
Wants=brownout-reap.service brownout-injector.service brownout-agent.service story.service
UNIT
exec /lib/systemd/systemd --unit=units.target --log-level=err --show-status=0
