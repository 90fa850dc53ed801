/* What the linear_t5 kernels with 16-byte vectors share: a quarter of a vector is 4 rows of a block.
 *
 * Few tokens: each meets the bytes themselves. Many: a panel of a block is decoded once to one digit a byte, which then
 * meets them four at a time. A kernel brings both inner loops. */
#pragma once
#include <arm_neon.h>

#include "t5.h"

enum { QUARTER = 16, QUARTER_ROWS = 4, QUARTERS = T5_VECTOR / QUARTER };

static inline int8x16_t broadcast4(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

static inline int8x16_t load_fractions(const uint8_t *p) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(0x80)));
}

/* 3, hidden from gcc: it would make a shift and an addition of every multiplication by a constant 3. */
static inline int8x16_t hidden3(void) {
    int8x16_t three = vdupq_n_s8(3);
    __asm__("" : "+w"(three));
    return three;
}

/* The first digit of the fractions f. The comparisons give -1 for true. */
static inline int8x16_t first_digit(int8x16_t f) {
    const uint8x16_t above = vcgtq_s8(f, vdupq_n_s8(42)), below = vcltq_s8(f, vdupq_n_s8(-42));
    return vreinterpretq_s8_u8(vsubq_u8(below, above));
}

enum {
    CHUNK = 24,                /* groups decoded at a time: a panel of 7.5 KiB stays in L1, sums of pairs in 16 bits */
    STEPS = CHUNK * T5_DIGITS, /* vectors of 4 weights a row in a panel */
    TOKENS = 4,                /* 4 x 4 sums, 4 vectors of codes: 20 of 32 registers */
    BATCH = 32,                /* tokens that share one decoding */
};

typedef int8x16_t t5_panel[STEPS][QUARTERS];

/* sums[t] += panel . codes of token t, for TOKENS tokens or one. Reads whole vectors of codes: rows are padded. */
typedef void panel_times_tokens(const t5_panel panel, int32_t steps, const int8_t *codes, int64_t stride, int tokens,
                                int32_t sums[][T5_ROWS]);

static void decode(const uint8_t *data, int32_t groups, t5_panel panel) {
    const int8x16_t three = hidden3();
    for (int32_t g = 0; g < groups; g++)
        for (int q = 0; q < QUARTERS; q++) {
            int8x16_t f = load_fractions(data + (int64_t)g * T5_VECTOR + q * QUARTER);
            for (int d = 0; d < T5_DIGITS; d++) {
                panel[g * T5_DIGITS + d][q] = first_digit(f);
                f = vmulq_s8(f, three);
            }
        }
}

static inline __attribute__((always_inline)) void block_times_batch(const lt_op *op, const lt_step *step,
                                                                    const t5_matrix *m, int32_t block, int32_t token,
                                                                    int32_t tokens, panel_times_tokens *times) {
    t5_panel panel;
    int32_t sums[BATCH][T5_ROWS];
    const int64_t stride = op->arg[1].stride;
    memset(panel, 0, sizeof panel);
    memset(sums, 0, (size_t)tokens * sizeof *sums);
    for (int32_t g = 0; g < m->groups; g += CHUNK) {
        const int32_t groups = lt_min(CHUNK, m->groups - g);
        const int8_t *codes = (const int8_t *)lt_row(op, step, 1, token) + g * T5_GROUP;
        decode(t5_block(m, block) + (int64_t)g * T5_VECTOR, groups, panel);
        int32_t t = 0;
        for (; t + TOKENS <= tokens; t += TOKENS)
            times(panel, groups * T5_DIGITS, codes + t * stride, stride, TOKENS, sums + t);
        for (; t < tokens; t++) times(panel, groups * T5_DIGITS, codes + t * stride, stride, 1, sums + t);
    }
    for (int32_t t = 0; t < tokens; t++) t5_finish(op, step, m, block, token + t, sums[t]);
}

static inline __attribute__((always_inline)) void t5_neon_run(const lt_op *op, const lt_step *step, int32_t begin,
                                                              int32_t end, t5_block_times_token *one,
                                                              panel_times_tokens *many) {
    const int32_t n_tokens = lt_rows(op, step);
    if (n_tokens < TOKENS) {
        t5_one_by_one(op, step, begin, end, one);
        return;
    }
    const t5_matrix m = t5_open(op, step);
    const int32_t last = lt_min(end * T5_BLOCKS_PER_PART, t5_blocks(&m));
    for (int32_t block = begin * T5_BLOCKS_PER_PART; block < last; block++)
        for (int32_t t = 0; t < n_tokens; t += BATCH)
            block_times_batch(op, step, &m, block, t, lt_min(BATCH, n_tokens - t), many);
}
