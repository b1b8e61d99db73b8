"""Writes protocol2.ckpt and protocol5.ckpt: what Python's own pickler makes of a training checkpoint.

Needs Python's standard library only. The modules that the pickles name are stand-ins, so no PyTorch is needed.
Run it in this folder.
"""

import argparse
import collections
import io
import pickle
import struct
import sys
import types
import zipfile


def stand_in(module, name):
    """A function called `name` that the pickler finds in `module`."""
    if module not in sys.modules:
        sys.modules[module] = types.ModuleType(module)
    function = types.FunctionType((lambda *args: None).__code__, globals(), name)
    function.__module__, function.__qualname__ = module, name
    setattr(sys.modules[module], name, function)
    return function


REBUILD_TENSOR = stand_in("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = stand_in("torch._utils", "_rebuild_parameter")
STORAGES = {name: stand_in("torch", name) for name in ("FloatStorage", "LongStorage")}


class Storage:
    def __init__(self, kind, values):
        self.kind, self.count = kind, len(values)
        self.bytes = b"".join(struct.pack({"FloatStorage": "<f", "LongStorage": "<q"}[kind], v) for v in values)


class Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.args = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return REBUILD_TENSOR, self.args


class Parameter:
    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return REBUILD_PARAMETER, (self.data, True, collections.OrderedDict())


class Callback:
    """Stands for a user's class, which a reader must not need."""

    def __init__(self):
        self.best, self.seen = 0.25, {1, 2, 3}


def write(path, protocol):
    storages = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            if value not in storages:
                storages.append(value)
            return ("storage", STORAGES[value.kind], str(storages.index(value)), "cuda:0", value.count)

    shared = Storage("FloatStorage", [float(i) for i in range(12)])
    state = collections.OrderedDict()
    state["net.weight"] = Parameter(Tensor(shared, 0, (2, 3), (3, 1)))
    state["net.transposed"] = Tensor(shared, 6, (3, 2), (1, 3))
    state["net.steps"] = Tensor(Storage("LongStorage", [-5]), 0, (), ())
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    top = {
        "epoch": 3,
        "global_step": 2**40,
        "big": 2**100,
        "state_dict": state,
        "hyper_parameters": argparse.Namespace(lr=1e-4, names=["a", "b"], raw=b"\x00\xff", text="\u00e9" * 300),
        "callbacks": {"Callback": Callback(), "frozen": frozenset([1]), "ratio": complex(1, 2)},
        "optimizer_states": [{"state": {0: {"exp_avg": Tensor(shared, 0, (12,), (1,))}}, "betas": (0.9, 0.95)}],
        "default": collections.defaultdict(list, {"k": [1, None, True]}),
    }
    stream = io.BytesIO()
    Pickler(stream, protocol).dump(top)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        def add(name, content):
            archive.writestr(zipfile.ZipInfo("archive/" + name), content)
        add("data.pkl", stream.getvalue())
        add("byteorder", b"little")
        for i, storage in enumerate(storages):
            add(f"data/{i}", storage.bytes)
        add("version", b"3\n")


for protocol in (2, 5):
    write(f"protocol{protocol}.ckpt", protocol)
