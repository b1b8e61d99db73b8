#!/usr/bin/env bash
# Memory of a rank: the largest resident size of each of 1, 2 and 4 processes under mpirun, in a run whose moments and
# averages are most of it. Argument: the program ddt, built with --features mpi. Photos are computed.
set -euo pipefail
ddt=$(realpath "$1") folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 - <<'PHOTOS'
import os, struct, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
for label in range(2):
    os.makedirs(f"photos/{label}")
    for i in range(8):
        rows = b"".join(b"\0" + bytes((x * 7 + y * 5 + i * 9 + label * 100) % 256 for x in range(48)) for y in range(16))
        head = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
        with open(f"photos/{label}/{i}.png", "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
PHOTOS
cat >settings.toml <<'TOML'
run = "run"
images = { train = "photos", size = 16 }
autoencoder = { kind = "pixels" }
network = { patch_size = 4, hidden_size = 768, num_heads = 12, num_encoder_blocks = 6, num_decoder_blocks = 2 }
train = { batch_size = 4, micro_batch = 1, total_images = 12, ema_decays = [0.9999, 0.999, 0.995, 0.99, 0.98, 0.95] }
watch = { log_every = 1, save_every_seconds = 100000 }
TOML
# Runs the program, and prints its rank and largest resident size.
cat >measured.py <<'PY'
import os, resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
size = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
print(f"  rank {os.environ.get('OMPI_COMM_WORLD_RANK', 0)}: {size} MiB", flush=True)
sys.exit(status)
PY
for processes in 1 2 4; do
    echo "$processes processes"
    mpirun --allow-run-as-root --oversubscribe -n $processes \
        python3 measured.py "$ddt" --quiet train settings.toml --run "run-$processes" --threads 1 | sort
done
ls -l run-1/weights.safetensors | awk '{ printf "weights, in 16 bits: %.0f MiB\n", $5 / 1048576 }'
cmp run-1/weights.safetensors run-4/weights.safetensors
