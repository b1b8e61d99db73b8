"""Times DiT^DH with random weights against PyTorch: this project, PyTorch, this project again.

    pip install torch==2.15.0
    cargo build --bin xtask                      # the program
    ditdh.py XTASK [--preset ditdh-xl-256] [--batch 2] [--dtype f32 bf16] [--runs 5]

A batch of 2 is one guided step of an image. PyTorch's time is the better of eager and compiled. Prints milliseconds of
a whole call and of one that reuses the state, and the ratios to each run of this project.
"""

import argparse
import json
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
DECODER, CHANNELS, CLASSES = (2048, 2, 16), 768, 1000


class Block(nn.Module):
    def __init__(self, size: int, heads: int):
        super().__init__()
        self.heads, hidden = heads, int(2 / 3 * 4 * size)
        self.norm1, self.norm2 = nn.RMSNorm(size, 1e-6), nn.RMSNorm(size, 1e-6)
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.w12, self.w3 = nn.Linear(size, 2 * hidden), nn.Linear(hidden, size)
        self.ada_ln = nn.Linear(size, 6 * size)

    def forward(self, x, c, cos, sin):
        b, n, size = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada_ln(F.silu(c)).chunk(6, -1)
        qkv = self.qkv(self.norm1(x) * (1 + scale1) + shift1)
        q, k, v = qkv.view(b, n, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        q, k = (self.turned(it, cos, sin) for it in (q, k))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, size)
        x = x + gate1 * self.proj(y)
        a, b = self.w12(self.norm2(x) * (1 + scale2) + shift2).chunk(2, -1)
        return x + gate2 * self.w3(F.silu(a) * b)

    @staticmethod
    def turned(x, cos, sin):
        even, odd = x[..., 0::2], x[..., 1::2]
        return x * cos + torch.stack([-odd, even], -1).flatten(-2) * sin


class DitDh(nn.Module):
    def __init__(self, name: str, side: int):
        super().__init__()
        (width, depth, heads), (wide, wide_depth, wide_heads) = WIDTHS[name], DECODER
        self.frequencies = nn.Parameter(torch.randn(256))
        self.time = nn.Sequential(nn.Linear(512, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(CLASSES + 1, width)
        self.s_embedder, self.x_embedder = nn.Linear(CHANNELS, width), nn.Linear(CHANNELS, wide)
        self.positions = nn.Parameter(torch.randn(1, side * side, width))
        self.encoder = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.decoder = nn.ModuleList(Block(wide, wide_heads) for _ in range(wide_depth))
        self.s_projector = nn.Linear(width, wide)
        self.norm, self.ada_ln, self.linear = nn.RMSNorm(wide, 1e-6), nn.Linear(wide, 2 * wide), nn.Linear(wide, CHANNELS)
        for half, head in (("narrow", width // heads), ("wide", wide // wide_heads)):
            frequency = 10000.0 ** (-4 * torch.arange(head // 4).float() / head)
            at = torch.arange(side)
            places = (at.repeat_interleave(side), at.repeat(side))
            angle = torch.cat([it[:, None] * frequency for it in places], -1).repeat_interleave(2, -1)
            self.register_buffer(f"{half}_cos", angle.cos())
            self.register_buffer(f"{half}_sin", angle.sin())

    def forward(self, x, t, y, s=None):
        tokens = x.flatten(2).transpose(1, 2)
        if s is None:
            angle = 2 * torch.pi * t[:, None] * self.frequencies.float()
            temb = self.time(torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype))[:, None]
            c = F.silu(temb + self.labels(y)[:, None])
            s = self.s_embedder(tokens) + self.positions
            for block in self.encoder:
                s = block(s, c, self.narrow_cos, self.narrow_sin)
            s = F.silu(temb + s)
        c, h = self.s_projector(s), self.x_embedder(tokens)
        for block in self.decoder:
            h = block(h, c, self.wide_cos, self.wide_sin)
        shift, scale = self.ada_ln(F.silu(c)).chunk(2, -1)
        return self.linear(self.norm(h) * (1 + scale) + shift), s


def median_ms(call, runs: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)

    for _ in range(2):
        once()
    return statistics.median(once() for _ in range(runs))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("xtask")
    parser.add_argument("--preset", default="ditdh-xl-256")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    _, name, pixels = args.preset.split("-")
    side = int(pixels) // 16
    for dtype in args.dtype:
        command = [args.xtask, "time", "--preset", args.preset, "--batch", str(args.batch), "--dtype", dtype]

        def ours(command=command):
            out = subprocess.run([*command, "--runs", str(args.runs)], check=True, capture_output=True, text=True)
            return json.loads(out.stdout)

        first = ours()
        torch.set_num_threads(first["threads"])
        torch.manual_seed(0)
        weights = torch.float32 if dtype == "f32" else torch.bfloat16
        net = DitDh(name, side).eval().to(weights)
        x = torch.randn(args.batch, CHANNELS, side, side, dtype=weights)
        t, y = torch.full((args.batch,), 0.7), torch.randint(CLASSES, (args.batch,))
        best = {}
        for how, call in (("eager", net), ("compiled", torch.compile(net))):
            _, s = call(x, t, y)
            for what, run in (("full_ms", lambda: call(x, t, y)), ("decoder_ms", lambda: call(x, t, y, s))):
                best[what] = min(best.get(what, (float("inf"), "")), (median_ms(run, args.runs), how))
        del net, call, s
        for row in (first, ours()):
            for what, (theirs, how) in best.items():
                ratio = theirs / row[what]
                print(f"{args.preset} {dtype} {what}: {row[what]:.0f}, PyTorch {theirs:.0f} ({how}), ratio {ratio:.2f}")
            print(f"  with the modulations kept {row['decoder_kept_ms']:.0f} ms, peak {row['peak_mib']} MiB", flush=True)


main()
