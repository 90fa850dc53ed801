/* linear_t5 with 16-byte vectors and SDOT: 4 rows of a block at a time, by byte products as t5.h describes. */
#include "t5_neon.h"

static __attribute__((noinline)) void block_times_token(const uint8_t *data, const int8_t *codes, int32_t groups,
                                                        int32_t sums[T5_ROWS]) { /* on its own: no spills */
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

#define LT_STEP(lane)                                                                                           \
    for (int q = 0; q < QUARTERS; q++)                                                                          \
        for (int t = 0; t < tokens; t++) acc[t][q] = vdotq_laneq_s32(acc[t][q], panel[s + lane][q], a[t], lane)

static inline __attribute__((always_inline)) void panel_times(const t5_panel panel, int32_t steps, const int8_t *codes,
                                                              int64_t stride, int tokens, int32_t sums[][T5_ROWS]) {
    int32x4_t acc[TOKENS][QUARTERS];
    for (int t = 0; t < tokens; t++)
        for (int q = 0; q < QUARTERS; q++) acc[t][q] = vld1q_s32(sums[t] + q * QUARTER_ROWS);
    for (int32_t s = 0; s < steps; s += 4) { /* beyond the last, up to a multiple of 4, the codes are 0 */
        int8x16_t a[TOKENS];
        for (int t = 0; t < tokens; t++) a[t] = vld1q_s8(codes + t * stride + s * T5_BYTES);
        LT_STEP(0);
        LT_STEP(1);
        LT_STEP(2);
        LT_STEP(3);
    }
    for (int t = 0; t < tokens; t++)
        for (int q = 0; q < QUARTERS; q++) vst1q_s32(sums[t] + q * QUARTER_ROWS, acc[t][q]);
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    t5_neon_run(op, step, begin, end, block_times_token, panel_times);
}

LT_KERNEL(linear_t5, t5_units, run);
