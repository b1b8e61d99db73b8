// Emulation of a GPU on the CPU: each thread of a block is a fiber, which runs until it meets the others of
// its warp or block. Slow; it serves to test whole kernels without a GPU.
//
// Fragments and ldmatrix are written from the PTX manual's tables, not from index.h, which they test.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#define DEVICE static inline
#define KERNEL(threads, blocks) static void
#define REGISTER(kernel) static emulate::Entry entry_##kernel(#kernel, kernel);
#define SHARED(type, name, count)                         \
    alignas(16) static thread_local type name[count];     \
    emulate::spoil(name, sizeof(name))
#define SHARED_REST(name) unsigned char *name = emulate::shared()
#define UNROLL
#define RESTRICT

struct Index3 {
    unsigned x, y, z;
};
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline thread_local Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

// --- Kernels by name ------------------------------------------------------------------------------------

struct Kernel {
    unsigned arguments;
    std::function<void(void **)> call;
};

inline std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

// Arguments come as cuLaunchKernel takes them: one pointer to each value.
struct Entry {
    template <class... A> Entry(const char *name, void (*kernel)(A...)) { add(name, kernel, std::index_sequence_for<A...>()); }
    template <class... A, size_t... I> void add(const char *name, void (*kernel)(A...), std::index_sequence<I...>) {
        kernels()[name] = {sizeof...(A), [kernel](void **values) { kernel(*(A *)values[I]...); }};
    }
};

// --- Fibers ---------------------------------------------------------------------------------------------

constexpr size_t STACK = 128 * 1024;
constexpr unsigned WARP = 32;

struct Meeting {
    unsigned arrived = 0, generation = 0;
};

struct Deposit {
    float value;
    const void *row;
    unsigned a[4], b[2];
};

struct Warp {
    Meeting meeting;
    // Two, because a lane may be one meeting ahead of the slowest.
    Deposit deposits[2][WARP];
    unsigned loaded[2][WARP][4];
};

struct Fiber {
    ucontext_t context;
    jmp_buf resume;
    bool started = false, running = false;
    unsigned turn = 0;
    // The meeting it waits for, and the generation that must end.
    const Meeting *waits_for = nullptr;
    unsigned generation = 0;
    bool ready() const { return running && (!waits_for || waits_for->generation != generation); }
    std::vector<char> stack = std::vector<char>(STACK);
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
    // Arrays of shared memory that a thread of the block has come to.
    std::set<void *> known;
    Meeting meeting;
    unsigned current = 0, count = 0;
    bool stuck = false, backwards = false;
    jmp_buf leave;
    const std::function<void()> *body = nullptr;
};

inline Block &block() {
    static thread_local Block one;
    return one;
}

inline unsigned char *shared() {
    size_t start = (size_t)block().shared.data();
    return (unsigned char *)((start + 127) / 128 * 128);
}

// Fills an array of shared memory with NaN when the first thread of a block comes to it.
inline void spoil(void *array, size_t bytes) {
    if (block().known.insert(array).second) memset(array, 0xFF, bytes);
}

void enter();

inline void go_to(unsigned index) {
    Block &b = block();
    b.current = index;
    threadIdx = {index, 0, 0};
    Fiber &fiber = b.fibers[index];
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    setcontext(&fiber.context);
}

// Continues a fiber that is not waiting: one of the same warp if there is one, so that warps drift as far apart
// as barriers allow. Leaves the block when none can continue.
inline void next() {
    Block &b = block();
    unsigned first = b.current / WARP * WARP;
    for (unsigned step = 1; step <= WARP; step++) {
        unsigned index = first + (b.current + step) % WARP;
        if (index < b.count && b.fibers[index].ready()) go_to(index);
    }
    for (unsigned step = 0; step < b.count; step++) {
        unsigned index = b.backwards ? b.count - 1 - step : step;
        if (b.fibers[index].ready()) go_to(index);
    }
    // If some wait still, they wait for ever: on a GPU this would hang.
    for (unsigned index = 0; index < b.count; index++) b.stuck |= b.fibers[index].running;
    _longjmp(b.leave, 1);
}

inline void enter() {
    Block &b = block();
    for (;;) {
        (*b.body)();
        Fiber &fiber = b.fibers[b.current];
        fiber.running = false;
        if (!_setjmp(fiber.resume)) next();
    }
}

// Waits until `count` fibers are here.
inline void meet(Meeting &meeting, unsigned count) {
    Block &b = block();
    if (++meeting.arrived == count) {
        meeting.arrived = 0;
        meeting.generation++;
        return;
    }
    Fiber &fiber = b.fibers[b.current];
    fiber.waits_for = &meeting;
    fiber.generation = meeting.generation;
    if (!_setjmp(fiber.resume)) next();
    fiber.waits_for = nullptr;
}

