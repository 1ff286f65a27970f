"""Copies of this process that die, as a machine that loses power or a job that is preempted does."""

import os
import signal
import sys

FILE_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


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
    """Call a function in a copy of this process that is killed at its n-th file operation in a folder.

    Returns whether it was; False says that it needed no more than n operations.
    """
    left = [n]

    def kill(event, args):
        if event in FILE_OPERATIONS and str(folder) in str(args[0]):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    def watched():
        sys.addaudithook(kill)
        function()

    code = in_child(watched)
    assert code in (0, -signal.SIGKILL)
    return code != 0
