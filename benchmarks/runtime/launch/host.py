"""What MPI finds on this host, asked before it is initialised: it would end the job in an error stack, or by a signal.

Three things are looked at: who launched this process, whether ranks may read each other's memory, and whether there is
enough that they share.
"""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RANK = next((os.environ[name] for name in ("PMI_RANK", "PMIX_RANK", "SLURM_PROCID") if name in os.environ), None)
HYDRA = {"PMI_FD", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"} <= os.environ.keys()  # the launcher is MPICH's
SHARED = Path("/dev/shm")
CELL, CELLS, FEW_CELLS = 16_384, 64, 8  # of MPICH's queues: bytes, how many a rank has, and where memory is scarce
QUEUE = 10_000  # bytes a rank beside its cells


def obstacle(mpi: Any) -> str | None:
    """Returns in a sentence why ``mpi`` (mpi4py's module) cannot start here, or None. Chooses its settings."""
    if sentence := wrong_launcher(mpi):
        return sentence
    leave_out_what_is_denied()
    return fit_memory() if HYDRA and "ch4" in mpi.Get_library_version() else None


def wrong_launcher(mpi: Any) -> str | None:
    """Compares what the launcher says of itself in the environment with the MPI library."""
    library = mpi.get_vendor()[0]
    if library == "Open MPI":
        if HYDRA and "OMPI_COMM_WORLD_SIZE" not in os.environ:
            return f"this was started by MPICH's mpirun, but mpi4py uses Open MPI: {right_launcher(mpi)}"
    elif "PMIX_NAMESPACE" in os.environ and not HYDRA and "pmix" not in mpi.Get_library_version():
        other = "Open MPI's mpirun" if "OMPI_COMM_WORLD_SIZE" in os.environ else "a launcher that speaks PMIx"
        return f"this was started by {other}, but mpi4py uses {library}: {right_launcher(mpi)}"
    return None


def right_launcher(mpi: Any) -> str:
    library, beside = mpi.get_vendor()[0], Path(sys.executable).with_name("mpirun")
    if beside.exists():
        said = subprocess.run([beside, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
        if ("Open MPI" in said) == (library == "Open MPI"):
            return f"call {beside}"
    return f"call the mpirun of {library}"


def alone(mpi: Any) -> str | None:
    """Returns in a sentence that this is the only rank of a job that was to have more; after MPI is initialised."""
    names = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    started = next((os.environ[name] for name in names if name in os.environ), "1")
    if started == "1" or mpi.COMM_WORLD.size > 1:
        return None
    return f"each of the {started} processes that were started is a job of its own: {right_launcher(mpi)}"


def fit_memory() -> str | None:
    """Takes less of /dev/shm where it is small, the same on each rank of this host, and says where it is too full."""
    if "MPIR_CVAR_CH4_SHM_POSIX_IQUEUE_NUM_CELLS" in os.environ or not SHARED.is_dir():
        return None
    ranks, size = int(os.environ["MPI_LOCALNRANKS"]), os.statvfs(SHARED)
    cells = CELLS if 2 * ranks * (CELLS * CELL + QUEUE) < size.f_blocks * size.f_frsize else FEW_CELLS
    os.environ["MPIR_CVAR_CH4_SHM_POSIX_IQUEUE_NUM_CELLS"] = str(cells)
    needed, free = ranks * (cells * CELL + QUEUE), size.f_bavail * size.f_frsize
    # Each rank asks: the kernel kills whichever first touches memory that is not there, and no other one can say why.
    if free > needed or (free := free + taken()) > needed:
        return None
    return (
        f"{ranks} ranks on one host need {needed / 1e6:.1f} MB in {SHARED}, and {free / 1e6:.1f} MB are free there: "
        "take fewer ranks, or start the container with a larger --shm-size"
    )


def taken() -> int:
    """Returns how many bytes of /dev/shm this job's other ranks have taken already, where they were quicker."""
    import psutil

    since = psutil.Process(os.getppid()).create_time() - 1  # the clock of processes is a coarse one
    files = [path.stat() for path in SHARED.glob("mpich_shm_*")]  # none of this job's goes before this rank has joined
    return sum(512 * file.st_blocks for file in files if file.st_ctime >= since and file.st_uid == os.getuid())


def leave_out_what_is_denied() -> None:
    """Has messages copied through shared memory where no process may read another one's, as in some containers.

    MPICH asks Yama alone, and would end the job at its first large message. The parent is asked for, since the ranks
    have it in common; an address that it lacks is no denial.
    """
    memory = ctypes.create_string_buffer(1)
    where = (ctypes.c_size_t * 2)(ctypes.addressof(memory), 1)  # struct iovec
    libc = ctypes.CDLL(None, use_errno=True)
    other = os.getppid() if HYDRA else os.getpid()  # elsewhere the parent may be another user's
    if not hasattr(libc, "process_vm_readv"):
        return
    if libc.process_vm_readv(other, where, 1, where, 1, 0) < 0 and ctypes.get_errno() != errno.EFAULT:
        os.environ.setdefault("MPIR_CVAR_CH4_CMA_ENABLE", "0")
        os.environ.setdefault("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
