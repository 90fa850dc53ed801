"""Options of the test run."""


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="of the kernel tests' random inputs (a failure prints it)")
    parser.addoption("--quick", action="store_true", help="fewer kernel cases and runs, for emulated CPUs")
