"""The chips that a run can be planned for, with published figures and their sources.

`python -m jaxtune.runs.plan.published` prints the table of docs/devices.md.
"""

from jaxtune.display.columns import size_text
from jaxtune.runs.plan.chips import (
    ADA,
    AMPERE,
    BLACKWELL,
    BLACKWELL_RTX,
    HOPPER,
    TURING,
    Chip,
    GiB,
    Gpu,
    Tpu,
)

READ = "2026-11-27"  # when the sources were read
GOOGLE = "https://docs.cloud.google.com/tpu/docs"
NVIDIA = "https://www.nvidia.com/en-us"
IMAGES = "https://images.nvidia.com/aem-dam/Solutions"
ADA_PAPER = f"{IMAGES}/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf"
ENGINEERING = "https://github.com/stas00/ml-engineering/tree/master/compute/accelerator"
XLA = "https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs"

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

ROWS: tuple[Chip, ...] = (
    Tpu(
        name="v4",
        title="TPU v4",
        kinds=("TPU v4",),
        memory=32 * GiB,
        visible=int(30.75 * GiB),
        half=275e12,
        single=275e12,
        bandwidth=1200e9,
        link=300e9,
        wire="ICI",
        slices=CUBES,
        config="megacore",
        source=f"{GOOGLE}/v4; ICI: https://arxiv.org/abs/2304.01433, table 4",
        via="ICI: public repositories that quote the paper",
        note="The two cores of a chip are one device (megacore), as on a TPU VM. ICI is 6 links "
        "of 50 GB/s; Google's page gives no figure.",
    ),
    Tpu(
        name="v5e",
        title="TPU v5e",
        kinds=("TPU v5 lite", "TPU v5e"),
        memory=16 * GiB,
        visible=int(15.75 * GiB),
        half=197e12,
        single=197e12,
        bandwidth=819e9,
        link=200e9,
        wire="ICI",
        slices=FLAT,
        source=f"{GOOGLE}/v5e",
        note="Some versions of the page give 800 GiB/s of memory bandwidth (859 GB/s); 819 GB/s "
        "is taken. ICI is published as 400 GB/s in both directions together.",
    ),
    Tpu(
        name="v5p",
        title="TPU v5p",
        kinds=("TPU v5", "TPU v5p"),
        memory=95 * GiB,
        visible=int(95.73 * GiB),
        half=459e12,
        single=459e12,
        bandwidth=2765e9,
        link=600e9,
        wire="ICI",
        slices=CUBES,
        source=f"{GOOGLE}/v5p",
        note="libtpu offers more than the published 95 GiB. ICI is published as 1200 GB/s in both "
        "directions together.",
    ),
    Tpu(
        name="v6e",
        title="TPU v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        memory=32 * GiB,
        visible=int(31.24 * GiB),
        half=918e12,
        single=918e12,
        bandwidth=1640e9,
        link=448e9,
        wire="ICI",
        slices=FLAT,
        source=f"{GOOGLE}/v6e",
        note="Versions of the page differ: 1640 or 1600 GB/s of memory bandwidth, 448 or 400 GB/s "
        "of ICI in each direction. The larger ones are taken, so that times remain lower bounds.",
    ),
    Gpu(
        name="t4",
        title="NVIDIA T4",
        kinds=("Tesla T4",),
        memory=16 * GiB,
        visible=int(14.56 * GiB),
        half=65e12,
        single=8.1e12,
        halves=("float16",),
        bandwidth=320e9,
        link=16e9,
        wire="PCIe 3.0 x16",
        architecture=TURING,
        cores=40,
        clock=1.59,
        cache=4 << 20,
        source=f"{NVIDIA}/data-center/tesla-t4/",
        via="https://hmc-tech.com/gpu/nvidia-l4-vs-nvidia-t4",
        note="No bfloat16: the 16-bit rate is float16's, and bfloat16 is computed in float32. No "
        "TF32 either: the float32 rate is that of the CUDA cores.",
    ),
    Gpu(
        name="l4",
        title="NVIDIA L4",
        kinds=("NVIDIA L4",),
        memory=24 * GiB,
        visible=int(22.03 * GiB),
        half=121e12,
        single=60e12,
        bandwidth=300e9,
        link=32e9,
        wire="PCIe 4.0 x16",
        architecture=ADA,
        cores=58,
        clock=2.04,
        cache=48 << 20,
        source=ADA_PAPER,
        via="https://store.sourcecode.com/en-us/bg-bucket-compare/125/9820; "
        "https://grokipedia.com/page/NVIDIA_L4_vs_L40S",
        note="Published as 242 and 120 TFLOP/s with sparsity.",
    ),
    Gpu(
        name="rtx4050",
        title="NVIDIA GeForce RTX 4050 Laptop",
        kinds=("NVIDIA GeForce RTX 4050 Laptop GPU",),
        memory=6 * GiB,
        visible=int(5.64 * GiB),
        half=24.3e12,
        single=12.1e12,
        bandwidth=192e9,
        link=16e9,
        wire="PCIe 4.0 x8",
        architecture=ADA,
        cores=20,
        clock=2.37,
        cache=12 << 20,
        most=1,
        source=f"{NVIDIA}/geforce/laptops/compare/",
        via="https://hmc-tech.com/gpu/nvidia-geforce-rtx-4060-laptop-80w-vs-"
        "nvidia-geforce-rtx-4050-laptop-115w",
        note="Rates at the highest boost clock that laptops set, 2.37 GHz, from Ada's 512 "
        "(bfloat16) and 256 (TF32) operations per core and cycle; most laptops are slower.",
    ),
    Gpu(
        name="rtx4090",
        title="NVIDIA GeForce RTX 4090",
        kinds=("NVIDIA GeForce RTX 4090",),
        memory=24 * GiB,
        visible=int(23.51 * GiB),
        half=165.2e12,
        single=82.6e12,
        bandwidth=1008e9,
        link=32e9,
        wire="PCIe 4.0 x16",
        architecture=ADA,
        cores=128,
        clock=2.52,
        cache=72 << 20,
        source=ADA_PAPER,
        via="https://waredb.com/processor/nvidia-geforce-rtx-4090",
        note="The rate with float32 accumulation, which XLA uses; with float16 it is twice that.",
    ),
    Gpu(
        name="rtx5090",
        title="NVIDIA GeForce RTX 5090",
        kinds=("NVIDIA GeForce RTX 5090",),
        memory=32 * GiB,
        visible=int(31.34 * GiB),
        half=209.5e12,
        single=104.8e12,
        bandwidth=1792e9,
        link=64e9,
        wire="PCIe 5.0 x16",
        architecture=BLACKWELL_RTX,
        cores=170,
        clock=2.407,
        cache=96 << 20,
        source=f"{IMAGES}/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
        via="https://pocketmags.com/linux-format-magazine/may-2025/articles/nvidia-geforce-"
        "rtx-5090; public repositories that quote the paper",
        note="The rate with float32 accumulation, which XLA uses; with float16 it is twice that.",
    ),
    Gpu(
        name="a100-40",
        title="NVIDIA A100 40 GB",
        kinds=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        memory=40 * GiB,
        visible=42298834944,
        half=312e12,
        single=156e12,
        bandwidth=1555e9,
        link=300e9,
        wire="NVLink 3",
        architecture=AMPERE,
        cores=108,
        clock=1.41,
        cache=40 << 20,
        most=16,
        source=f"{NVIDIA}/data-center/a100/",
        via=f"{ENGINEERING}; {XLA}",
        note="The SXM module; NVLink is published as 600 GB/s in both directions together.",
    ),
    Gpu(
        name="a100-80",
        title="NVIDIA A100 80 GB",
        kinds=("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
        memory=80 * GiB,
        visible=85100068864,
        half=312e12,
        single=156e12,
        bandwidth=2039e9,
        link=300e9,
        wire="NVLink 3",
        architecture=AMPERE,
        cores=108,
        clock=1.41,
        cache=40 << 20,
        source=f"{NVIDIA}/data-center/a100/",
        via=f"{ENGINEERING}; {XLA}",
        note="The SXM module; NVLink is published as 600 GB/s in both directions together.",
    ),
    Gpu(
        name="h100",
        title="NVIDIA H100 80 GB",
        kinds=("NVIDIA H100 80GB HBM3",),
        memory=80 * GiB,
        visible=84942979072,
        half=989.4e12,
        single=494.7e12,
        bandwidth=3350e9,
        link=450e9,
        wire="NVLink 4",
        architecture=HOPPER,
        cores=132,
        clock=1.98,
        cache=50 << 20,
        source=f"{NVIDIA}/data-center/h100/",
        via=f"{ENGINEERING}; https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html",
        note="The SXM module. Published as 1979 and 989 TFLOP/s with sparsity, and NVLink as 900 "
        "GB/s in both directions together.",
    ),
    Gpu(
        name="h200",
        title="NVIDIA H200",
        kinds=("NVIDIA H200",),
        memory=141 * GiB,
        visible=int(139.80 * GiB),
        half=989.4e12,
        single=494.7e12,
        bandwidth=4800e9,
        link=450e9,
        wire="NVLink 4",
        architecture=HOPPER,
        cores=132,
        clock=1.98,
        cache=50 << 20,
        source=f"{NVIDIA}/data-center/h200/",
        via=ENGINEERING,
        note="The SXM module. Published as 1979 and 989 TFLOP/s with sparsity, and NVLink as 900 "
        "GB/s in both directions together.",
    ),
    Gpu(
        name="b200",
        title="NVIDIA B200",
        kinds=("NVIDIA B200",),
        memory=180 * GiB,
        visible=191514411008,
        half=2250e12,
        single=1125e12,
        bandwidth=8000e9,
        link=900e9,
        wire="NVLink 5",
        architecture=BLACKWELL,
        cores=148,
        clock=1.965,
        cache=132644864,
        source="https://resources.nvidia.com/en-us-dgx-systems/dgx-b200-datasheet",
        via=f"{ENGINEERING}; https://glennklockwood.com/garden/processors/B200; {XLA}",
        note="Published as 4.5 and 2.2 PFLOP/s with sparsity (half of the former is taken for "
        "TF32), and NVLink as 1.8 TB/s in both directions together. XLA's description of the "
        "GPU has 7.67 TB/s of memory bandwidth; the published 8 TB/s are taken.",
    ),
)
CHIPS = {chip.name: chip for chip in ROWS}


def chip_of(kind: str) -> Chip | None:
    """Returns the chip that JAX reports as this `device_kind`, or None if it is not known."""
    return next((chip for chip in ROWS if kind in chip.kinds), None)


def page() -> str:
    """Returns the table of chips and the notes on its figures, in Markdown."""
    from jaxtune.quant.precision import RULES  # imports JAX, which the targets do not need

    highest = RULES["highest"]
    head = (
        "| target | chip | memory | visible | 16 bits | float32 | highest | bandwidth | links |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    )
    rows = [
        f"| `{chip.name}` | {chip.title} | {size_text(chip.memory).replace('.00', '')} | "
        f"{size_text(chip.visible)} | {chip.half / 1e12:g} | {chip.single / 1e12:g} | "
        f"{chip.wide(highest) / 1e12:.3g} | {chip.bandwidth / 1e9:g} | {chip.link / 1e9:g} "
        f"({chip.wire}) |"
        for chip in ROWS
    ]
    notes = [
        f"- `{chip.name}`: {chip.source}{f' (read at: {chip.via})' if chip.via else ''}."
        f"{f' {chip.note}' if chip.note else ''}"
        for chip in ROWS
    ]
    sources = (
        f"Sources, read on {READ}. Where a place is given after `read at`, the maker's document",
        "could not be opened, and its figures were read there:",
    )
    return "\n".join((*head, *rows, "", *sources, "", *notes, ""))


if __name__ == "__main__":
    print(page(), end="")
