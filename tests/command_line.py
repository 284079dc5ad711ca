"""A script as its user starts it, in this process or, if a test needs it, in a separate one."""

import contextlib
import io
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from pds.lab import cli

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def kept():
    """The folder, the arguments and the environment of this process, as they were before the block."""
    folder, arguments, environment = Path.cwd(), sys.argv, os.environ.copy()
    try:
        yield
    finally:
        os.chdir(folder)
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)


def command(script, *arguments):
    """The output and the end of `python experiments/SCRIPT ARGUMENTS`, without a start of Python."""
    said, told = io.StringIO(), io.StringIO()
    with kept(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        os.chdir(ROOT)
        sys.argv = [f"experiments/{script}", *arguments]
        with mock.patch.object(cli, "start") as started:
            runpy.run_path(sys.argv[0], run_name="__main__")
        status = cli.status(started.call_args.args[0], list(arguments))
    return SimpleNamespace(pid=os.getpid(), returncode=status, stdout=said.getvalue(), stderr=told.getvalue())


def environment(*folders, **variables):
    """The environment of a process that finds this library and these folders, and no service of W&B."""
    path = os.pathsep.join(filter(None, [str(ROOT), *map(str, folders), os.environ.get("PYTHONPATH")]))
    here = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return here | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | variables


def started(*arguments, cwd=ROOT, **variables):
    """The output, the end and the number of a separate Python."""
    program, pipes = [sys.executable, *arguments], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, cwd=cwd, text=True, env=environment(**variables), **pipes) as process:
        said, told = process.communicate()
    return SimpleNamespace(pid=process.pid, returncode=process.returncode, stdout=said, stderr=told)


# A script that begins so asks this server for whatever it asks of others, and `heard` has the requests.
COUNTING = """
import os, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

heard = []
class Handler(BaseHTTPRequestHandler):
    def answer(self):
        heard.append(f"{self.command} {self.path}")
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = answer
    def log_message(self, *arguments): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
proxies = {name: url for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY")}
os.environ.update(proxies, NO_PROXY="", no_proxy="")
"""

forks = multiprocessing.get_context("fork")


def side_by_side(work):
    """Run `work` in two copies of this process that find each other as those of torchrun do; neither may fail."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    there = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def copy(rank):
        os.environ.update(there | {"RANK": rank, "LOCAL_RANK": rank})
        work()

    copies = [forks.Process(target=copy, args=(rank,), daemon=True) for rank in "01"]
    for process in copies:
        process.start()
    for process in copies:
        process.join(300)
    assert [process.exitcode for process in copies] == [0, 0]
