"""Carries packets between network namespaces and keeps each for a while: latency where the kernel has no netem.

    python tests/tun_forwarder.py DELAY_S PID [PID ...]

The k-th process lives in the namespace that gets the address 10.77.0.k+1; its device `eth0` is a TUN device, whose
other end is here. Says `ready`, and ends with its standard input.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
CLONE_NEWNET = 0x40000000
LAST_OF_DESTINATION = 19  # byte of an IPv4 header
LONGEST = 1 << 16
AT_ONCE = 64  # packets taken from one host before the others have a turn


def open_device(pid):
    """A new TUN device in the network namespace of a process, as a file of packets."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(namespace)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TUN | IFF_NO_PI))
    return device


def forward(devices, delay_s):
    """Until standard input ends. Every packet waits alike, so that those that came first leave first."""
    waiting = deque()
    poll = select.poll()
    for source in [0, *devices]:
        poll.register(source, select.POLLIN)
    while True:
        until_next_ms = max(0.0, 1e3 * (waiting[0][0] - time.monotonic())) if waiting else None
        for source, _ in poll.poll(until_next_ms):
            if source == 0:
                return
            take(source, devices, waiting, delay_s)
        while waiting and waiting[0][0] <= time.monotonic():
            _, device, packet = waiting.popleft()
            with contextlib.suppress(BlockingIOError):  # a full device loses packets, as any does
                os.write(device, packet)


def take(source, devices, waiting, delay_s):
    """Packets of a host, for other hosts; anything else, such as IPv6's greetings, goes nowhere."""
    for _ in range(AT_ONCE):
        try:
            packet = os.read(source, LONGEST)
        except BlockingIOError:
            return
        host = packet[LAST_OF_DESTINATION] - 1 if packet[0] >> 4 == 4 else -1
        if 0 <= host < len(devices):
            waiting.append((time.monotonic() + delay_s, devices[host], packet))


def main():
    delay_s, *pids = sys.argv[1:]
    devices = [open_device(pid) for pid in pids]
    print("ready", flush=True)
    forward(devices, float(delay_s))


if __name__ == "__main__":
    main()
