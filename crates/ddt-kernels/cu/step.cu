// A solver's step, with its numbers from the table of steps.
#include "steps.h"

namespace ddt {

// One frequency a thread: its cosine, and `half` further on its sine.
template <class T> DEVICE void timestep_embedding(Steps steps, float max_period, T *RESTRICT out, unsigned half) {
    unsigned k = item();
    if (k >= half) return;
    // The frequency in f64 and then rounded, as the reference has it.
    float angle = step_row(steps)[0] * (float)exp(-log((double)max_period) * k / half);
    from_float(cosf(angle), out[k]);
    from_float(sinf(angle), out[half + k]);
}

// One element of the latents a thread: tokens to latents, guidance, Euler's step.
template <class T>
DEVICE void guided_step(const T *RESTRICT tokens, Grid grid, unsigned copies, Steps steps, float *RESTRICT velocity,
                        float *RESTRICT x) {
    unsigned i = item(), count = grid.images * grid.channels * grid.height * grid.width;
    if (i >= count) return;
    const float *numbers = step_row(steps);
    unsigned at = token_element(i, grid);
    float v = to_float(tokens[at]);
    // Channels beyond the guided ones use the conditional velocity.
    if (copies == 2 && (float)(i / grid.width / grid.height % grid.channels) < numbers[3]) {
        float none = to_float(tokens[(size_t)count + at]);
        v = fmaf(numbers[2], v - none, none);
    }
    if (velocity) velocity[i] = v;
    if (x) x[i] = fmaf(numbers[1], v, x[i]);
}

#define ENTRY(T, type)                                                                                           \
    KERNEL(128, 1) ddt_timestep_embedding_##type(STEPS, float max_period, T *out, unsigned half) {                   \
        timestep_embedding<T>(Steps{STEPS_VALUES}, max_period, out, half);                                           \
    }                                                                                                            \
    REGISTER(ddt_timestep_embedding_##type)                                                                          \
    KERNEL(256, 1) ddt_guided_step_##type(const T *tokens, unsigned images, unsigned channels, unsigned height,  \
                                          unsigned width, unsigned patch, unsigned copies, STEPS,                \
                                          float *velocity, float *x) {                                           \
        Grid grid{images, channels, height, width, patch};                                                       \
        guided_step<T>(tokens, grid, copies, Steps{STEPS_VALUES}, velocity, x);                                  \
    }                                                                                                            \
    REGISTER(ddt_guided_step_##type)

ENTRY(bf16, bf16)
ENTRY(float, f32)

#undef ENTRY

// From the last step back to the first, so that a graph may run on.
KERNEL(32, 1) ddt_next_step(unsigned *current, unsigned count) {
    if (item() == 0) *current = *current + 1 < count ? *current + 1 : 0;
}
REGISTER(ddt_next_step)

}  // namespace ddt
