/* linear_t5 with 16-byte vectors and SDOT: 4 rows of a block at a time, by byte products as t5.h describes. */
#include "t5_neon.h"

static void block_times_token(const uint8_t *data, const int8_t *codes, int32_t groups, int32_t sums[T5_ROWS]) {
    int32x4_t now[QUARTERS], next[QUARTERS];
    for (int q = 0; q < QUARTERS; q++) now[q] = next[q] = vdupq_n_s32(0);
    const int8x16_t three = hidden3();
    for (int32_t g = 0; g < groups; g++) {
        int8x16_t f[QUARTERS];
        for (int q = 0; q < QUARTERS; q++)
            f[q] = load_fractions(data + (int64_t)g * T5_VECTOR + q * QUARTER);
        for (int d = 0; d < T5_DIGITS; d++) {
            const int8x16_t a = broadcast4(codes + g * T5_GROUP + d * T5_BYTES);
            for (int q = 0; q < QUARTERS; q++) {
                now[q] = vdotq_s32(now[q], f[q], a);
                f[q] = vmulq_s8(f[q], three);
                next[q] = vdotq_s32(next[q], f[q], a);
            }
        }
    }
    for (int q = 0; q < QUARTERS; q++) {
        const int32x4_t total = vsubq_s32(vmulq_n_s32(now[q], 3), next[q]);
        vst1q_s32(sums + q * QUARTER_ROWS, vshrq_n_s32(total, 8));
    }
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    t5_one_by_one(op, step, begin, end, block_times_token);
}

LT_KERNEL(linear_t5, t5_units, run);
