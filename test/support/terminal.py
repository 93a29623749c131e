"""Runs a command in a pseudo-terminal: `terminal.py [--columns N] [--type-at TEXT KEYS] command ...`.

Copies the output of the command to standard output and exits with its exit status. Types KEYS when the output first
contains TEXT. Without --columns, the terminal has 80.
"""
import fcntl
import os
import pty
import struct
import sys
import termios

arguments = sys.argv[1:]
columns = 80
press_at = None
if arguments[0] == '--columns':
    columns = int(arguments[1])
    arguments = arguments[2:]
if arguments[0] == '--type-at':
    press_at = arguments[1].encode()
    keys = arguments[2].encode()
    arguments = arguments[3:]

pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
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
        os.write(terminal, keys)

_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
