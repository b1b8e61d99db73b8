#!/usr/bin/env bash
# Time of a training step of the demo's network in micro-batches of 32: one process on two threads against two
# processes on one thread each, alternating. Argument: the program ddt, built with --features mpi. Photos are computed.
set -euo pipefail
ddt=$(realpath "$1") folder=$(mktemp -d) steps=${2:-20}
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 - <<'PHOTOS'
import os, struct, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
for label in range(2):
    os.makedirs(f"photos/{label}")
    for i in range(256):
        row = lambda y: b"\0" + bytes(v for x in range(32) for v in (100 * label + 50, (x * 7 + i) % 256, (y * 5 + 3 * i) % 256))
        head = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
        body = zlib.compress(b"".join(row(y) for y in range(32)))
        with open(f"photos/{label}/{i:03}.png", "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
PHOTOS
cat >settings.toml <<TOML
run = "run"
images = { train = "photos", size = 32, cache = "latents" }
autoencoder = { kind = "tiny-flux2" }
network = { patch_size = 1, hidden_size = 256, num_heads = 4, num_encoder_blocks = 6, num_decoder_blocks = 2 }
train = { batch_size = 128, micro_batch = 32, total_images = $((128 * steps)), ema_decays = [0.999, 0.995, 0.98] }
watch = { log_every = 1 }
TOML
"$ddt" --quiet train settings.toml --run warm --images 128
# Seconds between the first line of a step and the last, over their number.
seconds() {
    python3 -u -c "
import sys, time
times = [time.monotonic() for line in sys.stdin if line.startswith('step ')]
print(f'{(times[-1] - times[0]) / (len(times) - 1):.4f}')"
}
for round in 1 2 3; do
    one=$("$ddt" train settings.toml --run "one-$round" --threads 2 2>&1 | seconds)
    two=$(mpirun --allow-run-as-root --oversubscribe -n 2 "$ddt" train settings.toml --run "two-$round" --threads 1 2>&1 | seconds)
    echo "one process, two threads: $one s per step; two processes, one thread each: $two s; ratio $(python3 -c "print(f'{$two / $one:.3f}')")"
done
cmp one-1/log.jsonl two-1/log.jsonl
