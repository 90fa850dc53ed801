"""Options of the test run, and what its programs inherit."""

import signal

# Shells start what they put in the background deaf to Ctrl-C; the programs under test would be, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="of the kernel tests' random inputs (a failure prints it)")
    parser.addoption("--quick", action="store_true", help="fewer kernel cases and runs, for emulated CPUs")
