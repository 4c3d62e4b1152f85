"""What is known of a chip: memory, peak rates, and what its compiler needs to describe it."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtune.display.errors import UserError
from jaxtune.display.escapes import shown

if TYPE_CHECKING:  # targets are listed without JAX
    from jaxtune.quant.precision import Rule

GiB = 2**30
# Memory of a GPU that the CUDA context, kernels and libraries take. It is an allowance, not a
# published figure, and matters only for a memory fraction near 1.
CONTEXT = GiB // 2
FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
FRACTION = 0.75  # of a GPU's memory that JAX takes unless the environment sets another


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator, as its maker publishes it.

    Attributes:
      name: Name of the target, such as `v5e`.
      title: Name in messages, such as `TPU v5e`.
      kinds: Texts that JAX reports as the `device_kind` of such a device.
      memory: Published memory, in bytes.
      visible: Bytes of it that programs can see: libtpu's limit, or the total that CUDA reports.
      half: Peak rate of dense matmuls in 16 bits, accumulated in float32, in FLOP/s.
      single: Peak rate of float32 matmuls at JAX's default precision, in FLOP/s.
      bandwidth: Memory bandwidth, in bytes/s.
      link: Bytes/s to other chips in each direction, over all links of the chip together.
      wire: What these links are.
      halves: 16-bit types that the matmul units take; others are computed in float32.
      source: The maker's document that publishes the figures.
      via: Where its figures were read, if it could not be opened itself.
      note: How a figure was derived, or which of several was taken.
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    memory: int
    visible: int
    half: float
    single: float
    bandwidth: float
    link: float
    wire: str
    source: str
    via: str = ""
    note: str = ""
    halves: tuple[str, ...] = ("bfloat16", "float16")

    def peak(self, dtype: str, rule: "Rule | None" = None) -> float:
        """Returns the peak rate of matmuls in a dtype, in FLOP/s.

        `rule` says how float32 is multiplied; None is JAX's default.
        """
        if dtype in self.halves or (rule and rule.halves and "float16" in self.halves):
            return self.half
        return self.wide(rule) if rule else self.single

    def wide(self, rule: "Rule") -> float:
        """Returns the peak rate of float32 matmuls by a rule of `model.precision`, in FLOP/s."""
        raise NotImplementedError

    def seconds(
        self,
        flops: float,
        bytes_memory: float,
        bytes_link: float,
        dtype: str = "bfloat16",
        rule: "Rule | None" = None,
    ) -> float:
        """Returns a lower bound on the time of a program on this chip, in seconds.

        It is the largest of the times that arithmetic, memory and links need at their published
        peak rates, as if each overlapped fully with the others. Real programs take longer.

        Args:
          flops: Floating-point operations of one chip; a multiply-add counts as two.
          bytes_memory: Bytes that one chip reads from and writes to its memory.
          bytes_link: Bytes that one chip sends to others.
          dtype: Type of the matmuls' inputs.
          rule: How float32 is multiplied; None is JAX's default.
        """
        arithmetic = flops / self.peak(dtype, rule)
        return max(arithmetic, bytes_memory / self.bandwidth, bytes_link / self.link)


@dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
    """A TPU. JAX's default precision multiplies float32 in one bfloat16 pass, at the same rate.

    Attributes:
      slices: Topologies that the chip is offered in, smallest first, the first of one chip.
      config: Name of libtpu's chip configuration; "" for its default.
    """

    slices: tuple[str, ...]
    config: str = ""

    def wide(self, rule: "Rule") -> float:
        """Returns the rate of float32 matmuls, of which each takes some passes in bfloat16."""
        return self.single / rule.passes

    def limit(self) -> int:
        """Returns the bytes that a program may take, which are all that libtpu offers."""
        return self.visible


@dataclass(frozen=True)
class Architecture:
    """What the CUDA C++ Programming Guide says of a compute capability, per core (SM)."""

    major: int
    minor: int
    fpus: int  # float32 units
    threads: int
    shared: int  # bytes of shared memory
    optin: int  # bytes of it that a block may ask for
    accelerated: bool = False  # whether there are instructions of this architecture alone


TURING = Architecture(7, 5, 64, 1024, 64 << 10, 64 << 10)
AMPERE = Architecture(8, 0, 64, 2048, 164 << 10, 163 << 10)
ADA = Architecture(8, 9, 128, 1536, 100 << 10, 99 << 10)
HOPPER = Architecture(9, 0, 128, 2048, 228 << 10, 227 << 10, accelerated=True)
BLACKWELL = Architecture(10, 0, 128, 2048, 228 << 10, 227 << 10, accelerated=True)
BLACKWELL_RTX = Architecture(12, 0, 128, 1536, 100 << 10, 99 << 10)


@dataclass(frozen=True, kw_only=True)
class Gpu(Chip):
    """An NVIDIA GPU. JAX's default precision multiplies float32 as TF32 from Ampere on.

    Attributes:
      architecture: What its compute capability implies.
      cores: Number of streaming multiprocessors.
      clock: Boost clock, in GHz.
      cache: Bytes of L2 cache.
      most: Largest number of such GPUs in one host.
    """

    architecture: Architecture
    cores: int
    clock: float
    cache: int
    most: int = 8

    def wide(self, rule: "Rule") -> float:
        """Returns the rate of float32 matmuls: in TF32, or by the units of float32."""
        units = 2 * self.architecture.fpus * self.cores * self.clock * 1e9  # multiply and add
        return self.single if rule.tf32 else min(self.single, units)

    def limit(self) -> int:
        """Returns the bytes that a program may take.

        JAX takes a fraction of the memory that CUDA reports: 0.75, or what the variable
        `XLA_CLIENT_MEM_FRACTION` (formerly `XLA_PYTHON_CLIENT_MEM_FRACTION`) sets. However large
        the fraction, half a GiB is left for the CUDA context.
        """
        return min(int(self.visible * memory_fraction()), self.visible - CONTEXT)

    def proto(self) -> str:
        """Returns the description that XLA compiles for, as text of a `GpuTargetConfigProto`."""
        kind = self.architecture
        accelerated = "ACCELERATED_FEATURES" if kind.accelerated else "NONE"
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {kind.shared} shared_memory_per_block_optin: {kind.optin}
  threads_per_core_limit: {kind.threads} core_count: {self.cores} fpus_per_core: {kind.fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {self.bandwidth:.0f} device_memory_size: {self.visible}
  l2_cache_size: {self.cache} clock_rate_ghz: {self.clock}
  cuda_compute_capability {{
    major: {kind.major} minor: {kind.minor} feature_extension: {accelerated}
  }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{self.kinds[0]}"
"""


def memory_fraction() -> float:
    """Returns the fraction of a GPU's memory that JAX takes, as the environment sets it."""
    name = next((name for name in FRACTIONS if os.environ.get(name)), None)
    if name is None:
        return FRACTION
    try:
        fraction = float(os.environ[name])
    except ValueError:
        fraction = 0.0
    if not fraction > 0:  # also true for a nan
        raise UserError(
            f"the environment variable {name} is {shown(os.environ[name])}; expected the fraction "
            "of a GPU's memory that JAX takes, such as 0.9"
        )
    return fraction
