#!/bin/sh
# Install what the benchmarks compare with, and start nothing of it: each run starts its own.
set -e
packages="nginx libnginx-mod-http-js haproxy wrk redis-server rabbitmq-server"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "Please install: $packages" >&2
  exit 1
fi
policy=/usr/sbin/policy-rc.d # Debian asks it whether a service may start
if [ ! -e $policy ]; then
  trap 'rm -f $policy' EXIT
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
