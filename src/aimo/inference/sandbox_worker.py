"""The sandbox's processes: a fork server, and the confined processes that it forks to run code.

`aimo.inference.sandbox` starts the server as a subprocess and sends it requests. Before a process reads code,
`confine` drops its rights, as far as the kernel and the container allow.
"""

import ast
import atexit
import ctypes
import errno
import gc
import json
import linecache
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from contextlib import suppress
from pathlib import Path
from typing import Any

ERROR_LINES, ERROR_CHARS = 20, 2000  # a traceback's last lines and characters are returned
TOKEN = 16  # bytes that mark the end of a program's output


def delete(folder: str) -> None:
    """Delete a folder that code has filled, at any depth, unlike shutil.rmtree."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        with suppress(OSError):  # what cannot be deleted now goes with the server's folder
            subprocess.run(["rm", "-rf", "--", folder])


# ---- the fork server ----


def serve_forks(root: str) -> None:
    """Fork, interrupt or stop a process for each request, until the caller closes the socket at stdin."""
    import numpy.random  # imported once: it takes a second
    import sympy  # noqa: F401

    with suppress(ImportError):
        import networkx  # noqa: F401

    numpy.random.seed(0)
    sys.path.pop(0)
    sys.dont_write_bytecode = True
    LIBC.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: a program's orphans become children of this process
    control = socket.socket(fileno=0)
    children: dict[str, int] = {}
    filters = {programs: syscall_filter(programs) for programs in (False, True)}
    gc.freeze()
    try:
        while (received := socket.recv_fds(control, 4096, 2))[0]:
            request, fds = json.loads(received[0]), received[1]
            scratch = request.get("stop") or request.get("interrupt")
            reply: dict[str, Any] = {}
            try:
                if "stop" in request:
                    reply = {"status": stop(children.pop(scratch, 0))}
                    with suppress(OSError):  # those that left their group, possible only without seccomp
                        ours = Path("/proc/thread-self/children").read_text().split()
                        for stray in set(map(int, ours)) - set(children.values()):
                            stop(stray)
                elif scratch in children:
                    os.kill(children[scratch], signal.SIGINT)
                elif len(fds) == 2:
                    scratch = tempfile.mkdtemp(dir=root)
                    if (pid := os.fork()) == 0:
                        work(fds, scratch, request, filters[request["programs"]])
                    children[scratch] = pid
                    reply = {"pid": pid, "scratch": scratch}
                elif "script" in request:
                    reply = {"error": os.strerror(errno.EMFILE)}  # the kernel did not pass the descriptors
            except OSError as e:  # this request fails; other sessions continue
                reply = {"error": str(e)}
            for fd in fds:
                os.close(fd)
            control.send(json.dumps(reply | {"number": request["number"]}).encode())
    finally:
        for pid in children.values():
            stop(pid)
        delete(root)


def stop(pid: int) -> int:
    """Kill a process (0: none) and its group; return its exit code, negative for a signal."""
    if not pid:
        return 0
    os.kill(pid, signal.SIGKILL)  # a process that has already ended keeps its exit code
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- the confined process ----


def work(fds: list[int], scratch: str, request: dict[str, Any], bpf: bytes) -> None:
    """Run each program that arrives on the channel, and reply. Never return.

    A program arrives as its length (8 bytes), its code and a token. Its output goes to the channel unchanged,
    followed by the token, its error and the token again. The token stays in the channel until the program has
    ended, so that the program cannot find it in memory. A script's process ends after one program, and its
    exit code is the verdict. `fds`: the channel and a script's standard input.
    """
    script = request["script"]
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd, target in zip((*fds, fds[0], null if script else fds[0]), (3, 0, 1, 2), strict=True):
            os.dup2(fd, target)  # the channel has the lowest number of the three, so 3 is none of the others
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        confine(scratch, request, bpf)
        channel = socket.socket(fileno=3)
        sys.argv = ["-c"]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        random.seed(0)  # a fork reseeds it
        number = 0
        while header := receive(channel, 8):
            number += 1
            code = receive(channel, int.from_bytes(header)).decode(errors="surrogatepass")
            said = run_program(code, main.__dict__, f"<code {number}>", script)
            error = said.encode(errors="backslashreplace")
            token = receive(channel, TOKEN)
            channel.sendall(token + error + token)
            if script:
                os._exit(bool(error))
    except BaseException:
        os.write(3, traceback.format_exc()[-ERROR_CHARS:].encode(errors="backslashreplace"))
    finally:
        os._exit(1)


def receive(channel: socket.socket, size: int) -> bytes:
    """Return the next `size` bytes of the channel, fewer if it ends."""
    data = b""
    while len(data) < size and (more := channel.recv(size - len(data))):
        data += more
    return data


_running = False  # whether a program runs that an interrupt should end


def interrupt(*_: object) -> None:
    if _running:  # ignore an interrupt that comes after the program has ended
        raise KeyboardInterrupt


def run_compiled(code: types.CodeType, namespace: dict[str, Any]) -> None:
    global _running
    signal.signal(signal.SIGINT, interrupt)  # again, as earlier code may have set another handler
    _running = True
    try:
        exec(code, namespace)
    finally:
        _running = False


def run_program(code: str, namespace: dict[str, Any], name: str, script: bool) -> str:
    """Run code; return the last lines of its traceback, its exit code, or an empty string."""
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", -1 if script else 1, "utf-8", "strict", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "replace", closefd=False)  # noqa: SIM115
    stdout, error = sys.stdout, ""
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)  # tracebacks show its lines
    try:
        tree = ast.parse(code, name)
        shows_last = not script and tree.body and isinstance(tree.body[-1], ast.Expr)
        last = [tree.body.pop()] if shows_last else []
        run_compiled(compile(tree, name, "exec"), namespace)
        run_compiled(compile(ast.Interactive(last), name, "single"), namespace)  # prints its value
    except SystemExit as e:
        error = f"exit code {e.code}" if e.code else ""
    except BaseException as e:
        trace = e.__traceback__
        while trace and not trace.tb_frame.f_code.co_filename.startswith("<code "):
            trace = trace.tb_next
        lines = "".join(traceback.format_exception(type(e), e, trace)).splitlines()
        error = "\n".join(lines[-ERROR_LINES:])[-ERROR_CHARS:]
    if script:  # what the interpreter does at its end
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, stdout):
        with suppress(AttributeError, OSError, ValueError):  # the code may have closed or replaced it
            stream.flush()
    return error


# ---- what a confined process may do ----

OPEN_FILES, THREADS = 64, 64
LIBC = ctypes.CDLL(None, use_errno=True)


def confine(scratch: str, request: dict[str, Any], bpf: bytes) -> None:
    """Drop, permanently, the rights that code in this process does not need; `syscall_filter` makes `bpf`.

    If the request says `programs`, code may also start installed programs and read headers.
    """
    programs = request["programs"]
    os.setsid()
    os.chdir(scratch)
    os.environ.update(HOME=scratch, TMPDIR=scratch)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, size + (request["memory_mb"] << 20))
    _limit(resource.RLIMIT_FSIZE, request["file_mb"] << 20)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    if programs:
        _limit(resource.RLIMIT_CPU, request["seconds"])  # also binds what leaves the killed group
    with suppress(OSError):
        # When memory runs out, the kernel kills this process and not the caller's.
        Path("/proc/self/oom_score_adj").write_text("1000")
    _check(LIBC.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS, which Landlock and seccomp require

    # Landlock (Linux 5.13): full access to `scratch`, read access to the libraries' folders.
    create, add, restrict = 444, 445, 446  # system calls; the same numbers on every architecture
    if (version := LIBC.syscall(create, None, 0, 1)) >= 1:
        every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1  # all access rights of this version
        execute, write, read, read_folder = 1, 2, 4, 8
        paths = [scratch, os.devnull, "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime"]
        paths += ["/usr/share/zoneinfo"]
        for prefix in (sys.prefix, sys.base_prefix, "/usr", "/usr/local", ""):
            folders = ("lib", "lib64", *(("bin", "include", "libexec") if programs else ()))
            paths += [f"{prefix}/{folder}" for folder in folders]
        ruleset = _check(LIBC.syscall(create, struct.pack("Q", every), 8, 0))
        for path in paths:
            with suppress(FileNotFoundError):
                fd = os.open(path, os.O_PATH)
                is_folder = os.path.isdir(path)
                access = read | (read_folder | execute * programs) * is_folder | write * (path == os.devnull)
                if path == scratch:
                    access = every
                _check(LIBC.syscall(add, ruleset, 1, struct.pack("=Qi", access, fd), 0))
                os.close(fd)
        _check(LIBC.syscall(restrict, ruleset, 0))
        os.close(ruleset)

    # root becomes a user without files, processes or capabilities, with an id that systemd reserves for that.
    if os.geteuid() == 0:
        user = 61184 + os.getpid() % 4336
        _limit(resource.RLIMIT_NPROC, THREADS)  # it counts a user's threads, and does not bind root
        with suppress(OSError):  # a container may forbid it, or lack such a user
            os.chown(scratch, user, user)
            LIBC.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        # If Python is installed in root's home, imports need CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE in a
        # container that has only that. Landlock still limits what may be read and written.
        reachable = all(os.access(str(sys.modules[name].__file__), os.R_OK) for name in ("os", "numpy"))
        for kept in [0] if reachable else [1 << 2, 1 << 1, 0]:
            sets = struct.pack("6I", kept, kept, 0, 0, 0, 0)
            if LIBC.capset(struct.pack("Ii", 0x20080522, 0), sets) == 0:
                break

    _check(LIBC.prctl(1, signal.SIGKILL, 0, 0, 0))  # PR_SET_PDEATHSIG: end with the fork server
    if bpf:
        program = ctypes.create_string_buffer(bpf)
        header = struct.pack("HP", len(bpf) // 8, ctypes.addressof(program))
        _check(LIBC.prctl(22, 2, header, 0, 0))  # PR_SET_SECCOMP


def _limit(kind: int, value: int) -> None:
    """Set an rlimit permanently; keep a lower one."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


