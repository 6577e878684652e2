"""Makes processes the ranks of a job, and says why it ends. What this relies on is in docs/launch.md."""

from collections.abc import Callable

from benchmarks.runtime.launch import process
from benchmarks.runtime.launch.fork import share_imports
from benchmarks.runtime.launch.imports import defer_packages
from benchmarks.runtime.launch.process import Group, explain, fail, keep_freed_memory, launcher

__all__ = ["Group", "defer_packages", "fail", "keep_freed_memory", "launch", "launcher"]


def launch(
    load: Callable[[], None],
    busy: Callable[[], str] = lambda: "start",
    verbose: bool = False,
    explain: Callable[[BaseException], str] = explain,
    after_interrupt: str = "",
) -> Group:
    """Returns the ranks of this job, in each of them; call it once, before numpy, torch or FedML is imported.

    ``load`` imports what every rank needs, once a host where that is possible. From here on an exception in any thread
    ends all ranks, in a sentence that says with ``busy()`` what this one did, and with ``explain`` what went wrong.
    ``verbose`` shows its traceback too. ``after_interrupt`` ends the sentence about a Ctrl-C.
    """
    process.STATE.after_interrupt = after_interrupt
    process.prepare()
    defer_packages()
    share_imports(load)
    group = process.start()
    process.fail_on_error(lambda: f"rank {group.comm.rank}, {busy()}", verbose, explain)
    return group
