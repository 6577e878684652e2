"""Runs a command to which the kernel denies system calls, as a container's seccomp profile does.

python tests/denied.py EPERM ptrace,kcmp mpirun -np 3 …
"""

import ctypes
import errno
import os
import platform
import struct
import sys

# On x86-64 and on aarch64.
NUMBERS = {
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "kcmp": (312, 272),
    "memfd_create": (319, 279),
    "userfaultfd": (323, 282),
    "pidfd_open": (434, 434),
}
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of the classic Berkeley packet filter
ERRNO, ALLOW = 0x00050000, 0x7FFF0000


def deny(calls: list[str], code: int) -> None:
    """From here on ``calls`` fail with ``code`` in this process and in all that it starts."""
    numbers = [NUMBERS[call][platform.machine() == "aarch64"] for call in calls]
    steps = [(LOAD, 0, 0, 0)]  # the call's number
    steps += [(EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERRNO | code)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    described = struct.pack("HP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, argument in ((PR_SET_NO_NEW_PRIVS, 1), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER)):
        if libc.prctl(option, argument, described if option == PR_SET_SECCOMP else 0, 0, 0):
            raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    deny(sys.argv[2].split(","), getattr(errno, sys.argv[1]))
    os.execvp(sys.argv[3], sys.argv[3:])
