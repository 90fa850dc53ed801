/* linear_t5 in plain C: the reference of the others. */
#include "t5.h"

static int32_t dot(const uint8_t *row, const int8_t *codes, int32_t groups) {
    int32_t sum = 0;
    for (int32_t g = 0; g < groups; g++)
        for (int32_t b = 0; b < T5_BYTES; b++) {
            int32_t f = row[g * T5_VECTOR + b] - 128;
            for (int32_t d = 0; d < T5_DIGITS; d++) {
                const int32_t t = (f > 42) - (f < -42);
                sum += t * codes[g * T5_GROUP + d * T5_BYTES + b];
                f = 3 * f - 256 * t;
            }
        }
    return sum;
}

static void block_times_token(const uint8_t *block, const int8_t *codes, int32_t groups, int32_t sums[T5_ROWS]) {
    for (int32_t r = 0; r < T5_ROWS; r++) sums[r] = dot(block + r * T5_BYTES, codes, groups);
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    t5_one_by_one(op, step, begin, end, block_times_token);
}

LT_KERNEL(linear_t5, t5_units, run);
