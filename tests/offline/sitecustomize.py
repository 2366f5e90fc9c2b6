"""What a Kaggle notebook cannot do, in every Python process that has this folder on PYTHONPATH.

It reaches no network but loopback, writes nothing among its inputs, and sees nothing of this repository but
its virtual environment.
"""

import errno
import ipaddress
import os
import socket
import sys

INPUTS = os.environ["MACHINE_INPUTS"] + os.sep
REPOSITORY = os.environ["MACHINE_HIDDEN"] + os.sep
SEEN = tuple(REPOSITORY + name + os.sep for name in (".venv", "tests/offline"))
OFFLINE = os.environ["MACHINE_OFFLINE"] == "1"
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "os.chmod"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def is_local(host):
    name = host.decode() if isinstance(host, bytes) else host or ""
    if name in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def check(event, arguments):
    if event == "open" or event in CHANGES:
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        writes = event in CHANGES or (isinstance(arguments[2], int) and arguments[2] & WRITES)
        if writes and path.startswith(INPUTS):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        if path.startswith(REPOSITORY) and not path.startswith(SEEN):
            raise PermissionError(errno.EACCES, "a notebook sees nothing of the repository", path)
    elif OFFLINE and event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
        if not is_local(arguments[1][0]):
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
    elif OFFLINE and event == "socket.getaddrinfo" and not is_local(arguments[0]):
        raise socket.gaierror(socket.EAI_AGAIN, "a notebook has no network")


sys.addaudithook(check)
