"""`python -m interface.worker.alive`: the health check of a worker's container."""

import sys

from bootstrap.heartbeat import is_alive

sys.exit(0 if is_alive() else 1)
