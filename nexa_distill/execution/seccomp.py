"""Seccomp filter: the system calls that a sandboxed program may not make.

A classic BPF program (linux/filter.h, Documentation/userspace-api/seccomp_filter.rst), assembled
here for x86-64 and aarch64. New processes, sockets, namespaces, mounts, tracing and memory outside
the address-space limit fail with EPERM. Calls of another architecture kill the process.
"""

import platform
import struct

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = 1, 38
CLONE_THREAD = 0x00010000
X32 = 0x40000000  # x86-64: the bit of its third calling convention, which is not used

# name -> number on x86-64 and on aarch64 (None: does not exist there)
NUMBERS: dict[str, tuple[int, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_by_handle_at": (304, 265),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442),
    "socket": (41, 198), "memfd_create": (319, 279), "shmget": (29, 194), "msgget": (68, 186),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "kexec_load": (246, 104), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "pidfd_getfd": (438, 438),
}  # fmt: skip
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def build_filter(machine: str | None = None) -> bytes | None:
    """The filter for this machine (`platform.machine()`), or None for an unknown one."""
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        return None
    token, column = ARCHITECTURES[machine]
    # The numbers of another architecture mean other calls, so it is checked first.
    code = [_bpf_op(LOAD, ARCHITECTURE), _bpf_op(JUMP_EQUAL, token, 1, 0), _bpf_op(RETURN, KILL), _bpf_op(LOAD, NUMBER)]
    if machine == "x86_64":
        code += [_bpf_op(JUMP_AT_LEAST, X32, 0, 1), _bpf_op(RETURN, KILL)]
    for name, numbers in NUMBERS.items():
        if (number := numbers[column]) is not None:
            code += _filter_rule(name, number)
    return b"".join([*code, _bpf_op(RETURN, ALLOW)])


def _filter_rule(name: str, number: int) -> list[bytes]:
    # A thread is a clone with CLONE_THREAD; any other clone is a new process.
    if name == "clone":
        return [
            _bpf_op(JUMP_EQUAL, number, 0, 4),
            _bpf_op(LOAD, FIRST_ARGUMENT),
            _bpf_op(JUMP_BITS, CLONE_THREAD, 1, 0),
            _bpf_op(RETURN, ERROR | EPERM),
            _bpf_op(RETURN, ALLOW),
        ]
    # After ENOSYS from clone3 the C library creates threads with clone.
    error = ENOSYS if name == "clone3" else EPERM
    return [_bpf_op(JUMP_EQUAL, number, 0, 1), _bpf_op(RETURN, ERROR | error)]


def _bpf_op(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)
