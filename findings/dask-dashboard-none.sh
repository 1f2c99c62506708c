#!/usr/bin/env bash
# LocalCluster(dashboard_address=None) of distributed 2026.8.0 still serves HTTP on port 8787 of every interface.
#
# Its docstring says of dashboard_address: "Set to ``None`` to disable the dashboard". Behaviour seen: with None, and
# without bokeh installed, the scheduler's HTTP server (information pages, health, metrics) listens on port 8787 of all
# interfaces, IPv4 and IPv6, and answers; a second such cluster of the same machine warns that the port is taken. One
# would expect no listener, or one on the loopback address, where host= and the scheduler itself are. An explicit
# dashboard_address="127.0.0.1:0" keeps the server on the machine and off the port.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0 dask==2026.8.0
cat > "$folder/seen.py" <<'PYTHON'
from urllib.request import urlopen

import distributed


def listeners(address):
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=address, silence_logs=50
    ) as cluster:
        server = cluster.scheduler.http_server
        sockets = [socket.getsockname()[:2] for socket in server._sockets.values()]
        with urlopen(f"http://127.0.0.1:{server.port}/health", timeout=10) as answer:
            return cluster.scheduler.address.split(":")[0], sockets, answer.status


if __name__ == "__main__":
    print("distributed", distributed.__version__)
    for address in (None, "127.0.0.1:0"):
        scheme, sockets, status = listeners(address)
        print(f"dashboard_address={address!r}: scheduler {scheme}, HTTP listens at {sockets}, answers {status}")
        hosts = {host for host, _ in sockets}
        assert status == 200
        assert ("0.0.0.0" in hosts) == (address is None)
        assert address is not None or {port for _, port in sockets} == {8787}
PYTHON
"$folder/env/bin/python" "$folder/seen.py"