# System calls that a confined process may make; all others fail with EPERM.
SYSCALLS = """
    access alarm arch_prctl brk chdir clock_getres clock_gettime clock_nanosleep close close_range
    copy_file_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd
    eventfd2 exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fdatasync flock fstat
    fstatfs fsync ftruncate futex futex_waitv getcpu getcwd getdents getdents64 getegid geteuid getgid
    getgroups getitimer getpeername getpgid getpgrp getpid getppid getrandom getresgid getresuid
    getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid link linkat listxattr
    lseek lstat madvise membarrier mincore mkdir mkdirat mmap mprotect mremap msync munmap nanosleep
    newfstatat open openat pause pipe pipe2 poll ppoll pread64 preadv preadv2 pselect6 pwrite64 pwritev
    pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg rename renameat
    renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn
    rt_sigsuspend rt_sigtimedwait sched_getaffinity sched_getparam sched_getscheduler sched_yield select
    sendfile sendmmsg sendmsg sendto set_robust_list set_tid_address setitimer setrlimit setsockopt
    shutdown sigaltstack stat statfs statx symlink symlinkat sysinfo time timer_create timer_delete
    timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times umask uname unlink
    unlinkat wait4 waitid write writev
"""
STARTS_PROGRAMS = "chmod execve fchmod fchmodat vfork"  # what compilers also need, to start one another
CLONE_THREAD, NEW_NAMESPACES = 0x10000, 0x7E020000
LE, EQUAL, MASKED = 3, 4, 7  # libseccomp's comparisons
# Calls allowed for some values of an argument: name, argument's index, comparison, operands.
CONDITIONAL: list[tuple[Any, ...]] = [
    ("socketpair", 1, MASKED, 0xF, socket.SOCK_STREAM),  # a datagram could be sent to any Unix socket
    ("prlimit64", 0, EQUAL, 0, 0),  # its own limits
    ("prctl", 0, EQUAL, 15, 0),  # PR_SET_NAME
    ("fcntl", 1, LE, 7, 0),  # flags and locks; not F_SETOWN, which sends signals
    ("fcntl", 1, EQUAL, 1030, 0),  # F_DUPFD_CLOEXEC
    # isatty, FIONBIO and similar requests
    *(("ioctl", 1, EQUAL, request, 0) for request in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
]


def syscall_filter(programs: bool) -> bytes:
    """Return the BPF program that allows SYSCALLS and CONDITIONAL; empty if libseccomp is not installed.

    With `programs`, code may start processes, but not in new namespaces; otherwise only threads.
    """
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return b""
    lib.seccomp_init.restype = ctypes.c_void_p
    allow, refuse = 0x7FFF0000, 0x00050000
    context = ctypes.c_void_p(lib.seccomp_init(refuse | errno.EPERM))

    def add(name: str, action: int, *comparison: int) -> None:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # this architecture has the call
            compared = struct.pack("IiQQ", *comparison) if comparison else None  # scmp_arg_cmp
            _check(lib.seccomp_rule_add_array(context, action, number, bool(comparison), compared))

    for name in f"{SYSCALLS} {STARTS_PROGRAMS if programs else ''}".split():
        add(name, allow)
    add("clone", allow, 0, MASKED, *((NEW_NAMESPACES, 0) if programs else (CLONE_THREAD, CLONE_THREAD)))
    for name, *comparison in CONDITIONAL:
        add(name, allow, *comparison)
    # A filter cannot see clone3's flags; without clone3, libc uses clone.
    add("clone3", refuse | errno.ENOSYS)
    with open(os.memfd_create("filter"), "w+b") as file:
        _check(lib.seccomp_export_bpf(context, file.fileno()))
        file.seek(0)
        return file.read()


def _check(result: int) -> int:
    """Raise OSError if a C call failed. libseccomp returns the error's number, libc sets errno."""
    if result < 0:
        number = ctypes.get_errno() or -result
        raise OSError(number, os.strerror(number))
    return result
