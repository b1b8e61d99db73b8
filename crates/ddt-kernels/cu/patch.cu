// Latents (B, C, H, W) in f32 to tokens (R, L, C P^2); R = copies B.
#include "device.h"

namespace ddt {

template <class T>
DEVICE void patchify(const float *RESTRICT latents, T *RESTRICT tokens, Grid grid, unsigned copies) {
    unsigned i = item(), count = grid.images * grid.channels * grid.height * grid.width;
    if (i >= count) return;
    float value = latents[i];
    unsigned at = token_element(i, grid);
    for (unsigned copy = 0; copy < copies; copy++) from_float(value, tokens[(size_t)copy * count + at]);
}

#define ENTRY(T, type)                                                                                         \
    KERNEL(256, 1) ddt_patchify_##type(const float *latents, T *tokens, unsigned images, unsigned channels,    \
                                       unsigned height, unsigned width, unsigned patch, unsigned copies) {     \
        patchify<T>(latents, tokens, Grid{images, channels, height, width, patch}, copies);                    \
    }                                                                                                          \
    REGISTER(ddt_patchify_##type)

ENTRY(bf16, bf16)
ENTRY(float, f32)

#undef ENTRY

}  // namespace ddt
