"""The shop's two programs: their configurations as text, and HAProxy's own word on who is up."""

import csv
import socket
from pathlib import Path

from brownout_controller.demo.network import ADDRESSES, has_ipv6

SHOP_PORT = 8080
BACKEND = "shop"


def nginx_configuration(host: str, folder: Path) -> str:
    """nginx as one app server: /healthz and /checkout, and a header that says who answered. Writes only to `folder`."""
    listen = [f"listen {ADDRESSES[host].v4}:{SHOP_PORT};"]
    if has_ipv6():
        listen.append(f"listen [{ADDRESSES[host].v6}]:{SHOP_PORT};")
    scratch = [f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    return f"""\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
  {" ".join(scratch)}
  access_log off;
  default_type text/plain;
  add_header X-Served-By {host} always;
  server {{
    {" ".join(listen)}
    location = /healthz {{ return 200 "ok\\n"; }}
    location = /checkout {{ return 200 "order accepted by {host}\\n"; }}
    location / {{ return 404 "no such page\\n"; }}
  }}
}}
"""


def haproxy_configuration(host: str, runtime_socket: Path) -> str:
    """HAProxy as the edge, set as its users set it: checks, retries, another server after the last, bounded waits.

    app-1 serves and app-2 stands by, so every moment of a failover is one moment and not a matter of which server a
    request was dealt. It logs to standard output with a time stamp in microseconds on each line, and offers its
    runtime socket.
    """
    listen = [f"bind {ADDRESSES[host].v4}:{SHOP_PORT}"]
    if has_ipv6():
        listen.append(f"bind [{ADDRESSES[host].v6}]:{SHOP_PORT}")
    binds = "\n  ".join(listen)
    return f"""\
global
  log stdout format iso local0
  stats socket {runtime_socket} mode 666 level user
defaults
  log global
  mode http
  option httplog
  option log-health-checks
  option redispatch
  retries 3
  timeout connect 1s
  timeout client 10s
  timeout server 2s
frontend edge
  {binds}
  default_backend {BACKEND}
backend {BACKEND}
  option httpchk GET /healthz
  http-check expect status 200
  default-server inter 500ms fall 2 rise 2
  server app-1 {ADDRESSES["app-1"].v4}:{SHOP_PORT} check
  server app-2 {ADDRESSES["app-2"].v4}:{SHOP_PORT} check backup
"""


def server_states(path: Path) -> dict[str, str]:
    """Each server of the shop with its state, such as `UP (L7OK)`, from `show stat` (HAProxy management guide, 9.3).

    Raises:
        OSError: the socket is not there, not yet listening, or does not answer within a second.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(1)
        link.connect(str(path))
        link.sendall(b"show stat\n")
        with link.makefile(encoding="ascii", newline="") as answer:
            rows = list(csv.DictReader(answer))
    shop = (row for row in rows if row["# pxname"] == BACKEND and row["svname"] != "BACKEND")
    return {row["svname"]: f"{row['status']} ({row['check_status']})" for row in shop}
