// Where things lie: every piece of index arithmetic of the kernels, for the GPU and for the CPU alike.
#pragma once

#ifdef __CUDACC__
#define INDEX __host__ __device__ constexpr __forceinline__
#else
#define INDEX constexpr inline
#endif

namespace ddt {

// --- Rows of tokens -------------------------------------------------------------------------------------

// Elements that a lane holds of a chunk of a row.
constexpr int CHUNK_LANE = 8;

// The first of them: a warp reads a row in chunks of 32 x 8 elements.
INDEX unsigned chunk_column(unsigned lane, unsigned chunk) { return (chunk * 32 + lane) * CHUNK_LANE; }

// The row of a modulation that applies to a token.
INDEX unsigned row_of(unsigned token, unsigned tokens_per_row) { return token / tokens_per_row; }

// --- Patches --------------------------------------------------------------------------------------------

struct Grid {
    unsigned images, channels, height, width, patch;
};

// Position of element `i` of latents (B, C, H, W) in tokens (B, L, C P^2): a token's elements are in the
// order channel, row, column.
INDEX unsigned token_element(unsigned i, Grid grid) {
    unsigned column = i % grid.width;
    unsigned row = i / grid.width % grid.height;
    unsigned channel = i / grid.width / grid.height % grid.channels;
    unsigned image = i / grid.width / grid.height / grid.channels;
    unsigned across = grid.width / grid.patch;
    unsigned down = grid.height / grid.patch;
    unsigned token = (image * down + row / grid.patch) * across + column / grid.patch;
    unsigned within = (channel * grid.patch + row % grid.patch) * grid.patch + column % grid.patch;
    return token * (grid.channels * grid.patch * grid.patch) + within;
}

// --- Convolution -----------------------------------------------------------------------------------------

struct Windows {
    // Of the input, and of the result.
    unsigned height, width, out_height, out_width;
    // Of a window; windows start `pad` rows and columns before the image.
    unsigned window_height, window_width, stride, pad_rows, pad_columns;
};

// Where tap `tap` of result position `position` (all images, row by row) reads: a position of the input, or -1
// outside the image.
INDEX long long tap_position(unsigned position, unsigned tap, Windows w) {
    unsigned column = position % w.out_width;
    unsigned row = position / w.out_width % w.out_height;
    unsigned image = position / w.out_width / w.out_height;
    // Below 0 wraps to what is above every height.
    unsigned y = row * w.stride + tap / w.window_width - w.pad_rows;
    unsigned x = column * w.stride + tap % w.window_width - w.pad_columns;
    if (y >= w.height || x >= w.width) return -1;
    return ((long long)image * w.height + y) * w.width + x;
}

// --- Attention ------------------------------------------------------------------------------------------

// Where a query (0), key (1) or value (2) of a head starts in qkv (R, L, 3, N, K).
INDEX unsigned long long qkv_at(unsigned long long row, unsigned which, unsigned head, unsigned heads, unsigned k) {
    return ((row * 3 + which) * heads + head) * k;
}

// Keys in shared memory at once.
INDEX int chunk_keys(int k) { return k <= 80 ? 256 : 128; }

// From one key to the next in shared memory, in elements: an odd number of 16-byte parts, so that the same
// part of 8 consecutive keys is in different banks.
INDEX int key_stride(int k) { return k / 8 % 2 == 1 ? k : k + 8; }

// Fragments of mma.m16n8k16 and mma.m16n8k8, as the PTX manual has them. Register i of the 16-row operand
// holds two adjacent columns, of which this is the first.
INDEX int a_row(int lane, int i) { return lane / 4 + (i % 2) * 8; }
INDEX int a_column(int lane, int i) { return lane % 4 * 2 + (i / 2) * 8; }
// Register i of the 8-column operand holds two adjacent rows, of which this is the first.
INDEX int b_row(int lane, int i) { return lane % 4 * 2 + i * 8; }
INDEX int b_column(int lane) { return lane / 4; }
// Value i of the result.
INDEX int c_row(int lane, int i) { return lane / 4 + (i / 2) * 8; }
INDEX int c_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

// Which row of 8 elements a lane names to ldmatrix.
// Keys, 16 elements of 16 keys: registers 0 and 1 are both halves for keys 0..8, 2 and 3 for keys 8..16.
INDEX int keys_row(int lane) { return lane % 8 + lane / 16 * 8; }
INDEX int keys_column(int lane) { return lane / 8 % 2 * 8; }
// Keys, 8 elements of 32 keys: register i is for keys 8 i..8 i + 8.
INDEX int tail_row(int lane) { return lane; }
// Values, transposed, 16 keys of 16 elements: registers 0 and 1 are both halves of the keys for elements
// 0..8, 2 and 3 for elements 8..16.
INDEX int values_row(int lane) { return lane % 16; }
INDEX int values_column(int lane) { return lane / 16 * 8; }

}  // namespace ddt
