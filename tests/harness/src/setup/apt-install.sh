# Installs the Debian packages named as arguments; none of them may start or enable a service on this machine.
set -eu
export DEBIAN_FRONTEND=noninteractive

# Debian asks this file before it starts a service at installation; 101 means "not allowed". One that is there already
# (container images have it) is somebody else's decision and stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

# The lock's time-out: a desktop's own update may be running.
apt-get -q -o DPkg::Lock::Timeout=300 update
apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"

# The policy stops the start at installation, not the one at the next boot.
if [ -d /run/systemd/system ]; then
    for package in "$@"; do
        if [ "$package" = rabbitmq-server ]; then
            systemctl disable --quiet rabbitmq-server.service || true
        fi
    done
fi