inline unsigned lane() { return threadIdx.x % WARP; }
inline Warp &warp() { return block().warps[threadIdx.x / WARP]; }

// --- What a block and a warp do together ----------------------------------------------------------------

inline void barrier() { meet(block().meeting, block().count); }

// Leaves `mine` and returns everybody's.
inline const Deposit *exchange(const Deposit &mine) {
    Warp &w = warp();
    unsigned turn = block().fibers[threadIdx.x].turn++ % 2;
    w.deposits[turn][lane()] = mine;
    meet(w.meeting, WARP);
    return w.deposits[turn];
}

inline float shuffle(float value, int from) {
    Deposit mine{};
    mine.value = value;
    return exchange(mine)[from % WARP].value;
}
inline float shuffle_xor(float value, int mask) { return shuffle(value, int(lane()) ^ mask); }

inline float exp2_fast(float x) {
    float result = exp2f(x);
    return result < 1.17549435e-38f ? 0.0f : result;
}

inline void copy16(void *to, const void *from, bool there) {
    if (there) memcpy(to, from, 16); else memset(to, 0, 16);
}
inline void copies_wait() {}

inline unsigned short bf16_bits(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7FFF;
    return (unsigned short)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline float bf16_value(unsigned short bits) {
    unsigned wide = unsigned(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

// PTX, ldmatrix: lanes 8 i .. 8 i + 7 name the rows of matrix i; every lane receives elements 2 (lane % 4)
// and the next of row lane / 4, or of that column if transposed.
inline void ldmatrix(unsigned *to, const void *row, int matrices, bool transposed) {
    Deposit mine{};
    mine.row = row;
    Warp &w = warp();
    unsigned turn = block().fibers[threadIdx.x].turn % 2;
    if (w.meeting.arrived == WARP - 1) {
        // The last lane reads for all, before any of them continues and writes.
        w.deposits[turn][lane()] = mine;
        for (unsigned l = 0; l < WARP; l++)
            for (int i = 0; i < matrices; i++) {
                unsigned pair = 0;
                for (unsigned half = 0; half < 2; half++) {
                    unsigned neighbour = l % 4 * 2 + half;
                    unsigned r = transposed ? neighbour : l / 4, c = transposed ? l / 4 : neighbour;
                    const void *source = w.deposits[turn][8 * i + r].row;
                    pair |= unsigned(((const unsigned short *)source)[c]) << 16 * half;
                }
                w.loaded[turn][l][i] = pair;
            }
    }
    exchange(mine);
    memcpy(to, w.loaded[turn][lane()], 4 * matrices);
}

// PTX, mma.m16n8k16 and m16n8k8 for bf16, with g = lane / 4 and t = lane % 4:
// a: rows g (registers 0, 2) and g + 8 (1, 3), columns 2 t, 2 t + 1 (0, 1) and 2 t + 8, 2 t + 9 (2, 3);
// b: column g, rows 2 t, 2 t + 1 (0) and 2 t + 8, 2 t + 9 (1); c: rows g (0, 1), g + 8 (2, 3), columns 2 t, 2 t + 1.
inline void mma(float *c, const unsigned *a, const unsigned *b, int depth) {
    Deposit mine{};
    memcpy(mine.a, a, 4 * (depth / 4));
    memcpy(mine.b, b, 4 * (depth / 8));
    const Deposit *all = exchange(mine);
    for (int i = 0; i < 4; i++) {
        int row = int(lane()) / 4 + i / 2 * 8, column = int(lane()) % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < depth; k++) {
            unsigned from_a = all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
            unsigned from_b = all[column * 4 + k % 8 / 2].b[k / 8];
            sum += bf16_value((unsigned short)(from_a >> k % 2 * 16)) * bf16_value((unsigned short)(from_b >> k % 2 * 16));
        }
        c[i] += sum;
    }
}

// --- Launching ------------------------------------------------------------------------------------------

// Runs a block; false if its threads wait for ever.
inline bool run_block(const std::function<void()> &body, unsigned threads, unsigned shared_bytes, bool backwards) {
    Block &b = block();
    if (b.fibers.size() < threads) b.fibers.resize(threads);
    b.warps.assign((threads + WARP - 1) / WARP, Warp());
    // NaN wherever nothing was written.
    b.shared.assign(shared_bytes + 128, 0xFF);
    b.known.clear();
    b.meeting = Meeting();
    b.count = threads;
    b.body = &body;
    b.stuck = false;
    b.backwards = backwards;
    for (unsigned i = 0; i < threads; i++) {
        b.fibers[i].running = true;
        b.fibers[i].turn = 0;
        b.fibers[i].waits_for = nullptr;
    }
    if (!_setjmp(b.leave)) go_to(backwards ? threads - 1 : 0);
    if (b.stuck)
        for (Fiber &fiber : b.fibers) fiber.started = false;
    return !b.stuck;
}

}  // namespace emulate
