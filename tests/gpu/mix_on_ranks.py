"""Started on every rank by test_gpu.py: rows on a device travel through host memory and mix to the bits of a CPU."""

import sys

from mixing_cases import Mixer, draw_cases
from mpi4py import MPI

from parse_mpi.exchange.world import World

ROUNDS = 3


def main(device):
    """Neighbourhood collective and Isend/Irecv on all ranks against all agents on the CPU of this process."""
    world, sent = World(MPI.COMM_WORLD.Dup()), 0
    for case in draw_cases(world.size):
        reference = Mixer(World(MPI.COMM_SELF), case)
        mixers = [Mixer(world, case, via, device=device) for via in ("neighbour", "p2p")]
        for r in range(ROUNDS):
            reference.round(r)
            for mixer in mixers:
                mixer.round(r)
                sent += check_buffers(mixer.exchange, device)
        for mixer in mixers:
            for name, x in mixer.values().items():
                assert x.tobytes() == reference.values()[name].tobytes(), (name, case)
        for mixer in [reference, *mixers]:
            mixer.exchange.free()
    assert sent > 0
    print(f"rank {world.rank}: same bits, {sent} rows sent")


def check_buffers(exchange, device):
    """Buffers that MPI reads and writes are host memory, pinned for a GPU; returns how many rows were sent."""
    for flight in exchange.flights:
        for buffer in (flight._send, flight._receive):
            assert buffer.device.type == "cpu"
            assert len(buffer) == 0 or buffer.is_pinned() == device.startswith("cuda")
    return sum(len(flight._send) for flight in exchange.flights)


main(sys.argv[1])
