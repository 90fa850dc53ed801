/* linear_t5 with 16-byte vectors, without SDOT (Raspberry Pi 4): 4 rows of a block at a time.
 *
 * The digit t times the code a stays within a byte; pairs are summed to 16 bits, which are widened before they can
 * reach 32768. */
#include "t5_neon.h"

enum { SAFE = 32767 / (2 * 128 * T5_DIGITS) }; /* groups whose pair sums fit 16 bits */

static __attribute__((noinline)) void block_times_token(const uint8_t *data, const int8_t *codes, int32_t groups,
                                                        int32_t sums[T5_ROWS]) { /* on its own: no spills */
    int32x4_t total[QUARTERS];
    for (int q = 0; q < QUARTERS; q++) total[q] = vdupq_n_s32(0);
    const int8x16_t three = hidden3();
    for (int32_t g = 0; g < groups;) {
        const int32_t stop = lt_min(g + SAFE, groups);
        int16x8_t pairs[QUARTERS];
        for (int q = 0; q < QUARTERS; q++) pairs[q] = vdupq_n_s16(0);
        for (; g < stop; g++) {
            int8x16_t f[QUARTERS];
            for (int q = 0; q < QUARTERS; q++)
                f[q] = load_fractions(data + (int64_t)g * T5_VECTOR + q * QUARTER);
            for (int d = 0; d < T5_DIGITS; d++) {
                const int8x16_t a = broadcast4(codes + g * T5_GROUP + d * T5_BYTES);
                for (int q = 0; q < QUARTERS; q++) {
                    pairs[q] = vpadalq_s8(pairs[q], vmulq_s8(first_digit(f[q]), a));
                    f[q] = vmulq_s8(f[q], three);
                }
            }
        }
        for (int q = 0; q < QUARTERS; q++) total[q] = vpadalq_s16(total[q], pairs[q]);
    }
    for (int q = 0; q < QUARTERS; q++) vst1q_s32(sums + q * QUARTER_ROWS, total[q]);
}

static inline __attribute__((always_inline)) void panel_times(const t5_panel panel, int32_t steps, const int8_t *codes,
                                                              int64_t stride, int tokens, int32_t sums[][T5_ROWS]) {
    int16x8_t pairs[TOKENS][QUARTERS];
    for (int t = 0; t < tokens; t++)
        for (int q = 0; q < QUARTERS; q++) pairs[t][q] = vdupq_n_s16(0);
    for (int32_t s = 0; s < steps; s++) {
        int8x16_t a[TOKENS];
        for (int t = 0; t < tokens; t++) a[t] = broadcast4(codes + t * stride + s * T5_BYTES);
        for (int q = 0; q < QUARTERS; q++)
            for (int t = 0; t < tokens; t++) pairs[t][q] = vpadalq_s8(pairs[t][q], vmulq_s8(panel[s][q], a[t]));
    }
    for (int t = 0; t < tokens; t++)
        for (int q = 0; q < QUARTERS; q++) {
            int32_t *sum = sums[t] + q * QUARTER_ROWS;
            vst1q_s32(sum, vpadalq_s16(vld1q_s32(sum), pairs[t][q]));
        }
}

_Static_assert((int)CHUNK <= (int)SAFE, "the sums of pairs of a panel fit 16 bits");

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    t5_neon_run(op, step, begin, end, block_times_token, panel_times);
}

LT_KERNEL(linear_t5, t5_units, run);
