// The numbers of a run's steps: rows (t, dt, guidance scale, guided channels, a weight for each set of modulations) of
// a table in device memory. `current` says which row, so that a captured graph serves every step.
#pragma once

#include "device.h"

namespace ddt {

// Sets of modulations that a forecast combines, at most.
constexpr unsigned MAX_SETS = 3;
// Of a row, and its first weight.
constexpr unsigned STEP_COLUMNS = 4 + MAX_SETS, STEP_WEIGHTS = 4;

struct Steps {
    const float *RESTRICT table;
    const unsigned *RESTRICT current;
    unsigned count;
};

#define STEPS const float *table, const unsigned *current, unsigned count
#define STEPS_VALUES table, current, count

DEVICE const float *step_row(Steps steps) {
    unsigned current = *steps.current;
    return steps.table + STEP_COLUMNS * (current < steps.count ? current : steps.count - 1);
}

}  // namespace ddt
