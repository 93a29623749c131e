"""Runs a command in a pseudo-terminal of 80 columns: `terminal.py [--interrupt-at TEXT] command ...`.

Copies the output of the command to standard output and exits with its exit status. Presses Ctrl-C when the output first
contains TEXT.
"""
import fcntl
import os
import pty
import struct
import sys
import termios

arguments = sys.argv[1:]
press_at = None
if arguments[0] == '--interrupt-at':
    press_at = arguments[1].encode()
    arguments = arguments[2:]

pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    os.execvp(arguments[0], arguments)

seen = b''
while True:
    try:
        piece = os.read(terminal, 65536)
    except OSError:
        break
    if not piece:
        break
    seen += piece
    os.write(1, piece)
    if press_at is not None and press_at in seen:
        press_at = None
        os.write(terminal, b'\x03')

_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
