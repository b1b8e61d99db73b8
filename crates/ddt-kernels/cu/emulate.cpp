// Every kernel as a library for the CPU.

#include "add_rows.cu"
#include "attention.cu"
#include "attention_plain.cu"
#include "copy.cu"
#include "gate_norm.cu"
#include "group_norm.cu"
#include "patch.cu"
#include "softmax.cu"
#include "step.cu"
#include "swiglu.cu"
#include "windows.cu"

// 0 if it ran, 1 if there is no such kernel, 2 if it takes another number of arguments, 3 if its threads wait
// for each other for ever.
extern "C" int ddt_emulate(const char *name, const unsigned *grid, unsigned threads, unsigned shared_bytes,
                           void **arguments, unsigned count, int backwards) {
    auto found = emulate::kernels().find(name);
    if (found == emulate::kernels().end()) return 1;
    if (found->second.arguments != count) return 2;
    std::function<void()> body = [&] { found->second.call(arguments); };
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                if (!emulate::run_block(body, threads, shared_bytes, backwards != 0)) return 3;
            }
    return 0;
}

// How many arguments a kernel takes; -1 if there is none of this name.
extern "C" int ddt_emulated_arguments(const char *name) {
    auto found = emulate::kernels().find(name);
    return found == emulate::kernels().end() ? -1 : (int)found->second.arguments;
}
