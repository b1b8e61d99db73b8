"""Writes ddt_tiny.safetensors: one call of a small DDT, computed in f32 by a PyTorch implementation.

    python generate.py FOLDER_OF_DDT_TORCH_PY ddt_tiny.safetensors

FOLDER_OF_DDT_TORCH_PY holds a module `ddt_torch` with `Config` and `Ddt` under the published
parameter names. Needs: torch and numpy.
"""

import json
import struct
import sys

import torch

sys.path.insert(0, sys.argv[1])
import ddt_torch  # noqa: E402

torch.manual_seed(7)
sizes = dict(in_channels=3, patch_size=2, hidden_size=16, num_groups=2, num_blocks=3, num_encoder_blocks=2,
             num_classes=5)
net = ddt_torch.Ddt(ddt_torch.Config(**sizes))
with torch.no_grad():
    for name, parameter in net.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if "norm" in name else 0.0))
tensors = {f"model.{name}": value.detach() for name, value in net.named_parameters()}
inputs = {"in.x": torch.randn(2, 3, 4, 6), "in.t": torch.tensor([0.15, 0.8]), "in.y": torch.tensor([2, 5]),
          "in.x2": torch.randn(2, 3, 4, 6), "in.t2": torch.tensor([0.2, 0.9])}
with torch.no_grad():
    velocity, state = net(inputs["in.x"], inputs["in.t"], inputs["in.y"])
    shared, _ = net(inputs["in.x2"], inputs["in.t2"], inputs["in.y"], state)
tensors |= inputs | {"out.velocity": velocity, "out.state": state, "out.velocity_shared": shared}

header, offset, blobs = {"__metadata__": {"kind": "ddt_forward", "config": json.dumps({"family": "ddt"} | sizes)}}, 0, []
for name in sorted(tensors):
    blob = tensors[name].contiguous().numpy().tobytes()
    dtype = {torch.float32: "F32", torch.int64: "I64"}[tensors[name].dtype]
    header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [offset, offset + len(blob)]}
    offset += len(blob)
    blobs.append(blob)
head = json.dumps(header).encode()
head += b" " * (-len(head) % 8)
with open(sys.argv[2], "wb") as file:
    file.write(struct.pack("<Q", len(head)) + head + b"".join(blobs))
