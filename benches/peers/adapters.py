"""Times the frozen networks against PyTorch, alternating; prints milliseconds and their ratio.

    pip install torch==2.15.0 torchvision diffusers==0.42.1 timm==1.0.31
    cargo bench --bench adapters --no-run        # prints the program's path
    adapters.py PROGRAM [--rounds 7] [--compile] [ROW ..]

A row is NETWORK-SIDE-TYPE, such as kl-decode-256-bf16; rae-xl is the ViT-XL decoder of RAE. PyTorch's time is that of its best layout: contiguous or
channels last, and compiled with --compile. Brackets hold the smallest and the largest ratio of a round. The second
ratio is of core seconds, which other programs on the machine disturb less.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch

ROWS = [
    f"{name}-{dtype}"
    for dtype in ("f32", "bf16")
    for name in ("kl-decode-256", "kl-decode-512", "kl-encode-256", "dinov2-b-224", "rae-xl-256")
]


def network(name: str, side: int, dtype: torch.dtype):
    """The network, its method to time, and an input."""
    images = 2 if side <= 256 else 1
    if name.startswith("kl"):
        from diffusers import AutoencoderKL

        down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        channels = (128, 256, 512, 512)
        vae = AutoencoderKL(block_out_channels=channels, down_block_types=down, up_block_types=up, layers_per_block=2)
        vae = vae.eval().to(dtype)
        if name == "kl-decode":
            return vae, lambda x: vae.decode(x).sample, torch.randn(images, 4, side // 8, side // 8).to(dtype)
        return vae, lambda x: vae.encode(x).latent_dist.mean, torch.randn(images, 3, side, side).to(dtype)
    if name == "dinov2-b":
        import timm

        net = timm.create_model("vit_base_patch14_reg4_dinov2.lvd142m", pretrained=False, img_size=side)
        net = net.eval().to(dtype)
        return net, net.forward_features, torch.randn(8, 3, side, side).to(dtype)
    if name == "rae-xl":
        from timm.models.vision_transformer import Block

        blocks = [Block(1152, 16, mlp_ratio=4096 / 1152, qkv_bias=True) for _ in range(28)]
        first, norm, last = torch.nn.Linear(768, 1152), torch.nn.LayerNorm(1152), torch.nn.Linear(1152, 768)
        net = torch.nn.Sequential(first, *blocks, norm, last).eval().to(dtype)
        return net, net, torch.randn(images, 1 + (side // 16) ** 2, 768).to(dtype)
    from torchvision.models import inception_v3

    net = inception_v3(weights=None, init_weights=False).eval().to(dtype)
    return net, net, torch.randn(16, 3, side, side).to(dtype)


def variants(row: str, compiled: bool):
    name, side, dtype = row.rsplit("-", 2)
    net, call, x = network(name, int(side), {"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
    layouts = (torch.contiguous_format, torch.channels_last)[: 2 if x.ndim == 4 else 1]
    for layout in layouts:
        label = str(layout).removeprefix("torch.")
        net.to(memory_format=layout)
        xs = x.contiguous(memory_format=layout)
        yield label, net, layout, lambda call=call, xs=xs: call(xs)
        if compiled and layout == layouts[-1]:
            fast = torch.compile(call)
            yield label + ", compiled", net, layout, lambda fast=fast, xs=xs: fast(xs)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("rows", nargs="*", default=ROWS)
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    ours = subprocess.Popen([args.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def core_seconds(pid: int) -> float:
        with open(f"/proc/{pid}/stat") as file:
            ticks = file.read().rsplit(")", 1)[1].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def our_ms(row: str) -> float:
        ours.stdin.write(row + "\n")
        ours.stdin.flush()
        return float(ours.stdout.readline().split()[1])

    def timed(pid: int, call):
        """Milliseconds and core milliseconds."""
        cores, start = core_seconds(pid), time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start), 1e3 * (core_seconds(pid) - cores)

    for row in args.rows:
        our_ms(row)
        # The best variant by its second run, then rounds of that one against ours.
        best = None
        for label, net, layout, call in variants(row, args.compile):
            call()
            start = time.perf_counter()
            call()
            ms = 1e3 * (time.perf_counter() - start)
            if best is None or ms < best[0]:
                best = (ms, label, net, layout, call)
        _, label, net, layout, call = best
        net.to(memory_format=layout)
        call()
        pairs = []
        for _ in range(args.rounds):
            theirs = timed(os.getpid(), call)
            pairs.append((timed(ours.pid, lambda: our_ms(row)), theirs))
        ratios = [theirs[0] / own[0] for own, theirs in pairs]
        own, theirs = ([statistics.median(it) for it in zip(*side)] for side in zip(*pairs))
        print(
            f"{row}: {own[0]:.0f} ms, PyTorch {theirs[0]:.0f} ms ({label}), ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}), of core seconds {theirs[1] / own[1]:.2f}",
            flush=True,
        )
    ours.stdin.close()
    ours.wait()


main()
