"""The command line in a process that is killed, as by SIGKILL, when it has written a file for the N-th time but before
that file has its name: python killed_run.py N evaluate --output ..."""

import os
import signal
import sys

import torch

from apem_fast.cli import main as cli

torch.set_num_threads(1)
left = int(sys.argv.pop(1))
sync = os.fsync


def fsync(handle: int) -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(handle)


os.fsync = fsync
cli.main()
