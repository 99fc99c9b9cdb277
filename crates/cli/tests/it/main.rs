//! Black-box tests of the binary: arguments, exit status, stdout, stderr, against real servers.
