"""A mock of vLLM for faults that the real one does not produce on command: three processes with vLLM's titles, and its HTTP.

    mock_engine.py PORT [WEIGHTS_FOLDER]

It reads one JSON object per line from the file named by MOCK_ORDERS, each changing some of ORDERS, and obeys at once.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ORDERS = {
    "engine": False,  # the engine process is there
    "worker": False,  # the worker process is there
    "fork": False,  # the worker has forked, and what came of it has not ended
    "shard": 0,  # the worker has this one of the files of weights mapped, counted from 1
    "listen": False,
    "health": 200,
    "metrics": True,  # False: the question is never answered
    "running": 0,
    "moving": False,  # every look at the metrics finds another token
    "busy": False,  # the worker uses the CPU
    "completions": 200,  # 0: the question is never answered
    "exit": None,  # end the main process with this status
    "drain": 0,  # seconds between SIGINT and the end
}
orders = dict(ORDERS)
counts = {"tokens": 0, "asked": 0}
never = threading.Event()


def child(title: str, code: str) -> subprocess.Popen[bytes]:
    """Start a process that goes by another name, as setproctitle makes vLLM's; it obeys lines on its standard input."""
    # Python looks for its library beside its name, where it is told no other place.
    environment = os.environ | {"PYTHONHOME": sys.base_prefix}
    return subprocess.Popen([title, "-c", code], executable=sys.executable, env=environment, stdin=subprocess.PIPE)


ENGINE = "import sys; sys.stdin.read()"
WORKER = """
import mmap, os, select, signal, sys
busy, held, forked = False, None, 0
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if busy and not select.select([sys.stdin], [], [], 0)[0]:
        sum(range(10000))
        continue
    line = sys.stdin.readline()
    if not line:
        break
    word, _, rest = line.strip().partition(" ")
    if word == "busy":
        busy = rest == "True"
    elif word == "fork":
        if rest == "True" and not forked:
            forked = os.fork()
            if not forked:
                signal.pause()
        elif rest == "False" and forked:
            os.kill(forked, signal.SIGKILL)
            forked = 0
    elif word == "map":
        held = None
        if rest:
            with open(rest, "rb") as file:
                held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/metrics":
            if not orders["metrics"]:
                never.wait()
            counts["tokens"] += bool(orders["moving"])
            text = (
                f'vllm:num_requests_running{{engine="0"}} {orders["running"]}.0\n'
                f'vllm:generation_tokens_total{{engine="0"}} {counts["tokens"]}.0\n'
                f"python_gc_objects_collected_total {time.monotonic()}\n"
            )
            self.answer(200, text)
        elif self.path == "/asked":
            self.answer(200, str(counts["asked"]))
        else:
            self.answer(int(orders["health"] or 0), "")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        counts["asked"] += 1
        while orders["completions"] == 0:
            time.sleep(0.02)
        counts["tokens"] += orders["completions"] == 200
        self.answer(int(orders["completions"] or 0), "{}")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def main() -> None:
    def stop(number: int, _frame: object) -> None:
        print(f"mock: {signal.Signals(number).name}", flush=True)
        time.sleep(float(orders["drain"] or 0))
        os._exit(0)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    print("mock: NOTIFY_SOCKET" if "NOTIFY_SOCKET" in os.environ else "mock: started", flush=True)
    port = int(sys.argv[1])
    weights = sorted(Path(sys.argv[2]).glob("*.safetensors"), key=lambda path: (len(path.name), path.name)) if len(sys.argv) > 2 else []
    file = Path(os.environ["MOCK_ORDERS"])
    read = 0
    engine = worker = server = None
    while True:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        for line in lines[read:]:
            orders.update(json.loads(line))
        if len(lines) > read:
            if orders["exit"] is not None:
                os._exit(int(orders["exit"]))
            if orders["engine"] and engine is None:
                engine = child("VLLM::EngineCore", ENGINE)
            if orders["worker"] and worker is None:
                worker = child("VLLM::Worker", WORKER)
            if worker is not None and worker.poll() is None:
                shard = int(orders["shard"] or 0)
                maps = weights[shard - 1] if shard else ""
                worker.stdin.write(f"busy {orders['busy']}\nfork {orders['fork']}\nmap {maps}\n".encode())
                worker.stdin.flush()
            if orders["listen"] and server is None:
                server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
                server.daemon_threads = True
                threading.Thread(target=server.serve_forever, daemon=True).start()
        read = len(lines)
        time.sleep(0.02)


main()
