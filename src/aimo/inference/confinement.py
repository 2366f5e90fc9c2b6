"""Drop the rights of a sandboxed process before it runs code.

rlimits bound its memory and file sizes, Landlock its files, seccomp its system calls; root becomes another
user.

Each is left out where the kernel or a container does not allow it. Out of scope: systems other than Linux.
"""

import ctypes
import errno
import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

OPEN_FILES, THREADS = 64, 64
LIBC = ctypes.CDLL(None, use_errno=True)

# What a confined process may ask of the kernel; all else fails with EPERM.
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
LE, EQUAL, MASKED = 3, 4, 7  # libseccomp's comparisons
CLONE_THREAD = 0x10000
# Allowed for some values of an argument: name, which argument, comparison, its operands.
CONDITIONAL: list[tuple[Any, ...]] = [
    ("clone", 0, MASKED, CLONE_THREAD, CLONE_THREAD),  # threads, not processes
    ("socketpair", 1, MASKED, 0xF, socket.SOCK_STREAM),  # a datagram could be sent to any Unix socket
    ("prlimit64", 0, EQUAL, 0, 0),  # its own limits
    ("prctl", 0, EQUAL, 15, 0),  # PR_SET_NAME
    ("fcntl", 1, LE, 7, 0),  # flags and locks; not F_SETOWN, which sends signals
    ("fcntl", 1, EQUAL, 1030, 0),  # F_DUPFD_CLOEXEC
    # isatty, FIONBIO and the like
    *(("ioctl", 1, EQUAL, request, 0) for request in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
]


class _Comparison(ctypes.Structure):
    """libseccomp's scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("comparison", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def confine(scratch: str, memory_mb: int, file_mb: int, bpf: bytes) -> None:
    """Drop permanently the rights that code in this process does not need; `bpf` is from `syscall_filter`."""
    os.setsid()
    os.chdir(scratch)
    os.environ.update(HOME=scratch, TMPDIR=scratch)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, size + (memory_mb << 20))
    _limit(resource.RLIMIT_FSIZE, file_mb << 20)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    with suppress(OSError):
        # When memory runs out, the kernel kills this process and not the caller's.
        Path("/proc/self/oom_score_adj").write_text("1000")
    _check(LIBC.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS: Landlock and seccomp ask for it
    _landlock(scratch)
    if os.geteuid() == 0:
        _leave_root(scratch)
    _check(LIBC.prctl(1, signal.SIGKILL, 0, 0, 0))  # PR_SET_PDEATHSIG: end with the fork server
    if bpf:
        program = ctypes.create_string_buffer(bpf)
        header = struct.pack("HP", len(bpf) // 8, ctypes.addressof(program))
        _check(LIBC.prctl(22, 2, header, 0, 0))  # PR_SET_SECCOMP


def _limit(kind: int, value: int) -> None:
    """Set an rlimit for good, or keep a lower one."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _landlock(scratch: str) -> None:
    """Allow all in `scratch` and reading in the libraries' folders, on kernels with Landlock (from 5.13)."""
    create, add, restrict = 444, 445, 446  # system calls; the same numbers on every architecture
    version = LIBC.syscall(create, None, 0, 1)
    if version < 1:
        return
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1  # all accesses of this version
    write, read, read_folder = 2, 4, 8
    libraries = [
        f"{prefix}/{lib}"
        for prefix in (sys.prefix, sys.base_prefix, "/usr", "/usr/local", "")
        for lib in ("lib", "lib64")
    ]
    ruleset = _check(LIBC.syscall(create, struct.pack("Q", every), 8, 0))
    for path in (
        scratch,
        os.devnull,
        "/dev/urandom",
        "/etc/ld.so.cache",
        "/etc/localtime",
        "/usr/share/zoneinfo",
        *libraries,
    ):
        with suppress(FileNotFoundError):
            fd = os.open(path, os.O_PATH)
            access = read | read_folder * os.path.isdir(path) | write * (path == os.devnull)
            if path == scratch:
                access = every
            _check(LIBC.syscall(add, ruleset, 1, struct.pack("=Qi", access, fd), 0))
            os.close(fd)
    _check(LIBC.syscall(restrict, ruleset, 0))
    os.close(ruleset)


def _leave_root(scratch: str) -> None:
    """Become a user without files, processes or capabilities, with an id that systemd reserves for that."""
    user = 61184 + os.getpid() % 4336
    _limit(resource.RLIMIT_NPROC, THREADS)  # it counts a user's threads, and does not bind root
    with suppress(OSError):  # where a container forbids it, or has no such user
        os.chown(scratch, user, user)
        LIBC.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    # Where Python is installed in root's home, imports need CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE where a
    # container has only that. Landlock still says what may be read and written.
    reachable = all(os.access(str(sys.modules[name].__file__), os.R_OK) for name in ("os", "numpy"))
    for kept in [0] if reachable else [1 << 2, 1 << 1, 0]:
        if LIBC.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", kept, kept, 0, 0, 0, 0)) == 0:
            break


def syscall_filter() -> bytes:
    """The BPF program that allows SYSCALLS and CONDITIONAL; empty where libseccomp is not installed."""
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return b""
    lib.seccomp_init.restype = ctypes.c_void_p
    allow, refuse = 0x7FFF0000, 0x00050000
    context = ctypes.c_void_p(lib.seccomp_init(refuse | errno.EPERM))

    def add(name: str, action: int, *comparison: int) -> None:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # else this architecture has none of that name
            compared = ctypes.byref(_Comparison(*comparison))
            _check(lib.seccomp_rule_add_array(context, action, number, bool(comparison), compared))

    for name in SYSCALLS.split():
        add(name, allow)
    for name, *comparison in CONDITIONAL:
        add(name, allow, *comparison)
    # A filter cannot see clone3's flags; libc takes clone where there is no clone3.
    add("clone3", refuse | errno.ENOSYS)
    with open(os.memfd_create("filter"), "w+b") as file:
        _check(lib.seccomp_export_bpf(context, file.fileno()))
        file.seek(0)
        return file.read()


def _check(result: int) -> int:
    """Raise OSError where a call of C failed. libseccomp returns the error's number, libc sets errno."""
    if result < 0:
        number = ctypes.get_errno() or -result
        raise OSError(number, os.strerror(number))
    return result
