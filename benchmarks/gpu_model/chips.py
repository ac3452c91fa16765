"""GPUs as their makers describe them, and how many blocks of a kernel one of their SMs holds.

Limits of an SM: CUDA C++ Programming Guide, table "Technical Specifications per Compute
Capability". What is handed out at a time: CUDA Occupancy Calculator. Rates, dense: NVIDIA H100
Tensor Core GPU Architecture (SXM5), H200 data sheet, A100 80GB SXM data sheet, NVIDIA Ada GPU
Architecture (RTX 4090).
"""

from dataclasses import dataclass

REGISTERS = 64 << 10  # of an SM
QUARTERS = 4  # of an SM; each has its own registers, and each warp is in one
REGISTERS_AT_ONCE = 256  # that a warp is given
SHARED_AT_ONCE = 128  # bytes that a block is given
RESERVED_SHARED = 1 << 10  # of every block, by CUDA


@dataclass(frozen=True)
class Chip:
    """A GPU.

    Attributes:
        name: What it is called.
        architecture: Whose code of the library it runs.
        sms: Multiprocessors.
        threads: That an SM holds.
        blocks: That an SM holds.
        shared: Bytes of shared memory of an SM.
        memory: Bytes per second.
        clock: Hz, boosted.
        tensor: Operations per second of 16 bits, summed in float32.
        simple: Operations per second in float32 without tensor cores.
    """

    name: str
    architecture: str
    sms: int
    threads: int
    blocks: int
    shared: int
    memory: float
    clock: float
    tensor: float
    simple: float

    def blocks_per_sm(self, threads: int, registers: int, shared: int) -> int:
        """How many blocks of so many threads, of so many registers each, fit an SM.

        `shared` is static and dynamic, in bytes.
        """
        warps = -(-threads // 32)
        of_warp = -(-registers * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
        by_registers = QUARTERS * (REGISTERS // QUARTERS // of_warp)
        of_block = -(-(shared + RESERVED_SHARED) // SHARED_AT_ONCE) * SHARED_AT_ONCE
        return min(
            self.blocks,
            self.threads // (warps * 32),
            by_registers // warps,
            self.shared // of_block,
        )


H100 = Chip("H100", "sm_90a", 132, 2048, 32, 228 << 10, 3.35e12, 1.98e9, 989e12, 66.9e12)
H200 = Chip("H200", "sm_90a", 132, 2048, 32, 228 << 10, 4.8e12, 1.98e9, 989e12, 66.9e12)
A100 = Chip("A100", "sm_80", 108, 2048, 32, 164 << 10, 2.039e12, 1.41e9, 312e12, 19.5e12)
RTX_4090 = Chip("RTX 4090", "sm_80", 128, 1536, 24, 100 << 10, 1.008e12, 2.52e9, 165e12, 82.6e12)
CHIPS = [H100, H200, A100, RTX_4090]
