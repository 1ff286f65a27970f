"""Copies of this process that die, as a machine that loses power or a job that is preempted does."""

import os
import signal
import sys

FILE_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
WRITES = os.O_WRONLY | os.O_RDWR


def in_child(function):
    """The exit code of a copy of this process that calls a function; negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            print(repr(error), *getattr(error, "__notes__", []), file=sys.stderr)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def killed_at(n, folder, function):
    """Call a function in a copy of this process that is killed at its n-th change of files in a folder.

    Returns whether it was; False says that it made no more than n changes.
    """
    code = in_child(lambda: at_change(n, folder, function, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert code in (0, -signal.SIGKILL)
    return code != 0


def at_change(n, folder, function, then, changes=None):
    """Call a function, and another just before the n-th change of files that it makes in a folder; for copies only.

    `changes` is a list that gets an item for every change.
    """
    changes = [] if changes is None else changes

    def watch(event, args):
        is_change = event in FILE_OPERATIONS and (event != "open" or args[2] & WRITES)
        if is_change and str(folder) in str(args[0]):
            changes.append(event)
            if len(changes) == n + 1:
                then()

    sys.addaudithook(watch)
    return function()
